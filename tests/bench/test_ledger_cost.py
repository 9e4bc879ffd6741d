"""The ratio divides the right way round, and its bound is that of the interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def ledger_cost(script: Callable[[str], Any]) -> Any:
    return script("ledger_cost")


@pytest.fixture
def pair(script: Callable[[str], Any], load: Any) -> Callable[..., Any]:
    def once(cpu_ms: float, failures: int) -> Any:
        seen = load.Load(100, failures, 1.0, 100, 0.5, 1.0, 0.1)
        return script("rounds").Round(seen, 100 * cpu_ms / 1000)

    return lambda with_it, without, failures=0: (once(with_it, failures), once(without, 0))


def test_the_bar_is_the_upper_end_of_the_interval_and_not_the_mean(ledger_cost: Any, pair: Callable[..., Any]) -> None:
    hits = [pair(0.2, 0.1)] * 3  # twice the CPU, and no bar
    steady = {ledger_cost.COMPUTED: [pair(1.05, 1.0), pair(1.06, 1.0), pair(1.05, 1.0)], ledger_cost.HITS: hits}
    wild = {ledger_cost.COMPUTED: [pair(0.8, 1.0), pair(1.3, 1.0), pair(1.0, 1.0)], ledger_cost.HITS: hits}
    assert [bar.holds for bar in ledger_cost.bars(steady)] == [True, True]
    assert [bar.holds for bar in ledger_cost.bars(wild)] == [False, True]
    assert ledger_cost.bars(steady)[0].value == pytest.approx(1.068, abs=0.001)


def test_requests_that_failed_fail_the_bar_and_one_pair_has_no_bound(
    ledger_cost: Any, pair: Callable[..., Any]
) -> None:
    seen = {ledger_cost.COMPUTED: [pair(1.0, 1.0)], ledger_cost.HITS: [pair(1.0, 1.0, failures=2)]}
    bound, failed = ledger_cost.bars(seen)
    assert (bound.value, bound.holds) == (None, None)
    assert (failed.value, failed.holds) == (2, False)


def test_the_interval_is_students_on_the_logarithms(ledger_cost: Any) -> None:
    """t(0.975, 2) = 4.3027; the logs are -0.1, 0 and 0.1, whose standard error is 0.1 / sqrt(3)."""
    mean, low, high = ledger_cost.interval([math.exp(x) for x in (-0.1, 0.0, 0.1)])
    half = 4.3027 * 0.1 / math.sqrt(3)
    assert (mean, math.log(low), math.log(high)) == pytest.approx((1.0, -half, half), rel=1e-4)
