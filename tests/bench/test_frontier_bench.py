"""What a hanging provider does to local answers is told as surely as the rounds allow; every stage is somebody's."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def frontier(script: Callable[[str], Any]) -> Any:
    return script("frontier")


@pytest.fixture
def stages(script: Callable[[str], Any]) -> Any:
    return script("frontier_stages")


def reply(load: Any, source: str, degraded: str, took: float = 0.01, status: int = 200) -> Any:
    body = f'{{"results":[{{"label":"a","source":"{source}","degraded":{degraded}}}]}}'.encode()
    return load.Reply(0, status, body if status == 200 else b"{}", 1.0, 1.0 + took)


def test_only_local_answers_that_stand_are_timed(frontier: Any, load: Any) -> None:
    """Not the frontier's, not those that stand in for one, not errors."""
    seen = frontier.as_seen(
        [
            reply(load, "local", "null", 0.02),
            reply(load, "local", "null", 0.01),
            reply(load, "local", '"deadline"', 3.0),
            reply(load, "frontier", "null", 1.0),
            reply(load, "", "", 5.0, status=503),
        ],
        7,
    )
    assert seen.local_ms == [pytest.approx(10), pytest.approx(20)]
    assert (seen.replies, seen.failed, seen.calls) == (5, 1, 7)


def test_the_interval_of_ratios_is_students_on_their_logarithms(frontier: Any) -> None:
    mean, low, high = frontier.interval([2.0, 0.5])
    assert mean == pytest.approx(1.0)
    # Two values: 12.706 standard errors, each log 2 from the mean.
    assert math.log(high) == pytest.approx(12.706 * math.log(2), rel=1e-4)
    assert low == pytest.approx(1 / high)
    assert frontier.interval([1.2] * 5) == (pytest.approx(1.2), pytest.approx(1.2), pytest.approx(1.2))
    assert math.isnan(frontier.interval([1.0])[2])


def seen_in(frontier: Any, p99: float, failed: int = 0) -> Any:
    return frontier.Seen([p99], 10, 1, failed, 0)


def test_the_bars_fail_when_local_answers_suffer_or_the_simulator_is_slow(frontier: Any) -> None:
    calm = [seen_in(frontier, 10.0)] * 15
    slow = [seen_in(frontier, 13.0)] * 15
    rates, flips = {"ratio": 5.0}, [{"outside": 0}]

    def holds(hanging: list[Any], ratio: float = 5.0, outside: int = 0) -> list[bool | None]:
        seen = {frontier.HANGING: hanging, frontier.ANSWERING: calm, frontier.ABSENT: calm}
        return [bar.holds for bar in frontier.bars(seen, {**rates, "ratio": ratio}, [*flips, {"outside": outside}])]

    assert holds(calm) == [True] * 4
    assert holds(slow) == [False, True, True, True]
    assert holds([*calm[1:], seen_in(frontier, 10.0, failed=1)])[1] is False
    assert holds(calm, ratio=1.5)[2] is False
    assert holds(calm, ratio=math.nan)[2] is None
    assert holds(calm, outside=1)[3] is False


def test_uncertain_texts_never_repeat_and_a_fifth_escalates(frontier: Any) -> None:
    asked = frontier.mixed(["sure"], ["unsure"], itertools.count(), random.Random(0), 2000)
    unsure = [text for text in asked if text != "sure"]
    assert len(set(unsure)) == len(unsure)
    assert 0.17 < len(unsure) / len(asked) < 0.23


def test_the_stages_of_a_request_sum_to_what_its_caller_waits_for(stages: Any) -> None:
    parts = {name: [1.0, 2.0] for name in stages.OWN}
    measured = stages.Stages({**parts, stages.CALL: [5.0, 10.0], stages.TOTAL: [10.0, 20.0]}, ("", []), 0)
    assert measured.own_share == pytest.approx(0.5)
    assert [row["p50_ms"] for row in stages.by_stage(measured)] == [1.0] * len(stages.OWN) + [5.0, 10.0]


def test_what_reserving_and_settling_take_is_measured_in_a_real_ledger(stages: Any) -> None:
    reserve, settle = asyncio.run(stages.commits(5))
    assert len(reserve) == len(settle) == 5
    assert min(reserve + settle) > 0


def test_attacks_are_tried_on_a_simulation_that_obeys(frontier: Any, tmp_path: Path) -> None:
    """Through the command, as the bench does it."""
    local, second = frontier.attack(tmp_path, 1)
    assert (local["simulated"], second["simulated"]) == (False, True)
    assert second["flipped"] > 0.5
    assert local["outside"] == second["outside"] == 0
    frontier.show_flips([local, second])
