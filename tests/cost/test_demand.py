"""Demand by the hour, and the peak from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cost.api_only import ApiOnly
from cost.demand import Hour, hours, peak_to_mean
from cost.schema import connect_readonly
from cost.tally import traffic

Make = Callable[..., Any]
HOUR_US = 3_600_000_000
API = ApiOnly(1, 10, 10.0, None, None, 1, [], [])


def week(misses: Sequence[int]) -> list[Hour]:
    return [Hour(1000 + n, "t", 2 * m, m, m // 2, 0, 0, 2 * m, 0) for n, m in enumerate(misses) if m]


def test_each_input_counts_for_what_it_was(books: Make, row: Make, noon: int) -> None:
    rows = [
        row("l", tokens=7, local_nano=3),
        row("u", tokens=0),  # not counted by the tokenizer
        row("d", degraded="budget", tokens=5),
        row("f", source="frontier", tokens=2, local_nano=4),
        row("c", source="cache", tokens=9),
        row("s", source="frontier", coalesced=True, tokens=9),
        row("e", source="error", error="deadline", tokens=9),
        row("o", task="other", tokens=1),
        row("x", at_us=noon + HOUR_US, tokens=1),
    ]
    path = books(rows)
    db = connect_readonly([path, path])
    try:
        found = {(hour.number - noon // HOUR_US, hour.task): hour for hour in hours(db, 0)}
        assert hours(db, noon + 1) == [found[1, "banking"]]
    finally:
        db.close()
    banking = found[0, "banking"]
    assert (banking.inputs, banking.answered, banking.misses, banking.wanted) == (14, 12, 8, 4)
    assert (banking.tokens, banking.counted, banking.local_nano) == (28, 6, 14)
    assert sorted(found) == [(0, "banking"), (0, "other"), (1, "banking")]


def test_the_peak_is_the_busiest_hour_over_the_mean_one_empty_hours_included() -> None:
    assert peak_to_mean(week([20] * 100 + [0] * 67 + [30])) == pytest.approx(30 / (2030 / 168))


@pytest.mark.parametrize("misses", [[], [50] * 167, [9] * 167 + [90]])
def test_a_peak_is_not_told_from_less_than_a_week_nor_from_a_handful(misses: list[int]) -> None:
    assert peak_to_mean(week(misses)) is None


def test_traffic_says_whether_its_peak_was_measured(books: Make) -> None:
    db = connect_readonly([books()])
    try:
        measured, assumed = (traffic(db, 0, API, week([20] * count)) for count in (168, 24))
    finally:
        db.close()
    assert measured is not None and assumed is not None
    assert (measured.peak_to_mean, measured.peak_basis[:8]) == (1.0, "measured")
    assert (assumed.peak_to_mean, assumed.peak_basis) == (4.0, "assumed")
    assert (measured.hit, measured.escalated) == (0.5, 0.5)
