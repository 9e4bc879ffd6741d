"""Goodput counts answers and CPU of the same while; an overload is over when callers see it; a flood is a flood."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def overload(script: Callable[[str], Any]) -> Any:
    return script("overload")


@pytest.fixture
def flood(script: Callable[[str], Any]) -> Any:
    return script("flood")


def reply(load: Any, at: float, took: float = 0.01, status: int = 200) -> Any:
    return load.Reply(0, status, b'{"results":[{"label":"a"}]}', at, at + took)


@pytest.fixture
def seen(overload: Any, load: Any, script: Callable[[str], Any]) -> Callable[..., Any]:
    """An overload from 0 to 20 s; the p50 at half of the capacity is 10 ms."""
    half = script("arrivals").Seen(10, 1.0, [10.0], [], 0, {}, 0.1, [])

    def make(replies: Any = (), samples: Any = ()) -> Any:
        return overload.Overload(100.0, half, half, half, list(replies), list(samples), 0.0, 20.0, [])

    return make


def test_goodput_is_of_answers_between_two_samples_once_the_overload_has_settled(
    overload: Any, load: Any, seen: Callable[..., Any]
) -> None:
    replies = [
        *(reply(load, at / 10) for at in range(200)),
        *(reply(load, at / 10, status=429) for at in range(200)),
        reply(load, 10.0, took=11.0),
    ]
    samples = [overload.Sample(float(at), at * 2.0, 100.0) for at in range(25)]
    found = seen(replies, samples)
    assert overload.settling(found) == 5.0
    assert overload.goodput(found) == pytest.approx(150 / 30)
    assert math.isnan(overload.goodput(seen(replies, samples[:5])))


def test_an_overload_is_over_when_no_half_second_is_slow_any_more(
    overload: Any, load: Any, seen: Callable[..., Any]
) -> None:
    normal = [reply(load, 20 + at / 20) for at in range(80)]
    assert overload.normal_after(seen(normal)) == 0.0
    slow = [reply(load, 21.2 + at / 1000, took=0.1) for at in range(100)]
    assert overload.normal_after(seen([*normal, *slow])) == 1.5
    refused = [reply(load, 21.5 + at / 20, status=429) for at in range(10)]
    gone = [each for each in normal if not 21.5 <= each.started < 22.0]
    assert overload.normal_after(seen([*gone, *refused])) == 2.0, "who is answered nothing is not served normally"
    assert overload.normal_after(seen([*normal, reply(load, 24.2, took=0.1)])) == 4.5, "to the end: never"
    assert overload.normal_after(seen()) is None


def test_memory_is_compared_at_the_ends_of_the_overload(overload: Any, seen: Callable[..., Any]) -> None:
    samples = [overload.Sample(float(at), 0.0, 50.0 if at < 5 else 100.0 + at) for at in range(30)]
    assert overload.growth_mb(seen((), samples)) == pytest.approx(19 - 6, abs=1)
    assert math.isnan(overload.growth_mb(seen()))


def test_another_s_p99_is_held_against_its_own_without_the_flood(flood: Any) -> None:
    rounds = [flood.Flooded([10.0] * 9, [ms] * 9, 0, {"429": 3}) for ms in (14.0, 50.0, 12.0)]
    limited = [flood.Flooded([10.0], [16.0], 1, {})]
    bars = flood.bars({"fair": rounds, "limited": limited})
    assert [(bar.value, bar.holds) for bar in bars] == [(1.4, True), (1.6, False), (1, False)]
    assert flood.row("fair", rounds)["flood_replies"] == {"429": 9}


def test_the_flood_goes_on_while_the_block_runs_and_tells_what_it_got(
    flood: Any, load: Any, script: Callable[[str], Any], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        entrant = script("hits").start_native(stack, tmp_path, "empty", "litestar", ["I lost my card"])
        with flood.flood(entrant.who.url, 0.6) as statuses:
            assert statuses == {}
            (answer,) = load.send(entrant.who.url, entrant.who.requests, connections=1)
            assert answer.status == 200
    assert statuses["200"] > flood.CONNECTIONS
