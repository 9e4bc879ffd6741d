"""The books: one row per input answered, one per paid call, in one SQLite file that several processes share.

One thread per process writes. What arrives while it commits is committed together next (group commit), and each group
wakes the event loop once. `record` returns when the rows are with the operating system, so that `kill -9` loses no
answered request; `reserve` returns when the reservation is on the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from cost.schema import DAY_US, connect
from cost.types import BudgetExhausted, InputRow, Intent, LedgerError, LedgerUnwritable, Outcome, Usage

_GROUP = 512  # jobs a transaction takes at most
_ROW = "(" + ",".join("?" * len(InputRow.__struct_fields__)) + ")"  # the columns stand in the struct's order
#: Several rows a statement: sqlite3 gives up the GIL at each step, and a busy event loop is slow to hand it back.
_INSERTS = {
    n: f"INSERT INTO inputs VALUES {','.join([_ROW] * n)} ON CONFLICT (request_id, idx) DO NOTHING"  # noqa: S608
    for n in (64, 8, 1)
}
_BOOK = "INSERT INTO spend VALUES (?, ?) ON CONFLICT (day) DO UPDATE SET nano = nano + excluded.nano"
_RESERVE = """INSERT INTO attempts (request_id, idx, at_us, tenant, task, provider, model, state, estimate_nano,
    cost_nano, tokens, pid, pid_started_ms) VALUES (?, ?, ?, ?, ?, ?, ?, 'reserved', ?, ?, ?, ?, ?)"""
_SETTLE = """UPDATE attempts SET state = ?, cost_nano = ?, answered_model = ?, input = ?, cache_read = ?,
    cache_write_5m = ?, cache_write_1h = ?, output = ?, estimated = ?, price_version = ?, error = ?, latency_us = ?,
    settled_us = ? WHERE id = ?"""


class _Settle(msgspec.Struct, frozen=True):
    attempt_id: int
    outcome: Outcome


class _Job(msgspec.Struct, frozen=True, gc=False):
    work: Sequence[InputRow] | Intent | _Settle
    future: asyncio.Future[Any] | None


class Ledger:
    """Call its coroutines on an event loop; everything else from any thread."""

    def __init__(
        self, path: Path, db: sqlite3.Connection, clock: Callable[[], float], busy_ms: int, patience_s: float, room: int
    ) -> None:
        self.path = path
        self._db = db  # the writer thread's, after `open`
        self._clock = clock
        self._busy_ms = busy_ms
        self._patience_s = patience_s
        self._room = room
        self._pid, self._pid_started_ms = os.getpid(), started_ms(os.getpid()) or 0
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._in_hand = 0
        self._writable = True
        self._closed = False
        self._reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=busy_ms / 1000)
        self._reading = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

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
        ledger._give_up_on_the_dead()
        ledger._thread.start()
        return ledger

    async def record(self, rows: Sequence[InputRow]) -> None:
        """Write the rows of answered inputs; a row already there (request, index) is left as it is.

        Raises `LedgerUnwritable`; the rows are then lost and the caller counts them.
        """
        if rows:
            await self._submit(rows)

    async def reserve(self, intent: Intent) -> int:
        """Set the upper bound of a paid call aside, durably; gives the attempt's id.

        The UTC day of `intent.at_us` is charged. Raises `BudgetExhausted` or `LedgerUnwritable`: make no call then.
        """
        attempt_id: int = await self._submit(intent)
        return attempt_id

    async def settle(self, attempt_id: int, outcome: Outcome) -> None:
        """Replace a reservation by what came of it. The first outcome counts, but a known one replaces `uncertain`."""
        await self._submit(_Settle(attempt_id, outcome))

    def spent_today_nano(self) -> int:
        """What all processes on this file have spent or set aside since midnight UTC."""
        try:
            with self._reading:
                return _spent(self._reader, int(self._clock() * 1e6))
        except sqlite3.Error as error:
            raise LedgerError(f"the ledger {self.path} can't be read: {error}") from error

    async def spent_today(self) -> int:
        """The same, off the event loop."""
        return await asyncio.to_thread(self.spent_today_nano)

    @property
    def writable(self) -> bool:
        """Whether the last transaction was committed."""
        return self._writable and not self._closed

    @property
    def pending(self) -> int:
        """Calls that wait for their commit."""
        return self._queue.qsize() + self._in_hand

    def close(self) -> None:
        """Write what waits, then close the file. Later calls raise `LedgerUnwritable`."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()
            with self._reading:
                self._reader.close()

    # --- event loop side

    async def _submit(self, work: Sequence[InputRow] | Intent | _Settle) -> Any:
        if self._closed:
            raise LedgerUnwritable(f"the ledger {self.path} is closed")
        if self.pending >= self._room:
            raise LedgerUnwritable(f"the ledger {self.path} is too slow: {self._room} calls wait for it")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.put(_Job(work, future))
        impatience = loop.call_later(self._patience_s, self._stop_waiting, future)
        try:
            return await future
        finally:
            impatience.cancel()

    def _stop_waiting(self, future: asyncio.Future[Any]) -> None:
        if not future.done():
            future.set_exception(LedgerUnwritable(f"the ledger {self.path} took over {self._patience_s:g} s to write"))

    def _deliver(self, done: list[tuple[_Job, Any]]) -> None:
        for job, result in done:
            if job.future is None:
                continue
            if not job.future.done():
                if isinstance(result, Exception):
                    job.future.set_exception(result)
                else:
                    job.future.set_result(result)
            elif isinstance(job.work, Intent) and isinstance(result, int):
                # The caller left while we reserved: no call will be made, so the money is free again.
                free = Outcome("unbilled", error="Abandoned")
                self._queue.put(_Job(_Settle(result, free), None))

    # --- writer thread

    def _run(self) -> None:
        stopping = False
        while not stopping:
            group, stopping = self._take()
            self._in_hand = len(group)
            books = [job for job in group if not isinstance(job.work, Intent)]
            paid = [job for job in group if isinstance(job.work, Intent)]
            done = self._commit(books, "NORMAL")
            self._in_hand = len(paid)
            self._report(done)
            done = self._commit(paid, "FULL")
            self._in_hand = 0
            self._report(done)
        self._db.close()

    def _take(self) -> tuple[list[_Job], bool]:
        """Waits for work and takes all there is, up to a group; True once the ledger was closed."""
        group: list[_Job] = []
        job = self._queue.get()
        with contextlib.suppress(queue.Empty):
            while job is not None:
                group.append(job)
                if len(group) == _GROUP:
                    return group, False
                job = self._queue.get_nowait()
            return group, True
        return group, False

    def _report(self, done: list[tuple[_Job, Any]]) -> None:
        """Wake each event loop (there is one, but for tests) once."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Job, Any]]] = {}
        for job, result in done:
            if job.future is not None:
                by_loop.setdefault(job.future.get_loop(), []).append((job, result))
        for loop, part in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._deliver, part)

    def _commit(self, jobs: list[_Job], synchronous: Literal["NORMAL", "FULL"]) -> list[tuple[_Job, Any]]:
        """One transaction for all of them; a job that can't be written for its own fault fails alone."""
        if not jobs:
            return []
        db = self._db
        try:
            # While it can't be written, nobody should wait for that long.
            db.execute(f"PRAGMA busy_timeout = {self._busy_ms if self._writable else min(20, self._busy_ms)}")
            db.execute(f"PRAGMA synchronous = {synchronous}")
            db.execute("BEGIN IMMEDIATE")
            done = self._write(jobs)
            db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - the thread must live, and every caller must hear of it
            with contextlib.suppress(sqlite3.Error):
                if db.in_transaction:
                    db.execute("ROLLBACK")
            if _is_the_files_fault(error):
                self._writable = False
                return [(job, LedgerUnwritable(f"the ledger {self.path} can't be written: {error}")) for job in jobs]
            if len(jobs) > 1:
                return [result for job in jobs for result in self._commit([job], synchronous)]
            return [(jobs[0], LedgerError(f"a row was refused by the ledger: {type(error).__name__}"))]
        self._writable = True
        return done

    def _write(self, jobs: list[_Job]) -> list[tuple[_Job, Any]]:
        done: list[tuple[_Job, Any]] = []
        rows: list[tuple[Any, ...]] = []
        for job in jobs:
            work = job.work
            result: Any = None
            if isinstance(work, Intent):
                result = self._reserve(work) if job.future is not None and not job.future.done() else None
            elif isinstance(work, _Settle):
                result = self._settle(work.attempt_id, work.outcome)
            else:
                rows += map(msgspec.structs.astuple, work)
            done.append((job, result))
        at = 0
        for size, statement in _INSERTS.items():
            while len(rows) - at >= size:
                self._db.execute(statement, list(chain.from_iterable(rows[at : at + size])))
                at += size
        return done

    def _reserve(self, intent: Intent) -> int | BudgetExhausted:
        spent = _spent(self._db, intent.at_us)
        if intent.budget_nano is not None and spent + intent.estimate_nano > intent.budget_nano:
            return BudgetExhausted(
                f"the day's budget of ${intent.budget_nano / 1e9:.4f} is used up: ${spent / 1e9:.4f} is spent or "
                f"set aside, this call may cost ${intent.estimate_nano / 1e9:.6f}"
            )
        if intent.estimate_nano < 0:
            raise ValueError("a negative estimate")
        key = (intent.request_id, intent.index, intent.at_us, intent.tenant, intent.task, intent.provider, intent.model)
        money = (intent.estimate_nano, intent.estimate_nano, intent.tokens)
        attempt_id = self._db.execute(_RESERVE, (*key, *money, self._pid, self._pid_started_ms)).lastrowid
        self._db.execute(_BOOK, (intent.at_us // DAY_US, intent.estimate_nano))
        assert attempt_id is not None
        return attempt_id

    def _settle(self, attempt_id: int, outcome: Outcome) -> LedgerError | None:
        found = self._db.execute(
            "SELECT state, estimate_nano, cost_nano, at_us FROM attempts WHERE id = ?", (attempt_id,)
        ).fetchone()
        if found is None:
            return LedgerError(f"there is no attempt {attempt_id} to settle")
        state, estimate, held, at_us = found
        if state in ("settled", "unbilled") or state == outcome.state:
            return None
        if outcome.cost_nano < 0:
            raise ValueError("a negative cost")
        cost = {"settled": outcome.cost_nano, "unbilled": 0, "uncertain": max(outcome.cost_nano, estimate)}[
            outcome.state
        ]
        buckets = usage_columns(outcome.usage)
        told = (outcome.price_version, outcome.error, outcome.latency_us, int(self._clock() * 1e6))
        self._db.execute(_SETTLE, (outcome.state, cost, outcome.model, *buckets, *told, attempt_id))
        self._db.execute(_BOOK, (at_us // DAY_US, cost - held))
        return None

    def _give_up_on_the_dead(self) -> None:
        """What a dead process had reserved was paid or not, nobody knows: it is uncertain and keeps its upper bound.

        Called once, before the thread starts. The cost stands already, so a file that can't be written loses no money.
        """
        try:
            reserved = self._db.execute(
                "SELECT id, pid, pid_started_ms FROM attempts WHERE state = 'reserved'"
            ).fetchall()
            dead = [(int(self._clock() * 1e6), i) for i, pid, started in reserved if not alive(pid, started)]
            if dead:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany(
                    "UPDATE attempts SET state = 'uncertain', error = 'ProcessDied', settled_us = ?"
                    " WHERE id = ? AND state = 'reserved'",
                    dead,
                )
                self._db.execute("COMMIT")
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            self._writable = False


def usage_columns(usage: Usage | None) -> tuple[int | None, ...]:
    """The columns input .. estimated of an attempt; all NULL where the provider gave no usage."""
    return (None,) * 6 if usage is None else msgspec.structs.astuple(usage)


def started_ms(pid: int) -> int | None:
    """When the process started (unix milliseconds); None if there is no such process."""
    try:
        return int(psutil.Process(pid).create_time() * 1000)
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return 0


def alive(pid: int, started: int) -> bool:
    """Whether the process that reserved still runs. A pid is used again, so its start time counts too.

    The start time follows steps of the system clock, hence the tolerance; our own is read by the same clock.
    """
    now = started_ms(pid)
    return now is not None and (now == started if pid == os.getpid() else abs(now - started) < 2000)


def _spent(db: sqlite3.Connection, at_us: int) -> int:
    found = db.execute("SELECT nano FROM spend WHERE day = ?", (at_us // DAY_US,)).fetchone()
    return int(found[0]) if found else 0


def _is_the_files_fault(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError
