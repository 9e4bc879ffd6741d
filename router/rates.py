"""How often a tenant may come: counted in memory that all workers of a machine can share."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from router.config import Limit
from router.problems import ProblemError

#: Places in a table of rates.
TENANTS = 65_536
#: How long a request waits, once a second at most, for another worker to count: it needs microseconds, unless it was
#: stopped.
PATIENCE_NS = 20_000_000


class Rates:
    """So many requests a second for each tenant that has a limit: the generic cell rate algorithm (ITU-T I.371). One
    number a tenant says when its next request would be exactly on schedule; a request may be early by what makes a
    burst. So in any t seconds at most burst + rate · t come in, and who keeps to the rate is never refused.

    With a file, all processes that map it share the numbers (CLOCK_MONOTONIC is the same for all of them); whoever
    starts them makes it anew. Open until the process ends.
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._limits: dict[str, tuple[int, int, int]] = {}  # place in the table, nanoseconds a request, how early
        self._impatient_until = 0
        self._file = -1
        if path is not None:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(self._file, 16 * TENANTS)
        # Two numbers a tenant: the digest of its name (0: free from here on), and its time in nanoseconds.
        self._table = memoryview(mmap.mmap(self._file, 16 * TENANTS)).cast("q")

    def load(self, limits: Mapping[str, Limit]) -> None:
        """The limits from now on, by tenant. What was spent stays spent."""
        found = {}
        with self._alone():
            for name, limit in limits.items():
                step = round(1e9 / limit.rate)
                burst = limit.burst or max(1, int(limit.rate))
                found[name] = (self._place(name), step, (burst - 1) * step)
        self._limits = found

    def spend(self, tenant: str) -> None:
        """Count one request. Raises `rate`, with the seconds after which the next one is let in."""
        limit = self._limits.get(tenant)
        if limit is None:
            return
        place, step, early = limit
        with self._alone():
            now = self._clock()
            # A larger burst, before a reload, may have left a time that this limit can't come to: it is no debt.
            due = min(max(self._table[place], now), now + early + step)
            wait = due - early - now
            if wait <= 0:
                self._table[place] = due + step
                return
        raise ProblemError("rate", f"{tenant} may send {1e9 / step:.6g} requests a second", retry_after=wait / 1e9)

    def _place(self, name: str) -> int:
        """Where its time is. A tenant that is new is appended; none ever moves."""
        digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True) or 1
        for i in range(0, len(self._table), 2):
            if self._table[i] in (0, digest):
                self._table[i] = digest
                return i + 1
        raise ValueError(f"{TENANTS} tenants had a rate since the service was started; restart it to begin anew")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process writes meanwhile. One that was stopped in the midst of it is not waited for: a request that
        is not counted is better than none being answered."""
        locked = self._file < 0
        began = time.monotonic_ns()
        while not locked:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except BlockingIOError:
                now = time.monotonic_ns()
                if now < self._impatient_until:
                    break
                if now > began + PATIENCE_NS:
                    self._impatient_until = now + 1_000_000_000
                os.sched_yield()
        try:
            yield
        finally:
            if locked and self._file >= 0:
                fcntl.flock(self._file, fcntl.LOCK_UN)
