"""Other thresholds, prices and shares, from hand-made books."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost.api_only import ApiCall, ApiOnly
from cost.crossover import Hardware, Traffic, crossing, hybrid_nano, window_nano
from cost.repricing import Repriced
from cost.schema import connect_readonly
from cost.tally import Charge, Group, chargeback
from cost.types import Outcome, Usage
from cost.whatif import Answers, answers, call_nano_by, curve, what_if

Make = Callable[..., Any]
BOX = Hardware("box", 1.0, 200.0)
TRAFFIC = Traffic(hit=0.5, escalated=0.4, call_nano=1000.0)
DAY = date(2026, 11, 21)


def read(path: Path, task: str | None = None) -> Answers:
    db = connect_readonly([path])
    try:
        return answers(db, 0, task)
    finally:
        db.close()


@pytest.fixture
def ledger(books: Make, row: Make) -> Path:
    """Threshold 0.8: four accepted, two degraded, four bought; hits, failures and shared ones are no misses."""
    accepted = [row(f"l{i}", confidence=c) for i, c in enumerate((0.8, 0.9, 0.95, 1.0))]
    degraded = [
        row(f"d{i}", confidence=c, degraded="budget", text_digest=bytes([i]), label="a")
        for i, c in enumerate((0.3, 0.7))
    ]
    bought = [
        row(f"f{i}", source="frontier", confidence=0.99, text_digest=bytes([i]), label="ab"[i % 2]) for i in range(4)
    ]
    others = [
        row("c", source="cache", confidence=0.1),
        row("e", source="error", error="deadline"),
        row("s", coalesced=True, confidence=0.2),
        row("t", task="other", confidence=0.5),
    ]
    path: Path = books([*accepted, *degraded, *bought, *others])
    return path


def test_a_higher_threshold_is_known_to_the_row_and_a_lower_one_lies_between_bounds(ledger: Path) -> None:
    found = read(ledger, "banking")
    assert (found.misses, found.bought, found.lowest) == (10, 4, 0.8)
    steps = {
        step.threshold: step
        for step in curve(found, TRAFFIC, BOX, 10**6, threshold=0.8, grid=(0, 0.5, 0.8, 0.9, 0.95, 0.96, 1))
    }
    shares = {at: (step.escalated_low, step.escalated_high) for at, step in steps.items()}
    assert shares == {
        0: (0.0, 0.4),  # the four bought ones may have had any confidence below 0.8
        0.5: (0.1, 0.5),
        0.8: (0.6, 0.6),
        0.9: (0.7, 0.7),
        0.95: (0.8, 0.8),
        0.96: (0.9, 0.9),
        1: (0.9, 0.9),
    }
    assert [at for at, step in steps.items() if step.now] == [0.8]
    month = 730 * 10**9
    assert (steps[0.5].monthly_low_nano, steps[0.5].monthly_high_nano) == (
        month + 50_000 * 1000,
        month + 250_000 * 1000,
    )


def test_quality_is_told_where_both_have_answered_the_same_text_and_nowhere_else(ledger: Path) -> None:
    """Texts 0 and 1 were degraded once and bought once; on the first the labels agree."""
    steps = {
        s.threshold: s for s in curve(read(ledger), TRAFFIC, BOX, 10**6, threshold=0.8, grid=(0.2, 0.5, 0.75, 0.9))
    }
    assert {at: (s.judged, s.agreement) for at, s in steps.items()} == {
        0.2: (2, 0.5),
        0.5: (1, 0.0),
        0.75: (0, None),
        0.8: (0, None),
        0.9: (0, None),
    }
    low, high = steps[0.2].agreement_low, steps[0.2].agreement_high
    assert low is not None and high is not None and low < 0.5 < high


def test_without_a_threshold_told_the_lowest_accepted_confidence_is_the_operating_point(ledger: Path) -> None:
    (now,) = [step for step in curve(read(ledger, "banking"), TRAFFIC, BOX, 10**6) if step.now]
    assert (now.threshold, now.escalated_low, now.escalated_high) == (0.8, 0.6, 0.6)
    assert curve(read(ledger, "absent"), TRAFFIC, BOX, 10**6) == []


marks = st.dictionaries(st.integers(0, 1000), st.integers(1, 50), max_size=20)


@settings(max_examples=30, deadline=None)
@given(marks, marks, st.integers(0, 50), st.none() | st.integers(0, 1000))
def test_a_stricter_threshold_never_escalates_less_and_the_bounds_stay_in_order(
    accepted: dict[int, int], degraded: dict[int, int], bought: int, now: int | None
) -> None:
    misses = bought + sum(accepted.values()) + sum(degraded.values())
    found = Answers(misses, accepted, degraded, bought)
    steps = curve(found, TRAFFIC, BOX, 10**6, threshold=None if now is None else now / 1000)
    for step, following in pairwise(steps):
        assert step.escalated_low <= following.escalated_low
        assert step.escalated_high <= following.escalated_high
    assert all(
        0 <= s.escalated_low <= s.escalated_high <= 1 and s.monthly_low_nano <= s.monthly_high_nano for s in steps
    )


def test_what_is_given_replaces_what_was_measured_in_the_one_cost_model() -> None:
    plain = what_if(TRAFFIC, BOX, 10**6)
    assert plain.traffic == TRAFFIC
    assert plain.api_nano == 500_000 * 1000
    asked = what_if(TRAFFIC, BOX, 10**6, hit=0.0, escalated=0.0, call_nano=2000.0)
    other = Traffic(hit=0.0, escalated=0.0, call_nano=2000.0)
    assert (asked.traffic, asked.crossing) == (other, crossing(other, BOX))
    assert (asked.api_nano, asked.hybrid_nano) == (2 * 10**9, round(hybrid_nano(other, BOX, 10**6)))
    assert asked.saving_nano == asked.api_nano - asked.hybrid_nano
    assert what_if(TRAFFIC, BOX, 10**6).local_only_nano == 730 * 10**9


def test_another_price_table_changes_each_task_s_calls_as_much_as_its_stored_tokens_say() -> None:
    def call(task: str, inputs: int) -> ApiCall:
        return ApiCall(task, "m", 20, 0.0, 0.0, 1.0, 0.0, 1000.0, True, 0.0, inputs=inputs)

    def repriced(task: str, booked: int, nano: int | None) -> Repriced:
        return Repriced(DAY, task, "m", False, 20, booked, nano, 0, 0, 0 if nano else 20)

    api = ApiOnly(100, 0, 1000.0, None, None, 20, [call("a", 75), call("b", 25)], [])
    assert call_nano_by([repriced("a", 50, 25), repriced("b", 10, 40)], api) == pytest.approx(
        1000 * (0.75 / 2 + 0.25 * 4)
    )
    assert call_nano_by([repriced("a", 50, None), repriced("b", 10, 40)], api) is None  # a price is missing
    assert call_nano_by([repriced("a", 50, 25)], api) is None  # nothing says what the other's calls would cost


@pytest.mark.parametrize("by", ["tenant", "task"])
def test_a_chargeback_shares_out_the_machines_whole_bill_and_says_what_was_saved(
    books: Make, row: Make, intent: Make, by: Group
) -> None:
    def of(name: str) -> dict[str, str]:
        return {by: name}

    rows = [row(f"x{i}", local_us=100, local_nano=5, tokens=10, **of("x")) for i in range(2)]
    rows += [row("y", local_us=100, local_nano=5, tokens=10, **of("y")), row("c", source="cache", **of("y"))]
    rows += [row("d", degraded="budget", local_us=0, tokens=10, **of("y"))]  # wanted bought: no saving
    rows += [row("z", source="frontier", tokens=10, **of("z"))]
    calls = [(intent("z", estimate_nano=700, **of("z")), Outcome("settled", "m", Usage(input=9, output=1), 700))]
    calls += [(intent("u", estimate_nano=50, **of("u")), Outcome("uncertain"))]
    call = ApiCall("banking", "m", 1, 0.0, 0.0, 1.0, 0.0, 700.0, False, 0.0)
    db = connect_readonly([books(rows, calls)])
    try:
        found = chargeback(db, 0, by, ApiOnly(5, 0, 700.0, None, None, 1, [call], []), 1000)
    finally:
        db.close()
    assert found == [
        Charge("z", 1, 700, 0, 0, 0),
        Charge("x", 2, 0, 10, 666, 1390),
        Charge("y", 3, 0, 5, 334, 695),
        Charge("u", 0, 50, 0, 0, 0),
    ]
    assert sum(charge.loaded_nano for charge in found) == 1000


def test_the_window_s_bill_is_the_machines_for_as_long_as_it_lasted() -> None:
    assert window_nano(TRAFFIC, BOX, 1000, 7.0) == pytest.approx(7 * 24 * 10**9)
    assert window_nano(TRAFFIC, BOX, 0, 0.0) == 0
