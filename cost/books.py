"""What other parts may ask the books. Reads a ledger, live or not, and changes nothing."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from cost.rollup import HOUR_US
from cost.schema import connect_readonly
from cost.types import LedgerError


def hits(path: Path) -> dict[tuple[str, str, str], tuple[int, int]]:
    """How often the cache answered, and the nano-USD that it saved.

    (text digest in hex, task, who had answered first: "local" or "frontier") -> (hits, saved), of the rows that are
    not yet rolled up. Empty where there is no ledger, or none that can be read.
    """
    try:
        db = connect_readonly([path])
    except LedgerError:
        return {}
    try:
        rows = db.execute(
            "SELECT text_digest, task, coalesce(answered_by, ''), count(*), sum(saved_nano) FROM inputs"
            " WHERE source = 'cache' GROUP BY 1, 2, 3"
        )
        return {(digest.hex(), task, by): (count, saved) for digest, task, by, count, saved in rows}
    except sqlite3.Error:
        return {}
    finally:
        db.close()


class CacheUse(msgspec.Struct, frozen=True):
    """What the cache did for one task in one hour or day (UTC). `source`: who answered, for a hit at first. Inputs that
    shared a computation in flight are neither hits nor misses; those that asked for no cache are in none of these."""

    at: str  # when it begins, ISO 8601
    task: str
    source: str  # "local", "frontier", "error"
    hits: int
    memory_hits: int  # of them
    misses: int
    coalesced: int
    hit_ratio: float | None  # hits / (hits + misses)


STEP_S = {"hour": 3600, "day": 86_400}


#: Rows, and what has become of older ones (`cost.rollup`).
_USE = f"""SELECT at_us / :step, task, source, sum(hits), sum(memory), sum(misses), sum(together) FROM (
    SELECT at_us, task, CASE source WHEN 'cache' THEN coalesce(answered_by, 'local') ELSE source END AS source,
        source = 'cache' AND NOT coalesced AS hits,
        source = 'cache' AND NOT coalesced AND coalesce(cache_tier = 'memory', 0) AS memory,
        source != 'cache' AND NOT coalesced AND cache_us > 0 AS misses, coalesced AS together
        FROM inputs WHERE at_us >= :begin
    UNION ALL
    SELECT hour * {HOUR_US}, task, CASE source WHEN 'cache' THEN coalesce(nullif(answered_by, ''), 'local')
        ELSE source END, inputs * (source = 'cache' AND NOT coalesced),
        memory_hits * (source = 'cache' AND NOT coalesced), looked_up * (source != 'cache' AND NOT coalesced),
        inputs * coalesced
        FROM input_hours WHERE hour * {HOUR_US} >= :begin)
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"""  # noqa: S608 - a number of ours


def cache_use(path: Path, *, since: float, by: Literal["hour", "day"]) -> list[CacheUse]:
    """From the period that holds `since` (unix time, seconds) on, the oldest first. Empty where there is no ledger."""
    step_us = STEP_S[by] * 1_000_000
    begin = int(since * 1e6) // step_us
    try:
        db = connect_readonly([path])
    except LedgerError:
        return []
    try:
        rows = db.execute(_USE, {"step": step_us, "begin": begin * step_us})
        return [
            CacheUse(
                datetime.fromtimestamp(period * STEP_S[by], UTC).isoformat().replace("+00:00", "Z"),
                task,
                source,
                hits,
                memory,
                misses,
                coalesced,
                hits / (hits + misses) if hits + misses else None,
            )
            for period, task, source, hits, memory, misses, coalesced in rows
            if hits or misses or coalesced
        ]
    except sqlite3.Error:
        return []
    finally:
        db.close()
