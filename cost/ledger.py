"""The books: one row per input answered, one per paid call, in one SQLite file that several processes share.

One thread per process writes (`cost.writer`) and wakes the event loop once for all that it committed together. `record`
returns when the rows are with the operating system, so that `kill -9` loses no answered request; `reserve` returns when
the reservation is on the disk.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cost.schema import connect
from cost.types import InputRow, Intent, LedgerUnwritable, Machine, Outcome, Spent
from cost.watch import Watch
from cost.writer import Job, Results, Settle, Writer, spent_on


class Ledger:
    """Call its coroutines on an event loop; everything else from any thread."""

    def __init__(
        self, path: Path, db: sqlite3.Connection, clock: Callable[[], float], busy_ms: int, patience_s: float, room: int
    ) -> None:
        self.path = path
        self._clock = clock
        self._patience_s = patience_s
        self._room = room
        self._closed = False
        self._watch = Watch(path, clock)
        self._writer = Writer(path, db, watch=self._watch, clock=clock, busy_ms=busy_ms, deliver=self._deliver)
        self._reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.05)
        self._patience = _Patience(path)
        self._reading = threading.Lock()
        self._readable = True
        self._spent = Spent()  # as last read

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = time.time,
        busy_ms: int = 1000,
        patience_s: float = 5.0,
        room: int = 10_000,
    ) -> Ledger:
        """Open, or create with its folders.

        `busy_ms`: how long a commit waits for another process; `patience_s`: how long a caller waits at most; `room`:
        calls that may wait. Raises `LedgerError`: newer schema, not a ledger; `LedgerUnwritable`: can't be written.
        """
        where = Path(path).expanduser()
        ledger = cls(where, connect(where, busy_ms=busy_ms), clock, busy_ms, patience_s, room)
        ledger._writer.start()
        return ledger

    def record(self, rows: Sequence[InputRow], *, patience_s: float | None = None) -> asyncio.Future[None]:
        """Write the rows of answered inputs; a row already there (request, index) is left as it is.

        The future raises `LedgerUnwritable`, after `patience_s` at the latest; the caller then counts the rows as lost.
        They are written even if nobody waits for it.
        """
        return self._submit(rows, patience_s)

    async def reserve(self, intent: Intent) -> int:
        """Set the upper bound of a paid call aside, durably; gives the attempt's id.

        The UTC day of `intent.at_us` is charged. Raises `BudgetExhausted` or `LedgerUnwritable`: make no call then.
        """
        attempt_id: int = await self._submit(intent)
        return attempt_id

    async def settle(self, attempt_id: int, outcome: Outcome) -> None:
        """Replace a reservation by what came of it. The first outcome counts, but a known one replaces `uncertain`."""
        await self._submit(Settle(attempt_id, outcome))

    async def note_machine(self, machine: Machine) -> None:
        """Say what answers from now on, once a process. Raises `LedgerUnwritable`: reports then assume a machine."""
        await self._submit(machine)

    def spent_today_nano(self) -> int:
        """What all processes on this file have spent or set aside since midnight UTC."""
        return self.spent_today().day

    def spent_today(self) -> Spent:
        """The same, by task and by tenant as well.

        A file that can't be read gives what was last read from it, and is not `writable`.
        """
        with self._reading:
            if not self._closed and self._watch.check() is None:
                try:
                    self._spent = spent_on(self._reader, int(self._clock() * 1e6))
                    self._readable = True
                except sqlite3.Error:
                    self._readable = False
            return self._spent

    @property
    def writable(self) -> bool:
        """Whether the last transaction was committed, to the file that was opened."""
        return self._writer.writable and self._readable and self._watch.fault is None and not self._closed

    @property
    def pending(self) -> int:
        """Calls that wait for their commit."""
        return self._writer.pending

    def close(self) -> None:
        """Write what waits, then close the file. Later calls raise `LedgerUnwritable`."""
        if not self._closed:
            self._closed = True
            self._writer.stop()
            with self._reading:
                self._reader.close()
                self._watch.close()

    def _submit(
        self, work: Sequence[InputRow] | Intent | Settle | Machine, patience_s: float | None = None
    ) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if not work:
            future.set_result(None)
        elif self._closed:
            _fail(future, LedgerUnwritable(f"the ledger {self.path} is closed"))
        elif self.pending >= self._room:
            _fail(future, LedgerUnwritable(f"the ledger {self.path} is too slow: {self._room} calls wait for it"))
        else:
            self._writer.put(Job(work, future))
            seconds = self._patience_s if patience_s is None else min(patience_s, self._patience_s)
            self._patience.wait(future, seconds, loop)
        return future

    def _deliver(self, done: Results) -> None:
        for job, result in done:
            if job.future is None:
                continue
            self._patience.over(job.future)
            if not job.future.done():
                if isinstance(result, Exception):
                    _fail(job.future, result)
                else:
                    job.future.set_result(result)
            elif isinstance(job.work, Intent) and isinstance(result, int):
                # The caller left while we reserved: no call will be made, so the money is free again.
                self._writer.put(Job(Settle(result, Outcome("unbilled", error="Abandoned")), None))


class _Patience:
    """Fails futures that have waited for long enough. One timer for all: a timer each would cost more than the rest of
    a call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._until: dict[asyncio.Future[Any], tuple[float, float]] = {}  # the loop's time, and the seconds it was
        self._alarm: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def wait(self, future: asyncio.Future[Any], seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:  # a test's second one
            self._loop, self._alarm = loop, None
            self._until.clear()
        when = loop.time() + seconds
        self._until[future] = (when, seconds)
        if self._alarm is None or when < self._alarm.when():
            self._set(when)

    def over(self, future: asyncio.Future[Any]) -> None:
        self._until.pop(future, None)

    def _set(self, when: float) -> None:
        assert self._loop is not None
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        assert self._loop is not None
        self._alarm, now = None, self._loop.time()
        for future, (when, seconds) in list(self._until.items()):
            if when <= now or future.done():
                del self._until[future]
                if not future.done():
                    _fail(future, LedgerUnwritable(f"the ledger {self._path} took over {seconds:.3g} s to write"))
        if self._until:
            self._set(min(when for when, _ in self._until.values()))


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    future.set_exception(error)
    future.exception()  # seen: of who has left, asyncio would log it
