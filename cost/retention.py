# ruff: noqa: S608 - what is put into the queries are constants of this module
"""Old rows become hours (`cost.rollup`). A transaction moves some requests, whole, and no more than it can hold the
file for: whenever the process is killed, a request is either there as rows or in its hours, never both.

Several processes may do it at once: each transaction looks anew at what there is. Money set aside stays as it is, and
so do the sums of days in `spend` and `spend_by`: they are the sums of both.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from cost import rollup
from cost.rollup import HOUR_US
from cost.schema import DAY_US, connect, explained
from cost.types import LedgerError

ROWS = 1000  # that a transaction moves, about: some hundredths of a second, in which nobody else can write
REST = 9  # times as long as it took, before the next one: a tenth of a core, at most
FIRST_S, EVERY_S = 300.0, 3600.0  # a service looks for old rows that long after its start, and then that often
_OPEN = "SELECT 1 FROM attempts a WHERE a.request_id = r.request_id AND a.state = 'reserved'"
#: Requests that nothing is open of; attempts that belong to no input (comparisons, callers who left), too.
_CHOOSE = f"""INSERT INTO temp.moving
    SELECT request_id FROM (SELECT DISTINCT request_id FROM inputs WHERE at_us BETWEEN :first AND :last) r
    WHERE NOT EXISTS ({_OPEN})
    UNION SELECT request_id FROM (SELECT DISTINCT request_id FROM attempts WHERE at_us BETWEEN :first AND :last) r
    WHERE NOT EXISTS ({_OPEN}) AND NOT EXISTS (SELECT 1 FROM inputs i WHERE i.request_id = r.request_id)"""
_MOVED = "request_id IN (SELECT request_id FROM temp.moving)"
#: When the oldest row from `first` on was written, and when the `ROWS`-th after it.
_NEXT = """SELECT min(at_us) FROM (SELECT min(at_us) AS at_us FROM inputs WHERE at_us >= :first
    UNION ALL SELECT min(at_us) FROM attempts WHERE at_us >= :first)"""
_FULL = f"""SELECT min(at_us) FROM (
    SELECT * FROM (SELECT at_us FROM inputs WHERE at_us >= :first ORDER BY at_us LIMIT 1 OFFSET {ROWS})
    UNION ALL
    SELECT * FROM (SELECT at_us FROM attempts WHERE at_us >= :first ORDER BY at_us LIMIT 1 OFFSET {ROWS}))"""


class Compacted(msgspec.Struct, frozen=True):
    """What was done."""

    inputs: int = 0
    attempts: int = 0


def limit_us(before_us: int, now_us: int) -> int:
    """The time before which rows may go: whole hours, and never of today or yesterday (UTC): a batch's answers may
    come a day later."""
    return min(before_us // HOUR_US * HOUR_US, (now_us // DAY_US - 1) * DAY_US)


def compact(
    path: Path,
    *,
    before_us: int,
    clock: Callable[[], float] = time.time,
    stopping: Callable[[], bool] = lambda: False,
    rest: Callable[[float], object] = time.sleep,
    connecting: Callable[[Path], sqlite3.Connection] = lambda path: connect(path, busy_ms=5000),
) -> Compacted:
    """Roll up what is older than `before_us` (see `limit_us`), the oldest first. Blocks; ends early once `stopping`.

    `rest(seconds)` is called between transactions, so that others get to write. Raises `LedgerError`: what was moved
    until then stays moved.
    """
    db = connecting(path)
    try:
        rollup.register(db)
        db.execute("CREATE TEMP TABLE moving (request_id TEXT PRIMARY KEY) WITHOUT ROWID")
        limit, done, first = limit_us(before_us, int(clock() * 1e6)), Compacted(), -(2**62)
        while not stopping():
            (first,) = db.execute(_NEXT, {"first": first}).fetchone()
            if first is None or first >= limit:
                break
            (full,) = db.execute(_FULL, {"first": first}).fetchone()
            last, begun = min(full or limit, limit - 1), time.perf_counter()
            inputs, attempts = _move(db, first, last)
            done = Compacted(done.inputs + inputs, done.attempts + attempts)
            first = last + 1
            rest(REST * (time.perf_counter() - begun))
        return done
    except sqlite3.Error as error:
        raise explained(path, error) from error
    finally:
        db.close()


def _move(db: sqlite3.Connection, first: int, last: int) -> tuple[int, int]:
    """One transaction, for the requests of that time (both ends included): how many inputs and attempts were moved."""
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute("DELETE FROM temp.moving")
        db.execute(_CHOOSE, {"first": first, "last": last})
        db.execute(rollup.adding("inputs", _MOVED))
        db.execute(rollup.adding("attempts", _MOVED))
        attempts = db.execute(f"DELETE FROM attempts WHERE {_MOVED}").rowcount
        inputs = db.execute(f"DELETE FROM inputs WHERE {_MOVED}").rowcount
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return inputs, attempts


def rolled_up_until(db: sqlite3.Connection) -> int | None:
    """The end of the newest hour that rows went into, unix microseconds. `db`: `schema.connect_readonly`'s view."""
    both = "SELECT hour FROM input_hours UNION ALL SELECT hour FROM attempt_hours"
    (hour,) = db.execute(f"SELECT max(hour) FROM ({both})").fetchone()
    return None if hour is None else (hour + 1) * HOUR_US


class Upkeep:
    """Rolls up what is older than `days`, now and then, on a thread of its own. `on_error` is called there; it is tried
    again the next time."""

    def __init__(
        self,
        path: Path,
        days: int,
        *,
        on_error: Callable[[LedgerError], None],
        clock: Callable[[], float] = time.time,
        first_s: float = FIRST_S,
    ) -> None:
        self._path, self._days, self._on_error, self._clock, self._first_s = path, days, on_error, clock, first_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Blocks until the transaction that is under way has ended."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        wait = self._first_s
        while not self._stopping.wait(wait):
            wait = EVERY_S
            try:
                compact(
                    self._path,
                    before_us=int(self._clock() * 1e6) - self._days * DAY_US,
                    clock=self._clock,
                    stopping=self._stopping.is_set,
                    rest=self._stopping.wait,
                )
            except LedgerError as error:
                self._on_error(error)
