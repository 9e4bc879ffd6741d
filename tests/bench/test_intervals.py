"""A small version of bench/intervals.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_nine_of_ten_intervals_hold_the_truth(script: Callable[[str], Any]) -> None:
    """Of 40 ledgers 36 are expected to; fewer than 29 once in a thousand times."""
    intervals = script("intervals")
    found = intervals.coverage(40, count=200)
    assert found.crossing >= 29 / 40
    assert found.saving >= 29 / 40


def test_an_interval_of_draws_that_are_too_few_or_too_tame_would_be_seen(script: Callable[[str], Any]) -> None:
    """Days that resemble the day before are what single days know nothing of: there the intervals hold less often."""
    intervals = script("intervals")
    found = intervals.coverage(40, count=200, days_alike=intervals.lasting)
    assert found.crossing < 36 / 40
