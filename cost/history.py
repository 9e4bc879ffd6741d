# ruff: noqa: S608 - what is put into the queries are numbers, constants and column names of this package
"""What happened: who answered, when, for how much, how fast. One grouped pass over the inputs, one over a sample.

Each function takes `schema.connect_readonly`'s view and the start of the window, in unix microseconds.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain

import msgspec

from cost.schema import DAY_US
from cost.tally import STAGES, Group, SourceLine, StageLine

SOURCES = ("cache", "local", "frontier", "error")
HOUR_US = DAY_US // 24
SAMPLE = 100_000  # rows, at least, that percentiles are taken from
LABELS = 20  # the dearest are named


class Period(msgspec.Struct, frozen=True):
    """What one source answered in one hour or day, and what that cost."""

    start_us: int
    source: str
    inputs: int
    cost_nano: int


class LabelLine(msgspec.Struct, frozen=True):
    task: str
    label: str
    inputs: int
    frontier: int
    cost_nano: int


class Share(msgspec.Struct, frozen=True):
    """One task's or tenant's part of the bill: what its calls cost (uncertain ones at their upper bound, those in
    flight as set aside) and the local model's time for it. The parts add up to what the router cost."""

    name: str
    inputs: int
    cache: int
    local: int
    frontier: int
    errors: int
    degraded: int
    paid_nano: int
    local_nano: int

    @property
    def total_nano(self) -> int:
        return self.paid_nano + self.local_nano


class History(msgspec.Struct, frozen=True):
    step_us: int  # an hour or a day
    sources: list[SourceLine]
    stages: list[StageLine]
    periods: list[Period]
    labels: list[LabelLine]
    degraded: dict[str, int]
    errors: dict[str, int]
    sampled: int  # rows that the percentiles come from


def _since(since: int) -> str:
    """The window's condition. Where it holds for all rows, the index on time would only be a detour."""
    return "at_us >= ?" if since else "+at_us >= ?"


def asked(db: sqlite3.Connection, since: int) -> tuple[int, int, int, int]:
    """Inputs, requests, the first and the last input's time (0 without any)."""
    inputs, requests, start, end = db.execute(
        f"SELECT count(*), coalesce(sum(idx = 0), 0), min(at_us), max(at_us) FROM inputs WHERE {_since(since)}",
        (since,),
    ).fetchone()
    return inputs, requests, start or 0, end or 0


def history(db: sqlite3.Connection, since: int, start: int, end: int, inputs: int) -> History:
    """Of the window's `inputs` rows, the first at `start`, the last at `end`."""
    step = DAY_US if end - start > 4 * DAY_US else HOUR_US
    by_source: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    by_period: dict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0])
    by_label: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    degraded: dict[str, int] = defaultdict(int)
    errors: dict[str, int] = defaultdict(int)
    for period, task, source, label, why, error, count, nano in db.execute(
        f"""SELECT at_us / {step}, task, source, label, degraded, error, count(*), sum(cost_nano)
        FROM inputs WHERE {_since(since)} GROUP BY 1, 2, 3, 4, 5, 6""",
        (since,),
    ):
        for sums in (by_source[source], by_period[period * step, source]):
            sums[0] += count
            sums[1] += nano
        if label is not None:
            line = by_label[task, label]
            line[0] += count
            line[1] += count if source == "frontier" else 0
            line[2] += nano
        if why is not None:
            degraded[why] += count
        if error is not None:
            errors[error] += count
    whole, stages, sampled = _latencies(db, since, inputs)
    return History(
        step_us=step,
        sources=[
            SourceLine(source, *_counted(by_source[source], inputs), *whole.get(source, (0, 0, 0)))
            for source in SOURCES
            if source in by_source
        ],
        stages=stages,
        periods=[Period(at, source, *sums) for (at, source), sums in sorted(by_period.items())],
        labels=_dearest(by_label),
        degraded=_most(degraded),
        errors=_most(errors),
        sampled=sampled,
    )


def shares(db: sqlite3.Connection, since: int, by: Group) -> list[Share]:
    """The dearest first."""
    lines = {
        name: [*counts, 0, local]
        for name, *counts, local in db.execute(
            f"""SELECT {by}, count(*), sum(source = 'cache'), sum(source = 'local'), sum(source = 'frontier'),
            sum(error IS NOT NULL), sum(degraded IS NOT NULL), sum(local_nano)
            FROM inputs WHERE {_since(since)} GROUP BY 1""",
            (since,),
        )
    }
    for name, nano in db.execute(f"SELECT {by}, sum(cost_nano) FROM attempts WHERE at_us >= ? GROUP BY 1", (since,)):
        lines.setdefault(name, [0] * 8)[6] = nano  # calls without an input: a crash, or a comparison
    found = [Share(name, *numbers) for name, numbers in lines.items()]
    return sorted(found, key=lambda share: (-share.total_nano, -share.inputs, share.name))


def _counted(sums: Sequence[int], inputs: int) -> tuple[int, float, int]:
    return sums[0], sums[0] / inputs, sums[1]


def _most(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _dearest(by_label: dict[tuple[str, str], list[int]]) -> list[LabelLine]:
    found = [LabelLine(task, label, *sums) for (task, label), sums in by_label.items()]
    return sorted(found, key=lambda line: (-line.cost_nano, -line.inputs, line.task, line.label))[:LABELS]


def _latencies(
    db: sqlite3.Connection, since: int, inputs: int
) -> tuple[dict[str, tuple[int, int, int]], list[StageLine], int]:
    """Percentiles of whole answers by source, and of the stages by who entered them.

    Of every k-th row where there are many: of 100,000 rows the p99 lies between the true p98.9 and p99.1.
    """
    every = max(1, inputs // SAMPLE)
    ledgers = [name for _, name, _ in db.execute("PRAGMA database_list") if name[:1] == "l" and name[1:].isdigit()]
    columns = ", ".join(("source", "total_us", *(f"{stage}_us" for stage in STAGES)))
    rows: Iterable[tuple[str | int, ...]] = chain.from_iterable(
        db.execute(
            f"""WITH RECURSIVE picked (id) AS (SELECT min(rowid) FROM {ledger}.inputs UNION ALL
            SELECT id + {every} FROM picked WHERE id + {every} <= (SELECT max(rowid) FROM {ledger}.inputs))
            SELECT {columns} FROM picked CROSS JOIN {ledger}.inputs ON rowid = id WHERE at_us >= ?""",
            (since,),
        )
        for ledger in ledgers
    )
    whole: dict[str, list[int]] = defaultdict(list)
    entered: dict[str, list[int]] = defaultdict(list)
    sampled = 0
    for source, total, *times in rows:
        sampled += 1
        whole[str(source)].append(int(total))
        for stage, us in zip(STAGES, times, strict=True):
            if us:
                entered[stage].append(int(us))
    lines = [
        StageLine(stage, len(entered[stage]) * every, *_percentiles(sorted(entered[stage])))
        for stage in STAGES
        if entered[stage]
    ]
    return {source: _percentiles(sorted(values)) for source, values in whole.items()}, lines, sampled


def _percentiles(values: Sequence[int]) -> tuple[int, int, int]:
    """Nearest rank, of sorted values."""
    p50, p95, p99 = (values[max(0, -(-len(values) * p // 100) - 1)] for p in (50, 95, 99))
    return p50, p95, p99
