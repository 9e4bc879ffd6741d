"""The thread that writes the ledger. What arrives while it commits is committed together next (group commit)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import msgspec

from cost.limits import Scope, refusal
from cost.processes import alive, started_ms
from cost.schema import DAY_US
from cost.types import (
    BudgetExhausted,
    InputRow,
    Intent,
    LedgerError,
    LedgerUnwritable,
    Machine,
    Outcome,
    Spent,
    Usage,
)
from cost.watch import Watch

_GROUP = 512  # jobs a transaction takes at most
_ROW = "(" + ",".join("?" * len(InputRow.__struct_fields__)) + ")"  # the columns stand in the struct's order
#: Several rows a statement: sqlite3 gives up the GIL at each step, and a busy event loop is slow to hand it back.
_INSERTS = {
    n: f"INSERT INTO inputs VALUES {','.join([_ROW] * n)} ON CONFLICT (request_id, idx) DO NOTHING"  # noqa: S608
    for n in (64, 8, 1)
}
_BOOK = "INSERT INTO spend VALUES (?, ?) ON CONFLICT (day) DO UPDATE SET nano = nano + excluded.nano"
_RESERVE = """INSERT INTO attempts (request_id, idx, at_us, tenant, task, provider, model, state, estimate_nano,
    cost_nano, tokens, batch, pid, pid_started_ms) VALUES (?, ?, ?, ?, ?, ?, ?, 'reserved', ?, ?, ?, ?, ?, ?)"""
_SETTLE = """UPDATE attempts SET state = ?, cost_nano = ?, answered_model = ?, input = ?, cache_read = ?,
    cache_write_5m = ?, cache_write_1h = ?, output = ?, reasoning = ?, estimated = ?, price_version = ?, error = ?,
    latency_us = ?, reply_id = ?, settled_us = ? WHERE id = ?"""
_NOTE = "INSERT INTO machines VALUES (?, ?, ?, ?, ?, ?, ?)"


class Settle(msgspec.Struct, frozen=True):
    """An attempt, and how it ended."""

    attempt_id: int
    outcome: Outcome


class Job(msgspec.Struct, frozen=True, gc=False):
    """Something to write, and who wants to hear of it. A job whose future is done is written all the same, unless it
    is a reservation: its money would be set aside for nobody."""

    work: Sequence[InputRow] | Intent | Settle | Machine
    future: asyncio.Future[Any] | None


#: Jobs, and what came of each: an attempt's id, None, or the exception to raise.
Results = list[tuple[Job, Any]]


class Writer:
    """Owns the connection from `start` on. `deliver` is called with results on the loop of the jobs' futures."""

    def __init__(
        self,
        path: Path,
        db: sqlite3.Connection,
        *,
        watch: Watch,
        clock: Callable[[], float],
        busy_ms: int,
        deliver: Callable[[Results], None],
    ) -> None:
        self._path = path
        self._db = db
        self._watch = watch
        self._clock = clock
        self._busy_ms = busy_ms
        self._deliver = deliver
        self._pid, self._pid_started_ms = os.getpid(), started_ms(os.getpid()) or 0
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._in_hand = 0
        self._pragmas: tuple[int, str] | None = None  # as they are set now
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self.writable = True  # whether the last transaction was committed

    def start(self) -> None:
        self._give_up_on_the_dead()
        self._thread.start()

    def put(self, job: Job) -> None:
        self._queue.put(job)

    @property
    def pending(self) -> int:
        return self._queue.qsize() + self._in_hand

    def stop(self) -> None:
        """Write what waits, then close the connection. Blocks."""
        self._queue.put(None)
        self._thread.join()

    # --- on the thread

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

    def _take(self) -> tuple[list[Job], bool]:
        """Waits for work and takes all there is, up to a group; True once the ledger was closed."""
        group: list[Job] = []
        job = self._queue.get()
        with contextlib.suppress(queue.Empty):
            while job is not None:
                group.append(job)
                if len(group) == _GROUP:
                    return group, False
                job = self._queue.get_nowait()
            return group, True
        return group, False

    def _report(self, done: Results) -> None:
        """Wake each event loop (there is one, but for tests) once."""
        by_loop: dict[asyncio.AbstractEventLoop, Results] = {}
        for job, result in done:
            if job.future is not None:
                by_loop.setdefault(job.future.get_loop(), []).append((job, result))
        for loop, part in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._deliver, part)

    def _commit(self, jobs: list[Job], synchronous: Literal["NORMAL", "FULL"]) -> Results:
        """One transaction for all of them; a job that can't be written for its own fault fails alone."""
        if not jobs:
            return []
        if fault := self._watch.check(now=synchronous == "FULL"):
            return self._refuse(jobs, fault)
        db = self._db
        try:
            # While it can't be written, nobody should wait for that long.
            wanted = (self._busy_ms if self.writable else min(20, self._busy_ms), synchronous)
            if wanted != self._pragmas:
                self._pragmas = None
                db.execute(f"PRAGMA busy_timeout = {wanted[0]}")
                db.execute(f"PRAGMA synchronous = {wanted[1]}")
                self._pragmas = wanted
            db.execute("BEGIN IMMEDIATE")
            done = self._write(jobs)
            db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - the thread must live, and every caller must hear of it
            self._roll_back()
            if _is_the_files_fault(error):
                return self._refuse(jobs, error)
            if len(jobs) > 1:
                return [result for job in jobs for result in self._commit([job], synchronous)]
            return [(jobs[0], LedgerError(f"a row was refused by the ledger: {type(error).__name__}"))]
        self.writable = True
        return done

    def _refuse(self, jobs: list[Job], why: object) -> Results:
        self.writable = False
        return [(job, LedgerUnwritable(f"the ledger {self._path} can't be written: {why}")) for job in jobs]

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _write(self, jobs: list[Job]) -> Results:
        done: Results = []
        rows: list[tuple[Any, ...]] = []
        for job in jobs:
            work = job.work
            result: Any = None
            if isinstance(work, Intent):
                result = self._reserve(work) if job.future is not None and not job.future.done() else None
            elif isinstance(work, Settle):
                result = self._settle(work.attempt_id, work.outcome)
            elif isinstance(work, Machine):
                self._db.execute(_NOTE, (int(self._clock() * 1e6), self._pid, *msgspec.structs.astuple(work)))
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
        if intent.estimate_nano < 0:
            raise ValueError("a negative estimate")
        if refused := refusal(intent, partial(_spent_nano, self._db, intent.at_us)):
            return refused
        key = (intent.request_id, intent.index, intent.at_us, intent.tenant, intent.task, intent.provider, intent.model)
        money = (intent.estimate_nano, intent.estimate_nano, intent.tokens, intent.batch)
        attempt_id = self._db.execute(_RESERVE, (*key, *money, self._pid, self._pid_started_ms)).lastrowid
        self._book(intent.at_us, intent.estimate_nano)
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
        buckets = _usage_columns(outcome.usage)
        told = (outcome.price_version, outcome.error, outcome.latency_us, outcome.reply_id, int(self._clock() * 1e6))
        self._db.execute(_SETTLE, (outcome.state, cost, outcome.model, *buckets, *told, attempt_id))
        self._book(at_us, cost - held)
        return None

    def _book(self, at_us: int, nano: int) -> None:
        """By task and tenant the file does it itself (`cost.schema`)."""
        self._db.execute(_BOOK, (at_us // DAY_US, nano))

    # --- before the thread starts

    def _give_up_on_the_dead(self) -> None:
        """What a dead process had reserved was paid or not, nobody knows: it is uncertain and keeps its upper bound.

        The cost stands already, so a file that can't be written loses no money.
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
            self._roll_back()
            self.writable = False


def spent_on(db: sqlite3.Connection, at_us: int) -> Spent:
    """What is spent or set aside on the UTC day of `at_us`."""
    by: dict[str, dict[str, int]] = {"day": {}, "task": {}, "tenant": {}}
    asked = "SELECT 'day', '', nano FROM spend WHERE day = :day UNION ALL SELECT scope, name, nano FROM spend_by"
    for scope, name, nano in db.execute(f"{asked} WHERE day = :day", {"day": at_us // DAY_US}):
        by[scope][name] = nano
    return Spent(by["day"].get("", 0), by["task"], by["tenant"])


def _spent_nano(db: sqlite3.Connection, at_us: int, scope: Scope, name: str) -> int:
    """One of them."""
    day = at_us // DAY_US
    if scope == "day":
        found = db.execute("SELECT nano FROM spend WHERE day = ?", (day,)).fetchone()
    else:
        asked = "SELECT nano FROM spend_by WHERE day = ? AND scope = ? AND name = ?"
        found = db.execute(asked, (day, scope, name)).fetchone()
    return int(found[0]) if found else 0


def _usage_columns(usage: Usage | None) -> tuple[int | None, ...]:
    """The columns input .. estimated of an attempt; all NULL where the provider gave no usage."""
    return (None,) * 7 if usage is None else msgspec.structs.astuple(usage)


def _is_the_files_fault(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError
