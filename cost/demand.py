# ruff: noqa: S608 - what is put into the query are constants of this package
"""What was asked of the tiers, hour by hour: one scan of the inputs, from which shares, days and peak are sums."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence

import msgspec

#: Inputs that API-only would have bought: answered, not from the cache, not shared with an identical one in flight.
MISS = "error IS NULL AND source <> 'cache' AND coalesced = 0"
HOUR_US = 3_600_000_000
WEEK_HOURS = 7 * 24  # days of the week differ
ENOUGH_AN_HOUR = 10  # misses, on average: with fewer the busiest hour is chance


#: Of an input: 0 an error, 1 nothing to buy, 2 a miss, 3 one that wanted the frontier. A number sorts faster than text.
_KIND = f"(error IS NULL) * (1 + ({MISS}) * (1 + (source = 'frontier' OR degraded IS NOT NULL)))"


class Hour(msgspec.Struct, frozen=True):
    """One task's inputs in one hour of unix time (`number` hours since 1970)."""

    number: int
    task: str
    answered: int
    misses: int
    wanted: int  # misses that went to the frontier, or should have (degraded)
    tokens: int  # of the misses, by the local tokenizer
    counted: int  # misses that it counted
    inputs: int  # all, errors too
    local_nano: int  # the local model's time


def hours(db: sqlite3.Connection, since: int) -> list[Hour]:
    """Hours without an input are left out. `db` is `schema.connect_readonly`'s view."""
    found: dict[tuple[int, str], list[int]] = defaultdict(lambda: [0] * 7)
    for key, task, inputs, tokens, counted, local_nano in db.execute(
        f"""SELECT at_us / {HOUR_US} * 4 + {_KIND}, task, count(*), sum(tokens), sum(tokens > 0), sum(local_nano)
        FROM inputs WHERE at_us >= ? GROUP BY 1, 2""",
        (since,),
    ):
        number, kind = divmod(key, 4)
        hour = found[number, task]
        answered, missed, wanted = kind > 0, kind > 1, kind > 2
        sums = (inputs * answered, inputs * missed, inputs * wanted, tokens * missed, counted * missed)
        for i, value in enumerate((*sums, inputs, local_nano)):
            hour[i] += value
    return [Hour(number, task, *hour) for (number, task), hour in found.items()]


def peak_to_mean(observed: Sequence[Hour]) -> float | None:
    """Misses of the busiest hour over those of the mean one, empty ones included. None: below a week, or too few.

    An hour's mean hides shorter bursts, so the true peak is higher.
    """
    misses: Counter[int] = Counter()
    for hour in observed:
        misses[hour.number] += hour.misses
    if not misses:
        return None
    span = max(misses) - min(misses) + 1
    mean = misses.total() / span
    return max(misses.values()) / mean if span >= WEEK_HOURS and mean >= ENOUGH_AN_HOUR else None
