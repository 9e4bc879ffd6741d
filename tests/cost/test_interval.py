"""Intervals from resampled days: what moves with the days, and what does not. How often they hold: tests/bench."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cost.crossover import Hardware, Traffic, crossing, saving_nano
from cost.interval import Day, crossings, days_of, draws, freedom, interval, savings
from cost.prices import PriceTable
from cost.schema import connect_readonly
from cost.types import Outcome, Usage

Make = Callable[..., Any]
BOX = Hardware("box", 0.05, 200.0)
DAY_US = 86_400_000_000


def days(count: int, *, spread: float = 0.0, week: float = 1.0) -> list[Day]:
    """Weekend days have `week` times the traffic; escalations vary by chance with `spread`."""
    dice = random.Random(3)
    found = []
    for number in range(count):
        answered = round(1000 * (week if number % 7 > 4 else 1.0))
        misses = answered // 2
        wanted = round(misses * 0.2 * (1 + spread * dice.uniform(-1, 1)))
        found.append(Day(answered, misses, wanted, misses * 10_000.0, number % 7))
    return found


TRAFFIC = Traffic(hit=0.5, escalated=0.2, call_nano=10_000.0)


def test_days_that_are_all_alike_leave_nothing_open() -> None:
    found = interval(days(28), TRAFFIC, BOX)
    turn = crossing(TRAFFIC, BOX)
    assert turn is not None
    assert found.low == found.high == pytest.approx(turn.last, abs=2)
    assert found.never == 0.0


def test_the_more_days_differ_the_wider_and_the_more_days_the_narrower() -> None:
    def width(observed: list[Day]) -> int:
        found = interval(observed, TRAFFIC, BOX)
        assert found.low and found.high
        return found.high - found.low

    assert width(days(28, spread=0.2)) < width(days(28, spread=0.6))
    assert width(days(140, spread=0.6)) < 0.7 * width(days(28, spread=0.6))


def test_quiet_weekends_are_no_chance() -> None:
    """A Monday is drawn for a Monday: the week's own rhythm does not make the volume uncertain."""
    observed = days(28, week=0.1)
    assert {round(draw.busy, 9) for draw in draws(observed, TRAFFIC)} == {1.0}
    anyhow = [msgspec.structs.replace(day, weekday=0) for day in observed]
    assert len({draw.busy for draw in draws(anyhow, TRAFFIC)}) > 5


def test_two_days_of_a_kind_have_the_spread_of_two_draws_from_it() -> None:
    """One of two, doubled: the sum's variance is (a - b)^2, as two independent days are expected to have."""
    pair = [Day(100, 50, 10, 1.0), Day(300, 50, 10, 1.0)]
    drawn = [draw.busy * 400 for draw in draws(pair, TRAFFIC, 4000)]
    assert set(drawn) == {200.0, 600.0}
    assert sum((each - 400) ** 2 for each in drawn) / len(drawn) == pytest.approx((300 - 100) ** 2, rel=0.01)


def test_a_volume_that_was_asked_for_is_certain_and_a_measured_one_is_not() -> None:
    dice = random.Random(5)
    observed = [Day(n, n // 2, n // 10, n * 5000.0) for n in (dice.randrange(500, 1500) // 10 * 10 for _ in range(28))]
    drawn = draws(observed, TRAFFIC)
    given = savings(drawn, freedom(observed), BOX, 10**8, measured=False)
    seen = savings(drawn, freedom(observed), BOX, 10**8, measured=True)
    point = saving_nano(TRAFFIC, BOX, 10**8)
    assert given.high - given.low < 0.01 * point < seen.high - seen.low
    assert seen.low < point < seen.high
    assert (given.probability_cheaper, seen.probability_cheaper) == (1.0, 1.0)


def test_near_the_crossing_nobody_can_be_sure_what_is_cheaper() -> None:
    observed = days(28, spread=0.6)
    turn = crossing(TRAFFIC, BOX)
    assert turn is not None
    drawn, degrees = draws(observed, TRAFFIC), freedom(observed)

    def sure(volume: int) -> float:
        return savings(drawn, degrees, BOX, volume, measured=False).probability_cheaper

    assert sure(turn.last // 2) == 0.0
    assert 0.1 < sure(turn.last) < 0.9
    assert sure(turn.last * 2) == 1.0


def test_days_that_buy_nothing_never_cross_and_say_so() -> None:
    observed = [Day(100, 0, 0, 0.0)] * 20 + [Day(100, 50, 0, 500_000.0)] * 4
    drawn = draws(observed, TRAFFIC)
    found = crossings(drawn, freedom(observed), BOX)
    assert found.never == pytest.approx((20 / 24) ** 23, abs=0.02)
    assert crossings(drawn, freedom(observed), Hardware("farm", 5000.0, 0.001)).high is None


def test_the_days_of_a_ledger_cost_together_what_the_report_says_and_empty_ones_count(
    books: Make, row: Make, intent: Make, noon: int
) -> None:
    from cost.api_only import api_only

    rows, calls = [], []
    for day in (0, 1, 4):
        for i in range(10 + day):
            name, at = f"{day}-{i}", noon + day * DAY_US + i
            source = ("frontier", "local", "cache")[i % 3]
            rows.append(row(name, source=source, at_us=at, tokens=10 + i, degraded="budget" if i == 1 else None))
            if source == "frontier":
                outcome = Outcome("settled", "gpt-6-luna", Usage(input=100 + 2 * i, output=4), 15_000 + 200 * i, "v")
                calls.append((intent(name, tokens=10 + i, at_us=at), outcome))
    path: Path = books(rows, calls)
    db = connect_readonly([path])
    try:
        api = api_only(db, 0, PriceTable.load())
        found = days_of(db, 0, api)
    finally:
        db.close()
    assert [(d.answered, d.misses, d.wanted) for d in found] == [
        (10, 7, 5),
        (11, 8, 5),
        (0, 0, 0),
        (0, 0, 0),
        (14, 10, 6),
    ]
    assert sum(day.nano for day in found) == pytest.approx(api.nano)
    assert len({day.weekday for day in found}) == 5
