# ruff: noqa: S608 - what is put into the queries are constants of this package
"""What if: another threshold, another price table, another hit ratio or volume, from what the ledger logged.

The ledger has the confidence of every local answer. Of an input that was bought it has not: only that it lay below the
threshold of its day, or that the text was too long. So a higher threshold is known to the row; below today's, how many
fewer would be bought lies between two bounds. The cache's share stays as it is, though it would move a little.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

import msgspec

from cost.api_only import ApiOnly
from cost.comparison import wilson
from cost.crossover import Crossing, Hardware, Traffic, api_nano, crossing, hybrid_nano, local_only, saving_nano
from cost.demand import MISS
from cost.repricing import Repriced

FINE = 1000  # thresholds are told apart by the thousandth
GRID = (*(step / 100 for step in range(100)), 0.995, 0.999, 1.0)
_THOUSANDTH = f"CAST(confidence * {FINE} + 0.000001 AS INTEGER)"


class Answers(msgspec.Struct, frozen=True):
    """Counts of misses by the local model's confidence, in thousandths, rounded down."""

    misses: int
    accepted: dict[int, int]
    degraded: dict[int, int]  # wanted from the frontier, answered locally: their confidence is known
    bought: int  # theirs is not
    judged: dict[int, int] = {}  # degraded texts that were bought at another time
    agreed: dict[int, int] = {}  # of them, those that got the same label

    @property
    def lowest(self) -> float | None:
        """The lowest confidence that was accepted: the threshold, as far as the ledger tells."""
        return min(self.accepted) / FINE if self.accepted else None


class Step(msgspec.Struct, frozen=True):
    """One threshold. Shares are of the misses; nano-USD a month. `low` and `high` differ below today's threshold."""

    threshold: float
    escalated_low: float
    escalated_high: float
    monthly_low_nano: int
    monthly_high_nano: int
    now: bool = False  # the operating point
    judged: int = 0  # texts it would answer locally beyond today's, of which the frontier's label is known
    agreement: float | None = None  # of them; None: nobody knows
    agreement_low: float | None = None  # 95 %
    agreement_high: float | None = None


class WhatIf(msgspec.Struct, frozen=True):
    """A month under other assumptions, nano-USD."""

    traffic: Traffic
    volume: int
    api_nano: int
    hybrid_nano: int
    local_only_nano: int
    saving_nano: int
    crossing: Crossing | None


def answers(db: sqlite3.Connection, since: int, task: str | None = None) -> Answers:
    """One scan; and one for texts that were degraded once and bought once. `db` is `schema.connect_readonly`'s view."""
    window = {"since": since, "task": task}
    of = "at_us >= :since AND (:task IS NULL OR task = :task)"
    found: dict[str, Counter[int]] = {"accepted": Counter(), "degraded": Counter()}
    bought = 0
    for kind, thousandth, count in db.execute(
        f"""SELECT CASE WHEN source = 'frontier' OR confidence IS NULL THEN 'bought' WHEN degraded IS NOT NULL
        THEN 'degraded' ELSE 'accepted' END, CASE WHEN source = 'frontier' THEN NULL ELSE {_THOUSANDTH} END, count(*)
        FROM inputs WHERE {MISS} AND {of} GROUP BY 1, 2""",
        window,
    ):
        if kind == "bought":
            bought += count
        else:
            found[kind][thousandth] += count
    judged, agreed = Counter[int](), Counter[int]()
    for thousandth, same in _bought_later(db, of, window) if found["degraded"] else ():
        judged[thousandth] += 1
        agreed[thousandth] += same
    misses = bought + sum(counts.total() for counts in found.values())
    return Answers(misses, dict(found["accepted"]), dict(found["degraded"]), bought, dict(judged), dict(agreed))


def _bought_later(db: sqlite3.Connection, of: str, window: Mapping[str, object]) -> Iterable[tuple[int, int]]:
    """(confidence, whether the labels are the same) of each text that both have answered. Not a random sample."""
    return db.execute(
        f"""WITH here AS MATERIALIZED (SELECT DISTINCT tenant, task, text_digest, {_THOUSANDTH} AS thousandth, label
            FROM inputs WHERE {MISS} AND degraded IS NOT NULL AND length(text_digest) > 0 AND {of}),
        there AS MATERIALIZED (SELECT DISTINCT tenant, task, text_digest, label FROM inputs
            WHERE {MISS} AND source = 'frontier' AND length(text_digest) > 0 AND {of})
        SELECT thousandth, here.label = there.label FROM here JOIN there USING (tenant, task, text_digest)""",
        window,
    )


def curve(
    found: Answers,
    traffic: Traffic,
    hardware: Hardware,
    volume: int,
    *,
    threshold: float | None = None,
    grid: Sequence[float] = GRID,
) -> list[Step]:
    """Cost and quality over the threshold, today's marked. `threshold`: of the config; None: the lowest accepted."""
    if not found.misses:
        return []
    now = found.lowest if threshold is None else threshold
    points = sorted({*grid, *([] if now is None else [now])})
    below = {name: _below(getattr(found, name)) for name in ("accepted", "degraded", "judged", "agreed")}

    def step(at: float) -> Step:
        mark = round(at * FINE)
        surely = below["accepted"](mark) + below["degraded"](mark)
        if now is not None and at >= now:  # all that was escalated still is
            surely = below["accepted"](mark) + sum(found.degraded.values()) + found.bought
            low = high = surely / found.misses
        else:
            low, high = surely / found.misses, (surely + found.bought) / found.misses
        judged = sum(found.judged.values()) - below["judged"](mark) if now is not None and at < now else 0
        agreed = sum(found.agreed.values()) - below["agreed"](mark)
        cost_low, cost_high = (_month(traffic, hardware, volume, share) for share in (low, high))
        agreement_low, agreement_high = wilson(agreed, judged) if judged else (None, None)
        return Step(
            threshold=at,
            escalated_low=low,
            escalated_high=high,
            monthly_low_nano=cost_low,
            monthly_high_nano=cost_high,
            now=at == now,
            judged=judged,
            agreement=agreed / judged if judged else None,
            agreement_low=agreement_low,
            agreement_high=agreement_high,
        )

    return [step(at) for at in points]


def _month(traffic: Traffic, hardware: Hardware, volume: int, escalated: float) -> int:
    return round(hybrid_nano(msgspec.structs.replace(traffic, escalated=escalated), hardware, volume))


def _below(counts: Mapping[int, int]) -> Callable[[int], int]:
    """How many lie below a mark."""
    marks = sorted(counts)
    sums = [0, *accumulate(counts[mark] for mark in marks)]
    return lambda mark: sums[bisect_left(marks, mark)]


def what_if(
    traffic: Traffic,
    hardware: Hardware,
    volume: int,
    *,
    hit: float | None = None,
    escalated: float | None = None,
    call_nano: float | None = None,
) -> WhatIf:
    """The one cost model, with what is given put in the place of what was measured."""
    given = {"hit": hit, "escalated": escalated, "call_nano": call_nano}
    asked = msgspec.structs.replace(traffic, **{name: value for name, value in given.items() if value is not None})
    return WhatIf(
        asked,
        volume,
        round(api_nano(asked, volume)),
        round(hybrid_nano(asked, hardware, volume)),
        round(hybrid_nano(local_only(asked), hardware, volume)),
        saving_nano(asked, hardware, volume),
        crossing(asked, hardware),
    )


def call_nano_by(repriced: Sequence[Repriced], api: ApiOnly) -> float | None:
    """Mean cost of a call by another price table: each task's as much dearer or cheaper as its calls in the ledger are
    (`repricing.repriced`, from their stored tokens). None: no call, or the table lacks a price."""
    if api.call_nano is None:
        return None
    before = after = 0.0
    for call in api.models:
        rows = [row for row in repriced if row.task == call.task]
        booked = sum(row.booked_nano for row in rows)
        if not call.inputs:
            continue
        if not booked or any(row.nano is None for row in rows):
            return None
        nano = call.nano(call.inputs, call.tokens)
        before += nano
        after += nano * sum(row.nano or 0 for row in rows) / booked
    return api.call_nano * after / before if before else None
