# ruff: noqa: S608 - what is put into the queries are constants and column names of this package
"""What the ledger's rows sum to. Each function takes `schema.connect_readonly`'s view and the start of the window."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Literal

import msgspec

from cost.api_only import BY_THE_HOUR, MISS, ApiOnly
from cost.crossover import Traffic
from cost.prices import SIMULATED

Group = Literal["task", "tenant"]
STAGES = ("cache", "queue", "local", "frontier")


class SourceLine(msgspec.Struct, frozen=True):
    """Latency is the whole answer's, in microseconds."""

    source: str
    inputs: int
    share: float
    cost_nano: int
    p50_us: int
    p95_us: int
    p99_us: int


class StageLine(msgspec.Struct, frozen=True):
    """Over the inputs that entered the stage."""

    stage: str
    inputs: int
    p50_us: int
    p95_us: int
    p99_us: int


class GroupLine(msgspec.Struct, frozen=True):
    name: str
    inputs: int
    cache: int
    local: int
    frontier: int
    errors: int
    degraded: int
    cost_nano: int


class Spend(msgspec.Struct, frozen=True):
    """What the providers got, or may get. `batch_nano` and `simulated_nano` are parts of the others."""

    attempts: int
    settled_nano: int
    estimated_nano: int  # part of settled: the provider gave no usage, an upper bound stands
    uncertain_nano: int  # nobody knows whether it was billed; the upper bound
    reserved_nano: int  # calls in flight
    batch_nano: int  # through batch APIs, at their lower price
    simulated_nano: int  # nobody got it
    local_nano: int  # device time of the local model
    unpriced: int  # settled calls with tokens and no cost

    @property
    def paid_nano(self) -> int:
        return self.settled_nano + self.uncertain_nano + self.reserved_nano


def _percentiles(values: Sequence[int]) -> tuple[int, int, int]:
    """Nearest rank, of sorted values."""
    p50, p95, p99 = (values[max(0, -(-len(values) * p // 100) - 1)] for p in (50, 95, 99))
    return p50, p95, p99


def sources(db: sqlite3.Connection, since: int, inputs: int) -> list[SourceLine]:
    lines = []
    for source in ("cache", "local", "frontier", "error"):
        rows = db.execute(
            "SELECT total_us, cost_nano FROM inputs WHERE at_us >= ? AND source = ? ORDER BY total_us", (since, source)
        ).fetchall()
        if rows:
            cost = sum(nano for _, nano in rows)
            latency = _percentiles([us for us, _ in rows])
            lines.append(SourceLine(source, len(rows), len(rows) / inputs, cost, *latency))
    return lines


def stage(db: sqlite3.Connection, since: int, stage: str) -> StageLine | None:
    column = f"{stage}_us"
    rows = db.execute(
        f"SELECT {column} FROM inputs WHERE at_us >= ? AND {column} > 0 ORDER BY 1",
        (since,),
    ).fetchall()
    return StageLine(stage, len(rows), *_percentiles([us for (us,) in rows])) if rows else None


def counts(db: sqlite3.Connection, since: int, column: Literal["degraded", "error"]) -> dict[str, int]:
    query = (
        f"SELECT {column}, count(*) FROM inputs WHERE at_us >= ? AND {column} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC"
    )
    return dict(db.execute(query, (since,)).fetchall())


def groups(db: sqlite3.Connection, since: int, by: Group) -> list[GroupLine]:
    rows = db.execute(
        f"""SELECT {by}, count(*), sum(source = 'cache'), sum(source = 'local'), sum(source = 'frontier'),
        sum(error IS NOT NULL), sum(degraded IS NOT NULL), sum(cost_nano)
        FROM inputs WHERE at_us >= ? GROUP BY 1 ORDER BY 2 DESC, 1""",
        (since,),
    )
    return [GroupLine(*row) for row in rows]


def spend(db: sqlite3.Connection, since: int) -> Spend:
    row = db.execute(
        f"""SELECT count(*), coalesce(sum(cost_nano) FILTER (WHERE state = 'settled'), 0),
        coalesce(sum(cost_nano) FILTER (WHERE state = 'settled' AND estimated = 1), 0),
        coalesce(sum(cost_nano) FILTER (WHERE state = 'uncertain'), 0),
        coalesce(sum(cost_nano) FILTER (WHERE state = 'reserved'), 0),
        coalesce(sum(cost_nano) FILTER (WHERE batch = 1), 0),
        coalesce(sum(cost_nano) FILTER (WHERE answered_model LIKE '{SIMULATED}%' OR model LIKE '{SIMULATED}%'), 0),
        (SELECT coalesce(sum(local_nano), 0) FROM inputs WHERE at_us >= :since),
        count(*) FILTER (WHERE state = 'settled' AND cost_nano = 0 AND input + output > 0
            AND price_version NOT LIKE '{BY_THE_HOUR}')
        FROM attempts WHERE at_us >= :since""",
        {"since": since},
    ).fetchone()
    return Spend(*row)


def traffic(db: sqlite3.Connection, since: int, api: ApiOnly) -> Traffic | None:
    """Shares as they were. What wanted the frontier and did not get it (degraded) counts as escalated."""
    if api.call_nano is None:
        return None
    answered, misses, wanted = db.execute(
        f"""SELECT count(*) FILTER (WHERE error IS NULL), count(*) FILTER (WHERE {MISS}),
        count(*) FILTER (WHERE {MISS} AND (source = 'frontier' OR degraded IS NOT NULL))
        FROM inputs WHERE at_us >= ?""",
        (since,),
    ).fetchone()
    return Traffic(hit=1 - misses / answered, escalated=wanted / misses, call_nano=api.call_nano)
