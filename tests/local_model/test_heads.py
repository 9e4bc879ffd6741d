"""A head is what its manifest says, or it is not loaded; its probabilities are probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from local_model.encoder import Encoder
from local_model.engines import Output
from local_model.heads import Head, load_head, save_head, sigmoid, softmax
from local_model.types import LoadError

ENCODER = Encoder(
    source="somewhere", path=Path(), digest="d" * 64, tokenizer_digest="t" * 64, model_type="bert", hidden=4,
    max_tokens=16, limit=16, pooling="mean",
)  # fmt: skip
LABELS = ("blue", "green", "red")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    fitted: Any = {
        kind: (rng.normal(size=(3, 4)).astype(np.float32), np.zeros(3, np.float32), 0.5, {"accuracy": 0.9})
        for kind in ("onnx-int8", "torch-fp32")
    }
    save_head(tmp_path / "h", task="t", labels=LABELS, encoder=ENCODER, fitted=fitted, descriptions={"red": "warm"})
    return tmp_path / "h"


def test_what_was_saved_is_loaded_for_the_engine_that_asks(folder: Path) -> None:
    int8, fp32 = load_head(folder, "onnx-int8", ENCODER), load_head(folder, "torch-fp32", ENCODER)
    assert int8.labels == LABELS
    assert int8.descriptions == {"red": "warm"}
    assert int8.temperature == 0.5
    assert int8.weight is not None
    assert fp32.weight is not None
    assert not np.array_equal(int8.weight, fp32.weight)
    assert int8.digest != fp32.digest


def test_an_altered_weight_file_is_refused_by_name(folder: Path) -> None:
    file = folder / "onnx-int8.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(LoadError, match=r"onnx-int8\.safetensors"):
        load_head(folder, "onnx-int8", ENCODER)
    load_head(folder, "torch-fp32", ENCODER)


def test_a_missing_weight_file_is_refused_by_name(folder: Path) -> None:
    (folder / "onnx-int8.safetensors").unlink()
    with pytest.raises(LoadError, match=r"onnx-int8\.safetensors"):
        load_head(folder, "onnx-int8", ENCODER)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 9}, "schema 9"),
        ({"labels": [{"name": "one"}]}, "two or more labels"),
        ({"labels": [{"name": "a"}, {"name": "a"}]}, "each once"),
        ({"labels": [{"name": "a"}, {"name": "b"}]}, "do not fit"),
        ({"encoder": {"source": "other", "digest": "e" * 64}}, "fitted on other"),
        ({"engines": {}}, "no head for the engine"),
        ({"engines": 3}, r"manifest\.json"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_with_the_reason(
    folder: Path, change: dict[str, Any], told: str, edit_json: Callable[..., None]
) -> None:
    edit_json(folder / "manifest.json", **change)
    with pytest.raises(LoadError, match=told):
        load_head(folder, "onnx-int8", ENCODER)


def test_a_manifest_can_not_point_out_of_its_folder(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["engines"]["onnx-int8"]["file"] = "../h/onnx-int8.safetensors"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LoadError, match="not a file name"):
        load_head(folder, "onnx-int8", ENCODER)


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="crossover learn"):
        load_head(tmp_path, "onnx-int8", ENCODER)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weight = np.full((3, 4), np.nan, np.float32)
    save_head(tmp_path, task="t", labels=LABELS, encoder=ENCODER, fitted={"onnx-int8": (weight, np.zeros(3), 1.0, {})})
    with pytest.raises(LoadError, match="not finite"):
        load_head(tmp_path, "onnx-int8", ENCODER)


def test_bf16_borrows_the_fp32_head_and_says_so_but_int8_borrows_none(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = load_head(folder, "torch-bf16", ENCODER)
    assert "torch-fp32" in head.notes[0]
    assert "torch-fp32" in caplog.text
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["engines"]["onnx-int8"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LoadError, match="crossover learn"):
        load_head(folder, "onnx-int8", ENCODER)


logits = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 4), st.integers(2, 9)), elements=st.floats(-1e4, 1e4, allow_nan=False)
)


@given(logits)
def test_softmax_of_any_logits_sums_to_one_and_keeps_their_order(rows: np.ndarray[Any, Any]) -> None:
    found = softmax(rows)
    assert np.allclose(found.sum(axis=1), 1)
    for row, probabilities in zip(rows, found, strict=True):
        assert probabilities[row.argmax()] == probabilities.max()


@given(logits)
def test_sigmoid_of_any_logits_is_between_zero_and_one_and_symmetric(rows: np.ndarray[Any, Any]) -> None:
    found = sigmoid(rows)
    assert ((found >= 0) & (found <= 1)).all()
    assert np.allclose(found + sigmoid(-rows), 1)


def head(**changes: Any) -> Head:
    return Head(**{"labels": ("a", "b"), "multi_label": False, "temperature": 1.0, "digest": "", **changes})


def test_far_apart_logits_are_certain_and_nothing_overflows() -> None:
    output = Output(np.zeros((1, 4), np.float32), np.array([[-100, 0]], np.float32))
    assert head().probabilities(output)[0].tolist() == pytest.approx([0, 1], abs=1e-9)
    assert head(multi_label=True).probabilities(output)[0].tolist() == pytest.approx([0, 0.5], abs=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_becomes_a_confident_answer(bad: float) -> None:
    output = Output(np.zeros((2, 4), np.float32), np.array([[bad, bad], [0, 1]], np.float32))
    found = head().probabilities(output)
    assert not np.isfinite(found[0]).all()
    assert np.isfinite(found[1]).all()


def test_temperature_changes_confidence_and_no_label() -> None:
    output = Output(np.zeros((1, 4), np.float32), np.array([[1, 3]], np.float32))
    cold, hot = (head(temperature=t).probabilities(output)[0] for t in (0.5, 5.0))
    assert cold.argmax() == hot.argmax() == 1
    assert cold[1] > hot[1]
