"""How far the crossover moves from one set of days to another: a bootstrap that resamples whole days.

Requests of one day resemble each other, so days are drawn, not requests (block bootstrap). What is resampled: the
cache's share, the escalated share and the cost of a call. Prices, hardware and the peak stay as assumed.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence

import msgspec

from cost.api_only import MISS, ApiOnly
from cost.crossover import Hardware, Traffic, crossing
from cost.schema import DAY_US

DRAWS = 1000
LEVEL = 0.90


class Interval(msgspec.Struct, frozen=True):
    """Requests a month; `high` is None where more than 5 % of the draws never cross."""

    low: int | None
    high: int | None
    never: float  # share of the draws without a crossing


class Day(msgspec.Struct, frozen=True):
    answered: int
    misses: int
    wanted: int
    nano: float  # what the misses would have cost to buy


def days_of(db: sqlite3.Connection, since: int, api: ApiOnly) -> list[Day]:
    """The window's days, each with its misses priced as learned."""
    calls = {call.task: call for call in api.models}
    pooled = max(api.models, key=lambda call: call.calls, default=None)
    found: dict[int, Day] = {}
    for day, task, answered, misses, wanted, tokens in db.execute(
        f"""SELECT at_us / {DAY_US}, task, count(*) FILTER (WHERE error IS NULL), count(*) FILTER (WHERE {MISS}),
        count(*) FILTER (WHERE {MISS} AND (source = 'frontier' OR degraded IS NOT NULL)),
        coalesce(sum(tokens) FILTER (WHERE {MISS}), 0) FROM inputs WHERE at_us >= ? GROUP BY 1, 2""",  # noqa: S608
        (since,),
    ):
        call = calls.get(task, pooled)
        before = found.get(day, Day(0, 0, 0, 0.0))
        nano = 0.0 if call is None else call.nano(misses, tokens)
        found[day] = Day(before.answered + answered, before.misses + misses, before.wanted + wanted, before.nano + nano)
    # Booked and learned prices differ a little; together the days cost what the report says.
    learned = sum(day.nano for day in found.values())
    scale = (api.nano or 0) / learned if learned else 0.0
    return [msgspec.structs.replace(day, nano=day.nano * scale) for day in found.values()]


def interval(observed: Sequence[Day], traffic: Traffic, hardware: Hardware) -> Interval:
    """Percentile interval of `crossing().last` over resampled days; the same books give the same interval."""
    dice = random.Random(0)
    volumes: list[float] = []
    for _ in range(DRAWS):
        drawn = dice.choices(observed, k=len(observed))
        answered, misses, wanted = (sum(getattr(d, name) for d in drawn) for name in ("answered", "misses", "wanted"))
        if not misses:
            volumes.append(float("inf"))
            continue
        drawn_traffic = msgspec.structs.replace(
            traffic, hit=1 - misses / answered, escalated=wanted / misses, call_nano=sum(d.nano for d in drawn) / misses
        )
        found = crossing(drawn_traffic, hardware)
        volumes.append(float("inf") if found is None else found.last)
    volumes.sort()
    tail = int(DRAWS * (1 - LEVEL) / 2)
    low, high = (None if v == float("inf") else round(v) for v in (volumes[tail], volumes[-tail - 1]))
    return Interval(low, high, sum(v == float("inf") for v in volumes) / DRAWS)
