"""Every architecture on every engine, against transformers itself in fp32, one text at a time.

The models are tiny and their weights are drawn up to twenty times as wide as usual, so rounding shows more than in a
trained model. Measured (largest over all models, 2026-11-21, a CPU with avx512_bf16 and VNNI):

| engine | difference from the reference | from its batch mates |
|---|---|---|
| torch-fp32 | 1.9e-5 | 7.9e-6 |
| torch-bf16, CPU | 8.0 % of the largest logit | 1.8 % |
| onnx-int8 | 14.3 % | nothing |

On CUDA nothing was measured yet: the bounds there are the CPU's, or (int8, fp8) assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification

from local_model import encoder, tokenize
from local_model.engines import Engine, Kind
from local_model.graphs import Graphs, grid
from local_model.heads import model_head
from local_model.onnx_engine import OnnxEngine
from local_model.scoring import Scored, Text, score
from local_model.torch_engine import TorchEngine
from local_model.types import LoadError, NotFinite

TEXTS = (
    "the film was great",
    "awful",
    "the plot was bad and not very good " * 3,
    "my card is lost and where is my money",
    "unheard words",
)
HEADS: dict[str, dict[str, Any]] = {
    "one label": {"num_labels": 1, "problem_type": "multi_label_classification"},
    "77 labels": {"num_labels": 77},
    "multi-label": {"num_labels": 5, "problem_type": "multi_label_classification"},
}
ARCHITECTURES = ("bert", "distilbert", "roberta", "xlm-roberta", "deberta", "modernbert")
EVERY = [(architecture, head) for architecture in ARCHITECTURES for head in HEADS]
#: For engines that take seconds to build: each architecture once, each head twice.
SOME = [(architecture, list(HEADS)[i % 3]) for i, architecture in enumerate(ARCHITECTURES)]


class Bounds(NamedTuple):
    """Of |difference| in logits: absolute for fp32, else in parts of the largest logit."""

    reference: float
    mates: float


BOUNDS: dict[Kind, Bounds] = {
    "torch-fp32": Bounds(1e-4, 1e-4),
    "torch-bf16": Bounds(0.12, 0.03),
    "onnx-int8": Bounds(0.2, 0.0),
    "torch-int8": Bounds(0.2, 0.05),
    "torch-fp8": Bounds(0.3, 0.05),
}


def cases() -> list[Any]:
    on_cpu: list[tuple[str, str, list[tuple[str, str]]]] = [
        ("torch-fp32", "cpu", EVERY),
        ("torch-bf16", "cpu", EVERY),
        ("onnx-int8", "cpu", SOME),
    ]
    on_gpu = [("torch-bf16", "cuda", EVERY), ("torch-int8", "cuda", SOME), ("torch-fp8", "cuda", SOME)]
    return [
        pytest.param(kind, device, *model, marks=[pytest.mark.gpu] if device == "cuda" else [])
        for kind, device, models in on_cpu + on_gpu
        for model in models
    ]


def reference(folder: Path, batch: list[list[int]]) -> NDArray[np.float32]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return np.concatenate([model(torch.tensor([ids])).logits.numpy() for ids in batch])


def tokens(found: encoder.Encoder, cache: Path) -> list[list[int]]:
    tokenizer = tokenize.load(found, cache)
    return [tokenizer.encode(text, truncate=True).ids for text in TEXTS]


@pytest.mark.parametrize(("kind", "device", "architecture", "head"), cases())
def test_every_architecture_answers_on_every_engine_as_in_transformers(
    kind: Kind, device: str, architecture: str, head: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    if kind in {"torch-int8", "torch-fp8"}:
        pytest.importorskip("torchao", reason="torchao is not installed (the gpu extra)")
    folder = tiny_model(architecture, **HEADS[head])
    found = encoder.find(str(folder))
    batch = tokens(found, tmp_path)
    engine: Engine
    if kind == "onnx-int8":
        engine = OnnxEngine(found, threads=1, cache_dir=tmp_path, progress=lambda _: None)
    else:
        precision: Any = kind.removeprefix("torch-")
        engine = TorchEngine(found, device=device, threads=1, precision=precision)
    assert engine.kind == kind

    wanted = reference(folder, batch)
    together = engine.forward(batch)
    alone = [engine.forward([ids]) for ids in batch]
    engine.close()
    assert together.logits is not None
    assert together.logits.shape == wanted.shape == (len(TEXTS), len(found.labels or ()))
    unit = 1.0 if kind == "torch-fp32" else np.abs(wanted).max()
    assert np.abs(together.logits - wanted).max() <= BOUNDS[kind].reference * unit
    mates = [np.abs(row.logits[0] - both).max() for row, both in zip(alone, together.logits, strict=True)]
    assert max(mates) <= BOUNDS[kind].mates * unit
    assert np.linalg.norm(together.embeddings, axis=1) == pytest.approx(1, abs=1e-5)

    scores = model_head(found).probabilities(together)
    assert ((scores >= 0) & (scores <= 1)).all()
    if not found.multi_label:
        assert scores.sum(axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("problem", [None, "regression", "single_label_classification"])
def test_a_single_output_is_a_label_only_where_the_model_says_so(
    problem: str | None, tiny_model: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    folder = tiny_model("bert", num_labels=1, problem_type="multi_label_classification")
    assert encoder.find(str(folder)).labels == ("LABEL_0",)
    edit_json(folder / "config.json", problem_type=problem)
    with pytest.raises(LoadError, match="regress"):
        encoder.find(str(folder))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_extreme_logits_give_finite_probabilities(
    precision: Any, multi_label: bool, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    problem = {"problem_type": "multi_label_classification"} if multi_label else {}
    folder = tiny_model("bert", num_labels=2, **problem)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"][:] = 0
    weights["classifier.bias"][:] = (-100, 0)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    found = encoder.find(str(folder))
    output = TorchEngine(found, device="cpu", threads=1, precision=precision).forward(tokens(found, tmp_path))
    assert output.logits is not None
    assert (output.logits == [-100, 0]).all()
    scores = model_head(found).probabilities(output)
    assert np.isfinite(scores).all()
    assert scores == pytest.approx(np.tile([0, 0.5 if multi_label else 1], (len(TEXTS), 1)), abs=1e-30)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("padded", ["to the longest", "to a bucket"])
def test_a_text_that_meets_a_broken_weight_fails_alone(
    precision: Any, padded: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """NaN in one token's embedding: its batch mates are answered as without it."""
    folder = tiny_model("bert", num_labels=3)
    found = encoder.find(str(folder))
    batch = tokens(found, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][batch[1][1]] = np.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    found = encoder.find(str(folder))
    engine = TorchEngine(found, device="cpu", threads=1, precision=precision)
    if padded == "to a bucket":
        engine._graphs = Graphs(engine._run, grid(found.max_tokens), lambda run: run, torch.device("cpu"))
    head = model_head(found)
    texts = [Text(ids, len(ids), False, head) for ids in batch]
    results = score(engine.forward(batch), texts)
    assert [type(result) for result in results] == [Scored, NotFinite, Scored, Scored, Scored]
    others = [0, 2, 3, 4]
    without = score(engine.forward([batch[i] for i in others]), [texts[i] for i in others])
    for i, result in zip(others, without, strict=True):
        with_it = results[i]
        assert isinstance(result, Scored)
        assert isinstance(with_it, Scored)
        assert with_it.probabilities == pytest.approx(result.probabilities, abs=1e-5 if precision == "fp32" else 0.05)
