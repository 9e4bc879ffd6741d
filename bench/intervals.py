"""Does the report's 90 % interval hold the truth nine times of ten? Simulated books whose truth is known.

A ledger here is its days: what the bootstrap sees of it. A day has its own volume (weekdays, weekends, and chance), its
own share of hits, of escalations and its own length of texts, so requests of one day resemble each other; busy days
have more hits. The truth is what the means of all days give, not those of this ledger.

    python bench/intervals.py [--ledgers 300]
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from math import exp, sqrt
from typing import NamedTuple

from harness import Bar, finish

from cost.crossover import DAYS, Hardware, Traffic, crossing, saving_nano
from cost.interval import DRAWS, Day, crossings, draws, freedom, savings

WEEK = (1.2, 1.2, 1.15, 1.1, 1.0, 0.7, 0.65)
BOX = Hardware("box", 0.05, 200.0)
ENDPOINT = Hardware("endpoint", 0.9, 200.0, billing="autoscaled", cold_start_s=20, idle_s=0.2)
LEVELS = (0.85, 0.95)


class Coverage(NamedTuple):
    """Shares of the ledgers whose interval holds the truth."""

    crossing: float
    saving: float


def expected(effect: Callable[[], tuple[float, float, float, float]], day: int) -> list[float]:
    """(inputs, misses, escalated, nano) of a day before chance picks single requests."""
    busy, hits, unsure, length = effect()
    inputs = 8000 * WEEK[day % 7] * exp(0.25 * busy)
    misses = inputs / (1 + exp(-0.8 + 0.3 * hits + 0.1 * busy))
    wanted = misses / (1 + exp(1.7 + 0.4 * unsure))
    return [inputs, misses, wanted, misses * (9000 + 4000 * exp(0.2 * length))]


def independent(dice: random.Random) -> Callable[[], tuple[float, float, float, float]]:
    return lambda: (dice.gauss(0, 1), dice.gauss(0, 1), dice.gauss(0, 1), dice.gauss(0, 1))


def lasting(dice: random.Random) -> Callable[[], tuple[float, float, float, float]]:
    """A day is like the one before it (correlation 0.6): what the bootstrap of single days does not know of."""
    state = [dice.gauss(0, 1) for _ in range(4)]

    def step() -> tuple[float, float, float, float]:
        state[:] = [0.6 * each + 0.8 * dice.gauss(0, 1) for each in state]
        return (state[0], state[1], state[2], state[3])

    return step


def day_of(dice: random.Random, means: list[float], weekday: int) -> Day:
    """Single requests by chance: binomial counts, by the normal they are near."""

    def some(count: float, share: float) -> int:
        return max(0, min(round(count), round(dice.gauss(count * share, sqrt(count * share * (1 - share))))))

    inputs = max(1, round(dice.gauss(means[0], sqrt(means[0]))))
    misses = some(inputs, means[1] / means[0])
    return Day(inputs, misses, some(misses, means[2] / means[1]), misses * means[3] / means[1], weekday)


def truth() -> tuple[Traffic, int]:
    dice = random.Random(17)
    effect = independent(dice)
    days = [expected(effect, day) for day in range(35_000)]
    inputs, misses, wanted, nano = (sum(column) / len(days) for column in zip(*days, strict=True))
    traffic = Traffic(hit=1 - misses / inputs, escalated=wanted / misses, call_nano=nano / misses)
    return traffic, round(inputs * DAYS)


def coverage(
    ledgers: int,
    days: int = 60,
    *,
    machine: Hardware = BOX,
    days_alike: Callable[[random.Random], Callable[[], tuple[float, float, float, float]]] = independent,
    weekdays: bool = True,
    count: int = DRAWS,
    seed: int = 1,
) -> Coverage:
    true, volume = truth()
    turn, saved = crossing(true, machine), saving_nano(true, machine, volume)
    assert turn is not None
    dice, held = random.Random(seed), [0, 0]
    for _ in range(ledgers):
        effect = days_alike(dice)
        observed = [day_of(dice, expected(effect, day), day % 7 if weekdays else 0) for day in range(days)]
        inputs, misses, wanted = (sum(getattr(d, name) for d in observed) for name in ("answered", "misses", "wanted"))
        seen = Traffic(1 - misses / inputs, wanted / misses, sum(d.nano for d in observed) / misses)
        drawn = draws(observed, seen, count)
        found = crossings(drawn, freedom(observed), machine)
        saving = savings(drawn, freedom(observed), machine, round(inputs / days * DAYS), measured=True)
        held[0] += found.low is not None and found.low <= turn.last and (found.high is None or turn.last <= found.high)
        held[1] += saving.low <= saved <= saving.high
    return Coverage(held[0] / ledgers, held[1] / ledgers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledgers", type=int, default=300)
    ledgers = parser.parse_args().ledgers
    found = coverage(ledgers)
    target = f"{LEVELS[0]:.2f} to {LEVELS[1]:.2f}"

    def bar(name: str, value: float) -> Bar:
        return Bar(name, value, target, "of ledgers", LEVELS[0] <= value <= LEVELS[1])

    notes = [f"{ledgers} simulated ledgers; each interval from {DRAWS} sets of days"]
    others = {
        "14 days": coverage(ledgers, 14),
        "any day drawn for any other": coverage(ledgers, weekdays=False),
        "each day like the one before": coverage(ledgers, days_alike=lasting),
    }
    for told, other in others.items():
        notes.append(f"{told}: the crossover's holds in {other.crossing:.1%}, the saving's in {other.saving:.1%}")
    endpoint = coverage(ledgers, machine=ENDPOINT)
    return finish(
        "intervals",
        bars=[
            bar("90 % interval of the crossover, 60 days", found.crossing),
            bar("90 % interval of the saving, 60 days", found.saving),
            bar("the crossover's on an autoscaled endpoint", endpoint.crossing),
        ],
        notes=notes,
    )


if __name__ == "__main__":
    sys.exit(main())
