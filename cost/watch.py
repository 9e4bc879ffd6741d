"""Is the file under an open ledger still the one that was opened? SQLite doesn't ask: it goes on writing to a file that
was deleted, and those rows are gone with the process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

_MAGIC = b"SQLite format 3\0"
_EVERY_S = 1.0


class Watch:
    """`clock` gives seconds. Safe from several threads, but for `close`."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        # Open as long as the database: to close any descriptor of a file drops this process's POSIX locks on it, those
        # of SQLite too (https://www.sqlite.org/howtocorrupt.html, 2.2).
        self._file = os.open(path, os.O_RDONLY)
        self._opened = os.fstat(self._file)
        self._checked = clock()
        self.fault: str | None = None  # found by the last check

    def check(self, *, now: bool = True) -> str | None:
        """What is wrong with the file, for people; None: nothing. Without `now` a good answer holds for a second."""
        if now or self.fault or abs(self._clock() - self._checked) >= _EVERY_S:
            self._checked = self._clock()
            self.fault = self._look()
        return self.fault

    def close(self) -> None:
        """After every connection of this process to the file is closed."""
        os.close(self._file)

    def _look(self) -> str | None:
        try:
            found = self._path.stat()
            start = os.pread(self._file, len(_MAGIC), 0)
        except FileNotFoundError:
            return "it was deleted; put it back, or restart the service to begin a new one"
        except OSError as error:
            return str(error)
        if (found.st_dev, found.st_ino) != (self._opened.st_dev, self._opened.st_ino):
            return "another file is in its place; restart the service to use that one"
        return None if start == _MAGIC else "it was overwritten; restore it from a backup and restart the service"
