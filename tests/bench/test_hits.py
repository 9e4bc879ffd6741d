"""A hit counts if it is one of the tier that was asked; ratios divide the right way round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

HIT = b'{"results":[{"label":"a","source":"cache","cache_tier":"memory"}]}'


@pytest.fixture
def hits(script: Callable[[str], Any]) -> Any:
    return script("hits")


@pytest.fixture
def rounds(script: Callable[[str], Any]) -> Any:
    return script("rounds")


@pytest.fixture
def seen(rounds: Any, load: Any) -> Callable[..., Any]:
    def make(rate: float, cpu_ms: float, **load_fields: Any) -> Any:
        fields = {"failures": 0, "seconds": 1.0, "p50_ms": 0.5, "p99_ms": 1.0, "generator_cores": 0.1, **load_fields}
        return rounds.Round(load.Load(answers=rate, served=rate, **fields), rate * cpu_ms / 1000)

    return make


def test_a_hit_of_another_tier_or_a_computed_answer_is_not_what_was_asked(hits: Any) -> None:
    assert hits.is_hit(HIT, b"memory")
    assert not hits.is_hit(HIT, b"redis")
    assert not hits.is_hit(HIT.replace(b'"cache"', b'"local"'), b"memory")


def test_bars_say_how_many_times_the_native_route_s_answers_a_hit_gives(hits: Any, seen: Callable[..., Any]) -> None:
    measured = {
        (hits.MEMORY, 64): [seen(2000, 0.1), seen(1000, 0.1), seen(3000, 0.1)],
        (hits.REDIS, 64): [seen(800, 0.4), seen(400, 0.4), seen(1200, 0.4)],
        (hits.NATIVE, 64): [seen(1000, 0.2), seen(500, 0.2), seen(1500, 0.2)],
        (hits.MEMORY, 1): [seen(10, 0.1, p50_ms=0.9)],
        (hits.REDIS, 1): [seen(10, 0.1, p50_ms=1.1)],
    }
    bars = [(round(bar.value, 6), bar.holds) for bar in hits.bars(measured)]
    assert bars == [(2.0, True), (2.0, True), (0.8, False), (0.5, False), (0.9, True), (1.1, False), (0.0, True)]


def test_who_answered_nothing_is_not_measured_and_shows_as_missed(hits: Any, seen: Callable[..., Any]) -> None:
    measured = {
        (hits.MEMORY, 64): [seen(0, 0.1, failures=50)],
        (hits.REDIS, 64): [seen(9950, 0.4)],
        (hits.NATIVE, 64): [seen(1000, 0.2)],
    }
    bars = hits.bars(measured)
    assert [bar.holds for bar in bars[:2]] == [None, None]
    assert (bars[-1].value, bars[-1].holds) == (0.005, False)


def test_a_generator_that_is_the_limit_is_named(hits: Any, seen: Callable[..., Any]) -> None:
    measured = {(hits.RAW, 64): [seen(1, 1, generator_cores=0.97)], (hits.REDIS, 64): [seen(1, 1)]}
    (note,) = hits.generator_notes(measured)
    assert f"it is the limit for {hits.RAW}:" in note


def test_an_answer_from_litellm_s_cache_has_the_first_one_s_id(hits: Any) -> None:
    assert hits.answer_id(b'{"id":"chatcmpl-5","created":1}') == b"chatcmpl-5"


def test_litellm_that_is_not_installed_is_a_reason(hits: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hits.litellm_proxy, "HOME", tmp_path)
    with ExitStack() as stack, pytest.raises(OSError, match="is missing"):
        hits.start_litellm(stack, tmp_path, [])


@pytest.mark.parametrize("kind", ["litestar", "raw"])
def test_an_empty_endpoint_takes_what_the_router_takes(hits: Any, load: Any, tmp_path: Path, kind: str) -> None:
    with ExitStack() as stack:
        entrant = hits.start_native(stack, tmp_path, "empty", kind, ["I lost my card", "where is my card"])
        replies = load.send(entrant.who.url, entrant.who.requests, connections=2)
    assert [reply.status for reply in replies] == [200, 200]
    assert all(entrant.accept(reply) for reply in replies)


def test_a_service_without_a_ledger_waits_for_nothing(script: Callable[[str], Any]) -> None:
    async def record() -> bool:
        future = script("unrecorded_server").forget(None, ["row"], patience_s=1.0)
        return bool(future.done())

    assert asyncio.run(record())
