# ruff: noqa: S608 - the parts of the queries are names and constants of ours
"""Do the books add up? Reads a ledger, live or not, and changes nothing."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from cost.comparison import REQUESTS
from cost.histogram import unpacked
from cost.processes import alive
from cost.rollup import ATTEMPT_SUMS, HOUR_US, INPUT_SUMS
from cost.schema import DAY_US, connect_readonly
from cost.types import LedgerError


class Finding(msgspec.Struct, frozen=True):
    """`error`: the books are wrong. `note`: what a crash, or a caller who left, leaves behind; it is accounted for."""

    severity: Literal["error", "note"]
    check: str
    detail: str


#: Ids are given one after the other, and taken back with a transaction that fails: none is left out.
_IDS = """SELECT coalesce((SELECT seq FROM l0.sqlite_sequence WHERE name = 'attempts'), 0) AS given,
    (SELECT count(*) FROM attempts) + (SELECT coalesce(sum(attempts), 0) FROM attempt_hours) AS there"""
#: check, what is wrong, a query that gives (how many, an example) of the rows that are wrong.
_ERRORS = (
    (
        "negative",
        "inputs with a negative number",
        """SELECT count(*), min(request_id) FROM inputs WHERE min(cost_nano, local_nano, saved_nano, tokens, total_us,
           cache_us, queue_us, local_us, frontier_us, idx) < 0""",
    ),
    (
        "negative",
        "attempts with a negative number",
        """SELECT count(*), min(request_id) FROM attempts WHERE min(cost_nano, estimate_nano, tokens, latency_us,
           coalesce(input, 0), coalesce(cache_read, 0), coalesce(cache_write_5m, 0), coalesce(cache_write_1h, 0),
           coalesce(output, 0), coalesce(reasoning, 0)) < 0""",
    ),
    (
        "state",
        "attempts in an unknown state, or whose cost does not fit their state",
        """SELECT count(*), min(request_id) FROM attempts WHERE CASE state WHEN 'settled' THEN 0
           WHEN 'unbilled' THEN cost_nano <> 0 WHEN 'reserved' THEN cost_nano <> estimate_nano
           WHEN 'uncertain' THEN cost_nano < estimate_nano ELSE 1 END""",
    ),
    (
        "cost",
        "inputs whose cost is not their local cost plus what their attempts cost",
        # An attempt settled after the answer (the caller had left) is not in its input's cost, and need not be.
        """SELECT count(*), min(request_id) FROM (SELECT i.request_id, i.cost_nano - i.local_nano AS paid,
           i.at_us + i.total_us + 1000000 AS answered_us, sum(a.cost_nano) AS cost, max(a.settled_us) AS settled_us,
           sum(a.state IN ('reserved', 'uncertain')) AS open
           FROM inputs i JOIN attempts a ON a.request_id = i.request_id AND a.idx = i.idx GROUP BY i.request_id, i.idx)
           WHERE open = 0 AND settled_us <= answered_us AND paid <> cost""",
    ),
    (
        "cost",
        "inputs that cost more than their attempts ever could",
        # Open or late as they may be: an answer never took more from an attempt than was set aside or paid for it.
        """SELECT count(*), min(request_id) FROM (SELECT i.request_id, i.cost_nano - i.local_nano AS paid,
           sum(max(a.cost_nano, a.estimate_nano)) AS bound
           FROM inputs i JOIN attempts a ON a.request_id = i.request_id AND a.idx = i.idx GROUP BY i.request_id, i.idx)
           WHERE paid > bound""",
    ),
    (
        "negative",
        "hours with a negative sum",
        f"""SELECT count(*), min(hour) FROM (
           SELECT hour FROM input_hours WHERE min({", ".join(INPUT_SUMS)}) < 0
           UNION ALL SELECT hour FROM attempt_hours WHERE min({", ".join(ATTEMPT_SUMS)}) < 0)""",
    ),
    (
        "cost",
        "sums: the inputs rolled up cost more than the attempts rolled up ever could",
        """SELECT paid > bound, paid || ' > ' || bound FROM
           (SELECT coalesce(sum(cost_nano - local_nano), 0) AS paid FROM input_hours),
           (SELECT coalesce(sum(bound_nano), 0) AS bound FROM attempt_hours)""",
    ),
    (
        "gap",
        "attempts are missing: of the ids that were given, neither a row nor an hour has them",
        f"SELECT max(given - there, 0), 'of ' || given FROM ({_IDS})",
    ),
    (
        "double",
        "attempts too many: there are more than ids were given",
        f"SELECT max(there - given, 0), 'of ' || given FROM ({_IDS})",
    ),
    (
        "orphan",
        "inputs that cost frontier money without an attempt",
        """SELECT count(*), min(request_id) FROM inputs i WHERE cost_nano <> local_nano AND NOT EXISTS
           (SELECT 1 FROM attempts a WHERE a.request_id = i.request_id AND a.idx = i.idx)""",
    ),
)
FORGOTTEN_US = {False: 3_600_000_000, True: 26 * 3_600_000_000}  # a call; one in a batch, for which there is a day
#: Comparisons (`cost.comparison`) answer nobody.
_ORPHANS = f"""SELECT count(*), min(request_id), coalesce(sum(cost_nano), 0) FROM attempts a WHERE state <> 'reserved'
    AND request_id NOT GLOB '{REQUESTS}*'
    AND NOT EXISTS (SELECT 1 FROM inputs i WHERE a.request_id = i.request_id AND a.idx = i.idx)"""
_GAPS = """SELECT count(*), min(request_id) FROM
    (SELECT request_id FROM inputs GROUP BY 1 HAVING count(*) <= max(idx) AND max(at_us) < ?)"""
_OVERLAP = f"""SELECT count(*), min(request_id) FROM inputs i
    WHERE at_us < (SELECT max(hour) FROM input_hours) * {HOUR_US} AND NOT EXISTS
    (SELECT 1 FROM attempts a WHERE a.request_id = i.request_id AND a.state = 'reserved')"""
_SPEND = f"""WITH paid AS (SELECT at_us / {DAY_US} AS day, task, tenant, cost_nano FROM attempts
    UNION ALL SELECT hour / 24, task, tenant, cost_nano FROM attempt_hours)
    SELECT day, scope, name, sum(kept), sum(counted) FROM (
    SELECT day, '' AS scope, '' AS name, nano AS kept, 0 AS counted FROM spend
    UNION ALL SELECT *, 0 FROM spend_by
    UNION ALL SELECT day, '', '', 0, cost_nano FROM paid
    UNION ALL SELECT day, 'task', task, 0, cost_nano FROM paid
    UNION ALL SELECT day, 'tenant', tenant, 0, cost_nano FROM paid)
    GROUP BY 1, 2, 3 HAVING sum(kept) <> sum(counted)"""


def verify(path: Path, *, clock: Callable[[], float] = time.time) -> list[Finding]:
    """What is wrong with the ledger; empty if nothing is. A file that can't be read as a ledger is a finding, too."""
    try:
        db = connect_readonly([path])
    except LedgerError as error:
        return [Finding("error", "open", str(error))]
    try:
        return _findings(db, int(clock() * 1e6))
    except sqlite3.DatabaseError as error:
        return [Finding("error", "integrity", f"{path} can't be read to its end: {error}")]
    finally:
        db.close()


def _findings(db: sqlite3.Connection, now_us: int) -> list[Finding]:
    damage = [text for (text,) in db.execute("PRAGMA l0.integrity_check(10)") if text != "ok"]
    if damage:
        return [Finding("error", "integrity", text) for text in damage]
    found = []
    for check, what, query in _ERRORS:
        count, example = db.execute(query).fetchone()
        if count:
            found.append(Finding("error", check, f"{count} {what}, such as {example}"))
    for day, scope, name, kept, counted in db.execute(_SPEND):
        whose = f"{scope} {name} on the day {day}" if scope else f"the day {day}"
        text = f"{whose} (since 1970) is booked with {kept} nano-USD, its attempts sum to {counted}"
        found.append(Finding("error", "spend", text))
    count, example, nano = db.execute(_ORPHANS).fetchone()
    if count:
        text = f"{count} attempts (${nano / 1e9:.6f}) without an answered input, such as {example}"
        found.append(Finding("note", "orphan", text + ": the process died, or the caller left, before the answer"))
    found += _hours(db, now_us)
    reserved = db.execute(
        "SELECT pid, pid_started_ms, estimate_nano, at_us, request_id, batch FROM attempts WHERE state = 'reserved'"
    ).fetchall()
    living = {process: alive(*process) for process in {row[:2] for row in reserved}}
    dead = [row for row in reserved if not living[row[:2]]]
    if dead:
        text = f"{len(dead)} reservations (${sum(row[2] for row in dead) / 1e9:.6f}) of processes that are gone"
        found.append(Finding("note", "reserved", text + ": the next start makes them uncertain, at their upper bound"))
    forgotten = [row for row in reserved if living[row[:2]] and row[3] < now_us - FORGOTTEN_US[bool(row[5])]]
    if forgotten:
        text = f"{len(forgotten)} reservations (${sum(row[2] for row in forgotten) / 1e9:.6f}) older than an hour"
        text += f", such as {forgotten[0][4]}, whose process still runs: no call takes that long"
        found.append(Finding("note", "reserved", text + "; they count in full until it is restarted"))
    return found


def _hours(db: sqlite3.Connection, now_us: int) -> list[Finding]:
    """Do histograms count what their hours do? What is missing, or came late?"""
    found = []
    wrong = [
        hour
        for hour, count, kept in db.execute("SELECT hour, inputs, total_h FROM input_hours")
        if _counted(kept) != count
    ]
    if wrong:
        text = f"{len(wrong)} hours whose latencies are not as many as their rows, such as {wrong[0]}"
        found.append(Finding("error", "histogram", text + " (since 1970)"))
    count, example = db.execute(_GAPS, (now_us - FORGOTTEN_US[True],)).fetchone()
    if count:
        text = f"{count} requests of which some inputs are missing, such as {example}"
        found.append(Finding("note", "gap", text + ": a batch job that was not finished has such"))
    count, example = db.execute(_OVERLAP).fetchone()
    if count:
        text = f"{count} inputs are older than the last hour that was rolled up, such as {example}: they came late,"
        found.append(Finding("note", "overlap", text + " or the clock was set back; the next roll-up takes them"))
    return found


def _counted(histogram: bytes) -> int | None:
    try:
        return unpacked(histogram).total()
    except msgspec.MsgspecError:
        return None
