"""Another processor, another library, a damaged file: who answers the probe texts otherwise is noticed at each load."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import local_model
from local_model import encoder, onnx_engine, probes, tokenize
from local_model.encoder import sha256_file
from local_model.engines import Output, open_engine
from local_model.heads import load_head, read_manifest
from local_model.onnx_engine import OnnxEngine, artifact
from local_model.types import LoadError

SHIPPED = Path(local_model.__file__).parent / "heads" / "banking77"


def quiet(_message: str) -> None: ...


class Backwards:
    """An engine whose embedding is the reversed length; it takes at most four texts."""

    max_items, max_tokens = 4, 10_000

    def forward(self, batch: Sequence[Sequence[int]]) -> Output:
        assert len(batch) <= self.max_items
        return Output(np.array([[-len(ids)] for ids in batch], np.float32), None)


def test_the_probes_are_32_different_texts_of_very_different_lengths(cache_dir: Path) -> None:
    assert len(set(probes.TEXTS)) == len(probes.TEXTS) == 32
    rows = probes.token_ids(tokenize.load(encoder.find(), cache_dir))
    lengths = [len(row) for row in rows]
    assert min(lengths) == 3
    assert max(lengths) == probes.TOKENS
    assert {row[0] for row in rows} == {101}
    assert {row[-1] for row in rows} == {102}, "the one that was cut ends with [SEP] too"


def test_results_come_back_in_the_order_of_the_rows() -> None:
    rows = [[0] * length for length in (5, 1, 9, 3, 7, 2)]
    assert probes.run(Backwards(), rows).embeddings[:, 0].tolist() == [-5, -1, -9, -3, -7, -2]  # type: ignore[arg-type]


def moved(folder: Path, by: float) -> None:
    """As if the graph had been built where every embedding came out a little elsewhere; digests are kept true."""
    file = folder / "probes.safetensors"
    kept = load_file(file)
    kept["embeddings"][7, 0] += by
    save_file(kept, file)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "probes_sha256": sha256_file(file)}))


@pytest.fixture
def built(tiny_model: Callable[..., Path], cache_dir: Path, tmp_path: Path) -> tuple[encoder.Encoder, Path]:
    """Built once (the tiny model is always the same one), copied to where a test may spoil it."""
    found = encoder.find(str(tiny_model("bert", num_labels=3)))
    folder = artifact(found, cache_dir, quiet).folder
    return found, Path(shutil.copytree(folder, tmp_path / "onnx" / folder.name))


def test_an_artifact_that_answers_the_probes_as_when_it_was_built_is_silent(
    built: tuple[encoder.Encoder, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert OnnxEngine(built[0], threads=1, cache_dir=tmp_path, progress=quiet).notes == ()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_one_that_answers_a_little_otherwise_serves_and_is_loud(
    built: tuple[encoder.Encoder, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found, folder = built
    moved(folder, 0.07)
    before = (folder / "model.onnx").stat().st_mtime_ns
    (note,) = OnnxEngine(found, threads=1, cache_dir=tmp_path, progress=quiet).notes
    assert "by up to 0.070" in note
    assert "crossover learn" in note
    assert note in caplog.text
    assert (folder / "model.onnx").stat().st_mtime_ns == before


def test_one_that_answers_quite_otherwise_is_built_again(built: tuple[encoder.Encoder, Path], tmp_path: Path) -> None:
    found, folder = built
    moved(folder, 0.9)
    (note,) = OnnxEngine(found, threads=1, cache_dir=tmp_path, progress=quiet).notes
    assert "off by 0.9" in note
    assert "built again" in note
    assert OnnxEngine(found, threads=1, cache_dir=tmp_path, progress=quiet).notes == ()


def test_a_quantization_that_ruins_a_classifier_fails_the_gate_and_auto_takes_torch(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnx_engine.quantize

    def ruined(source: Path, target: Path, *, reduce_range: bool) -> None:
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(source, load_external_data=True)
        rng = np.random.default_rng(0)
        for weight in graph.graph.initializer:
            if len(weight.dims) == 2 and weight.dims[0] == weight.dims[1]:
                made = rng.normal(size=tuple(weight.dims)).astype(np.float32)
                weight.CopyFrom(numpy_helper.from_array(made, weight.name))
        onnx.save(graph, source)
        real(source, target, reduce_range=reduce_range)

    monkeypatch.setattr(onnx_engine, "quantize", ruined)
    found = encoder.find(str(tiny_model("bert", num_labels=3)))
    opened = open_engine(found, device="cpu", cache_dir=tmp_path)
    assert opened.engine.kind == "torch-fp32"
    assert "onnx-int8 fails the quality gate" in opened.why
    assert "another label" in opened.why
    named = open_engine(found, name="onnx", device="cpu", cache_dir=tmp_path)
    assert named.engine.kind == "onnx-int8", "who names an engine gets it"
    assert any("fails the quality gate" in note for note in named.notes)


# --- heads


@pytest.mark.parametrize("kind", ["onnx-int8", "torch-fp32"])
def test_the_shipped_head_answers_the_probes_as_where_it_was_fitted(kind: Any, cache_dir: Path) -> None:
    """Fitted on the recipe that serves. Another processor than the one it was made on may round differently: 0.1."""
    found = encoder.find()
    engine = open_engine(found, name=kind.partition("-")[0], device="cpu", cache_dir=cache_dir).engine
    output = probes.run(engine, probes.token_ids(tokenize.load(found, cache_dir)))
    head = load_head(SHIPPED, kind, found)
    assert read_manifest(SHIPPED).provenance["recipes"][kind] == engine.recipe.removesuffix("-7bit")
    assert head.probes is not None
    assert np.abs(head.probabilities(output) - head.probes).max() < 0.1
    other = load_head(SHIPPED, "torch-fp32" if kind == "onnx-int8" else "onnx-int8", found)
    assert other.probes is not None
    assert np.abs(head.probabilities(output) - other.probes).max() > 0.1, "another engine's head would be noticed"


def test_a_head_whose_engine_rounds_differently_here_is_loud_once(
    cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = encoder.find()
    engine = open_engine(found, name="torch", device="cpu", cache_dir=cache_dir).engine
    output = probes.run(engine, probes.token_ids(tokenize.load(found, cache_dir)))
    head = load_head(SHIPPED, "torch-fp32", found)
    assert probes.check("banking", head, "torch-fp32", output) == ()
    shifted = Output(output.embeddings + 0.01, None)
    (note,) = probes.check("banking", head, "torch-fp32", shifted)
    assert note.startswith("banking: ")
    assert "crossover learn" in note
    assert note in caplog.text
    (note,) = probes.check("banking", head, "torch-fp32", Output(output.embeddings * np.nan, None))
    assert "inf" in note


def test_probe_scores_that_were_altered_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "head"
    shutil.copytree(SHIPPED, folder)
    file = folder / "onnx-int8.probes.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(LoadError, match=r"onnx-int8\.probes\.safetensors"):
        load_head(folder, "onnx-int8", encoder.find())


def test_a_head_from_before_there_were_probes_says_nothing(tmp_path: Path, edit_json: Callable[..., None]) -> None:
    folder = tmp_path / "head"
    shutil.copytree(SHIPPED, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["engines"].values():
        entry.pop("probes")
        entry.pop("quality")
    edit_json(folder / "manifest.json", engines=manifest["engines"])
    head = load_head(folder, "onnx-int8", encoder.find())
    assert head.probes is None
    assert probes.check("banking", head, "onnx-int8", Output(np.zeros((32, 384), np.float32), None)) == ()
