"""The denominator does the service's work, bars divide the right way round, and refusals are timed by the server."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TEXTS = ["my card still hasn't arrived", "where can I see my pin", "the rate you gave me is wrong", "top up failed"]


@pytest.fixture
def rounds(script: Callable[[str], Any]) -> Any:
    return script("rounds")


@pytest.fixture
def offline(script: Callable[[str], Any]) -> Any:
    return script("offline")


@pytest.fixture
def serving(script: Callable[[str], Any]) -> Any:
    return script("serving")


@pytest.fixture
def arrivals(script: Callable[[str], Any]) -> Any:
    return script("arrivals")


@pytest.fixture
def narrow(rounds: Any, harness: Any, tmp_path: Path) -> Iterator[tuple[Any, Path]]:
    """A service that lets two requests inside, and its log."""
    folder = tmp_path / "router"
    with harness.router(folder, "[server]\nmax_concurrent = 2\n" + rounds.CONFIG) as server:
        yield server, folder / "router.log"


def test_offline_gives_the_service_s_answers_and_refusals_are_read_from_its_log(
    narrow: tuple[Any, Path], rounds: Any, offline: Any, arrivals: Any, load: Any
) -> None:
    server, log = narrow
    who = rounds.as_router(server, TEXTS)
    (text, replies) = (offline.Text(1), load.send(who.url, who.requests, connections=1))
    for reply in replies:
        served = json.loads(reply.body)["results"][0]
        label, confidence = text.classify(TEXTS[reply.number])
        assert (served["label"], served["confidence"]) == (label, pytest.approx(confidence, abs=1e-4))

    crowd = who._replace(requests=rounds.as_router(server, [f"{TEXTS[0]} {n}" for n in range(999)]).requests)
    seen = arrivals.arrivals(crowd, log, per_second=2_000_000, seconds=0.0002, seed=1)
    answered = len(seen.took_ms)
    assert seen.refusals > 0
    assert len(seen.refused_ms) == seen.refusals, "each refusal is in the log, and nothing else"
    assert answered > 0
    assert answered + seen.refusals == round(seen.asked_per_second * 0.0002)
    assert seen.failures == {}
    assert seen.cpu_seconds > 0


def test_batches_have_every_text_once_beside_texts_of_its_length(offline: Any) -> None:
    texts = [f"{'x' * (n * 37 % 100)}" for n in range(100)]
    batches = offline.cut(texts, 8)
    assert sorted(text for batch in batches for text in batch) == sorted(texts)
    assert max(len(batch[-1]) - len(batch[0]) for batch in batches) == 7
    assert [len(batch[0]) for batch in batches] != sorted(len(batch[0]) for batch in batches)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_offline_loop_counts_the_texts_of_all_threads(offline: Any, threads: int) -> None:
    done: list[int] = []

    def work(item: int) -> int:
        done.append(item)
        return item

    speed = offline.measure([1, 2, 3], work, threads, 0.02)
    assert speed.texts == sum(done)
    assert set(done) == {1, 2, 3}
    assert speed.seconds >= 0.02
    assert speed.per_second == speed.texts / speed.seconds


def test_each_batch_size_meets_each_layout_of_threads_once(serving: Any) -> None:
    layouts = serving.layouts()
    assert len(set(layouts)) == len(layouts)
    assert {layout.batch for layout in layouts} == {1, 8, 16, 32}


def test_served_is_held_against_offline_of_the_same_round(serving: Any, offline: Any, rounds: Any, load: Any) -> None:
    def loop(per_second: float, cpu_ms: float, p50: float = 1.0) -> Any:
        return offline.Speed(1000, 1000 / per_second, cpu_ms, p50)

    def served(per_second: int, cpu_ms: float, texts: int = 1, p50: float = 1.5) -> Any:
        return rounds.Round(load.Load(per_second, 0, 1.0, 1000, p50, 9.0, 0.1), cpu_ms * texts, texts)

    speeds = {"cpu": [loop(900, 1.7)], "wall": [loop(1000, 2.0)], "bare": [loop(0.5, 1.0)]}
    seen = {
        (serving.SINGLE, 64): [served(800, 2.0)],
        (serving.BULK, serving.BULK_CONNECTIONS): [served(30, 1.8, texts=32)],
        (serving.SINGLE, 1): [served(500, 2.5)],
    }
    heads = {(serving.ONE_TASK, 64): [served(800, 1.0)], (serving.MANY_TASKS, 64): [served(790, 1.05)]}
    made = serving.bars(speeds, seen, heads)
    values = [pytest.approx(value) for value in (0.85, 0.8, 1.7 / 1.8, 0.96, 0.5, 1 / 1.05, 0)]
    assert [bar.value for bar in made] == values
    assert [bar.holds for bar in made] == [True, True, False, True, True, False, True]
    assert len(serving.ratio_notes(speeds, seen, heads)) == 7


def test_many_tasks_have_a_head_each(serving: Any, tmp_path: Path) -> None:
    config = serving.heads_config(tmp_path, 3)
    assert config.count("[tasks.") == 6
    assert len(list(tmp_path.glob("head-3-*/manifest.json"))) == 3


def test_arrivals_are_random_at_the_asked_rate(arrivals: Any) -> None:
    times = arrivals.poisson(1000, 5, random.Random(1))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert len(times) == pytest.approx(5000, rel=0.05)
    assert times == sorted(times)
    assert spread == pytest.approx(mean, rel=0.1), "exponential gaps vary as much as they last"


def test_goodput_is_held_against_the_peak_of_its_round(arrivals: Any) -> None:
    def seen(answers: int, refused: list[float], failures: dict[int, int] | None = None) -> Any:
        return arrivals.Seen(1.0, 1.0, [1.0] * answers, refused, len(refused), failures or {}, 1.0, [0.1])

    rounds = {0.5: [seen(500, [])], 0.8: [seen(1000, [])], 1.0: [seen(900, [])], 1.5: [seen(950, [1.0, 2.0])]}
    assert [(bar.value, bar.holds) for bar in arrivals.bars(rounds)] == [(0.95, True), (2, True), (0, True), (0, True)]
    assert arrivals.as_row(1.5, rounds[1.5])["refused_slowest_ms"] == 2
    worse = {**rounds, 1.5: [seen(800, [9.0], {0: 1})]}
    assert [bar.holds for bar in arrivals.bars(worse)] == [False, False, True, False]
    none = {**rounds, 1.5: [seen(950, [])]}
    assert arrivals.bars(none)[1].holds is None, "no refusal, nothing measured"
