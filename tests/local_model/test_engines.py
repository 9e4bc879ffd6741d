"""Any sequence classifier from a folder, on both engines; and what happens when building goes wrong."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from local_model import encoder, onnx_engine, onnx_graph, probes, tokenize
from local_model.engines import Kind, Made, Output, candidates, choose_and_open, measured, open_engine
from local_model.gate import Quality
from local_model.model import LocalModel, ModelSettings, TaskSpec
from local_model.onnx_engine import OnnxEngine, artifact
from local_model.types import LoadError

TEXTS = ["the film was great", "awful", "the plot was bad and not very good " * 3]


def quiet(_message: str) -> None: ...


def forward(folder: Path, name: Any, cache: Path) -> Any:
    found = encoder.find(str(folder))
    tokens = tokenize.load(found, cache)
    engine = open_engine(found, name=name, device="cpu", threads=2, cache_dir=cache).engine
    return engine.forward([tokens.encode(text, truncate=True).ids for text in TEXTS])


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "deberta"])
def test_a_classifier_folder_answers_on_onnx_as_in_torch(
    kind: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Before quantization to 1e-4; after it the same label (on weights drawn wildly, so that labels are far apart)."""
    folder = tiny_model(kind, num_labels=3)
    found = encoder.find(str(folder))
    torch, int8 = forward(folder, "torch", tmp_path), forward(folder, "onnx", tmp_path)
    assert int8.logits.shape == torch.logits.shape == (3, 3)
    assert (int8.logits.argmax(axis=1) == torch.logits.argmax(axis=1)).all()
    assert (int8.embeddings * torch.embeddings).sum(axis=1).min() > 0.95

    with onnx_graph.quiet_exporters():
        onnx_graph.export(found, tmp_path / "fp32.onnx")
    session = onnx_graph.open_session(tmp_path / "fp32.onnx")
    tokens = tokenize.load(found, tmp_path)
    if kind != "deberta":  # attention of its own
        operators = {node.op_type for node in onnx.load(tmp_path / "fp32.onnx").graph.node}
        assert not operators & {"IsNaN", "Where"}, "one text alone needs no mask"
    for text, row in zip(TEXTS, torch.logits, strict=True):
        ids = np.array([tokens.encode(text, truncate=True).ids], np.int64)
        assert np.abs(session.run(None, {"input_ids": ids})[1][0] - row).max() < 1e-4


def test_a_sliding_window_survives_the_export(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """Only what padding needs is left out of the graph."""
    folder = tiny_model("modernbert", num_labels=3)
    found = encoder.find(str(folder))
    with onnx_graph.quiet_exporters():
        onnx_graph.export(found, tmp_path / "fp32.onnx")
    session = onnx_graph.open_session(tmp_path / "fp32.onnx")
    engine = open_engine(found, name="torch", device="cpu", cache_dir=tmp_path).engine
    ids = [2, *range(4, 20), *range(4, 20), 3]
    wanted = engine.forward([ids]).logits
    assert wanted is not None
    assert np.abs(session.run(None, {"input_ids": np.array([ids], np.int64)})[1] - wanted).max() < 1e-4


def test_a_cache_folder_that_can_not_be_written_serves_what_is_in_it(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """As in a container: no lock is opened where nothing is to be built."""
    found = encoder.find(str(tiny_model("bert")))
    folder = artifact(found, tmp_path, quiet).folder
    lock = folder.with_name(f"{folder.name}.lock")
    lock.unlink()
    lock.mkdir()  # opening it to write fails, for root as well
    again = artifact(found, tmp_path, quiet)
    assert (again.folder, again.notes) == (folder, ())


def test_torch_gives_what_transformers_itself_gives(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = tiny_model("bert", num_labels=3)
    found = encoder.find(str(folder))
    tokens = tokenize.load(found, tmp_path)
    reference = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ours = forward(folder, "torch", tmp_path).logits
    for text, row in zip(TEXTS, ours, strict=True):
        with torch.no_grad():
            ids = torch.tensor([tokens.encode(text, truncate=True).ids])
            assert np.abs(reference(ids).logits[0].numpy() - row).max() < 1e-4


def test_labels_come_from_the_config_and_multi_label_models_get_sigmoids(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    names = {0: "plot", 1: "acting", 2: "music"}
    folder = tiny_model("distilbert", id2label=names, label2id={}, problem_type="multi_label_classification")
    model = LocalModel.load(
        ModelSettings(engine="torch", device="cpu"), [TaskSpec("about", model=str(folder))], cache_dir=tmp_path
    )
    info = model.task("about")
    assert info.labels == ("plot", "acting", "music")
    assert info.multi_label
    task = model._tasks["about"]
    scores = task.head.probabilities(forward(folder, "torch", tmp_path))
    assert ((scores >= 0) & (scores <= 1)).all()
    assert not np.allclose(scores.sum(axis=1), 1, atol=1e-3)


def test_an_export_that_fails_falls_back_to_torch_and_says_so_loudly(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> int:
        raise RuntimeError("this operator has no ONNX form\n" + "a page of details\n" * 99)

    monkeypatch.setattr(onnx_engine, "export", broken)
    source = str(tiny_model("bert"))
    model = LocalModel.load(ModelSettings(device="cpu"), [TaskSpec("mood", model=source)], cache_dir=tmp_path)
    status = model.status()
    assert status["encoders"][0]["kind"] == "torch-fp32"
    assert "no ONNX form" in status["notes"][0]
    assert "details" not in status["notes"][0]
    assert "can't be exported" in caplog.text
    assert not list((tmp_path / "onnx").glob("*/")), "nothing half made is left behind"


def test_the_int8_model_is_built_once_and_found_again(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    found = encoder.find(str(tiny_model("bert")))
    said: list[str] = []
    first = artifact(found, tmp_path, said.append).folder
    assert said
    said.clear()
    second = artifact(found, tmp_path, said.append)
    assert (second.folder, said, second.notes) == (first, [], ())
    manifest = json.loads((first / "manifest.json").read_text())
    assert manifest["encoder"] == found.digest
    assert manifest["sha256"] == encoder.sha256_file(first / "model.onnx")


@pytest.mark.parametrize("damage", ["flip", "truncate", "no manifest", "no probes"])
def test_a_damaged_int8_model_is_built_again_and_says_so(
    damage: str, tiny_model: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = encoder.find(str(tiny_model("bert")))
    folder = artifact(found, tmp_path, quiet).folder
    file = folder / "model.onnx"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "truncate":
        file.write_bytes(data[:100])
    elif damage == "no probes":
        (folder / "probes.safetensors").unlink()
    else:
        (folder / "manifest.json").unlink()
    again = OnnxEngine(found, threads=1, cache_dir=tmp_path, progress=quiet)
    assert "built again" in again.notes[0]
    assert "built again" in caplog.text
    assert again.forward([[2, 5, 3]]).embeddings.shape == (1, 32)
    assert OnnxEngine(found, threads=1, cache_dir=tmp_path, progress=quiet).notes == ()


def test_processes_that_start_together_build_once(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    source = str(tiny_model("bert"))
    script = (
        "import sys; from pathlib import Path; from local_model import encoder; "
        "from local_model.onnx_engine import artifact; "
        "sys.stdin.readline(); artifact(encoder.find(sys.argv[1]), Path(sys.argv[2]), print)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, source, str(tmp_path / "c")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        outputs.append(process.communicate(timeout=120)[0])
        assert process.returncode == 0
    assert sum("exporting" in output for output in outputs) == 1


def test_weights_that_do_not_fit_the_config_are_refused(
    tiny_model: Callable[..., Path], edit_json: Callable[..., None], tmp_path: Path
) -> None:
    folder = tiny_model("bert", classifier=False)
    edit_json(folder / "config.json", architectures=["BertForSequenceClassification"])
    with pytest.raises(LoadError, match="do not fit"):
        forward(folder, "torch", tmp_path)


def test_onnx_on_a_gpu_is_refused_with_the_way_out(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(LoadError, match='engine = "torch"'):
        open_engine(encoder.find(str(tiny_model("bert"))), name="onnx", device="cuda", cache_dir=tmp_path)


def test_a_device_that_is_not_there_is_refused(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(LoadError, match="no CUDA device"):
        open_engine(encoder.find(str(tiny_model("bert"))), name="torch", device="cuda", cache_dir=tmp_path)


@pytest.mark.gpu
def test_on_cuda_bf16_answers_stay_close_to_fp32_alone_and_in_company(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    folder = tiny_model("bert", num_labels=3)
    found = encoder.find(str(folder))
    tokens = tokenize.load(found, tmp_path)
    ids = [tokens.encode(text, truncate=True).ids for text in TEXTS]
    reference = open_engine(found, name="torch", device="cpu", cache_dir=tmp_path).engine.forward(ids)
    engine = open_engine(found, device="cuda", cache_dir=tmp_path).engine
    assert engine.kind == "torch-bf16"
    together = engine.forward(ids)
    alone = np.concatenate([engine.forward([row]).embeddings for row in ids])
    assert (together.embeddings * reference.embeddings).sum(axis=1).min() > 0.99
    assert (together.embeddings * alone).sum(axis=1).min() > 0.999
    assert engine.status()["device_memory"]["allocated"] > 0


# --- the choice of an engine, with engines that are none


class Fake:
    """Answers each text by its first id; `off`: the share of texts that it gets another label for."""

    threads, max_items, max_tokens, recipe, device = 1, 8, 4_096, "1", "pretended"

    def __init__(self, kind: Kind, off: float, opened: list[str]) -> None:
        self.kind, self.off, self.opened = kind, off, opened
        opened.append(kind)

    def forward(self, batch: Any) -> Output:
        label = np.array([(len(ids) + sum(ids)) % 3 for ids in batch])
        if self.off:
            label = (label + 1) % 3
        return Output(np.ones((len(batch), 32), np.float32), np.eye(3, dtype=np.float32)[label] * 9)

    def status(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.opened.append(f"close {self.kind}")


@pytest.mark.parametrize(
    ("asked", "order"),
    [
        ({}, ("onnx-int8", "torch-fp32")),
        ({"precision": "int8"}, ("onnx-int8",)),
        ({"precision": "bf16"}, ("torch-bf16",)),
        ({"name": "torch"}, ("torch-fp32",)),
        ({"name": "torch", "precision": "fp8"}, ("torch-fp8",)),
        ({"name": "onnx"}, ("onnx-int8",)),
        ({"cuda": True}, ("torch-bf16",)),
        ({"cuda": True, "hidden": 1024}, ("torch-fp8", "torch-int8", "torch-bf16")),
        ({"cuda": True, "name": "torch", "precision": "int8"}, ("torch-int8",)),
    ],
)
def test_what_may_serve_follows_from_the_device_and_what_was_asked_for(
    asked: dict[str, Any], order: tuple[Kind, ...]
) -> None:
    defaults: dict[str, Any] = {"name": "auto", "cuda": False, "precision": "auto", "hidden": 384}
    assert candidates(**{**defaults, **asked}) == order


def test_onnx_in_another_precision_is_refused() -> None:
    with pytest.raises(LoadError, match="not bf16"):
        candidates("onnx", cuda=False, precision="bf16", hidden=384)


GOOD = Quality(9_000, 0.99, 0.3, 0.02)
BAD = Quality(9_000, 0.90, 0.9, 0.02)


@pytest.fixture
def tiny(tiny_model: Callable[..., Path]) -> encoder.Encoder:
    return encoder.find(str(tiny_model("bert", num_labels=3)))


def test_figures_that_come_with_the_artifact_decide_after_it_was_opened(tiny: encoder.Encoder) -> None:
    """The engine that fails is closed before the next one is opened."""
    opened: list[str] = []

    def make(kind: Kind) -> Made:
        return Made(Fake(kind, 0, opened), BAD if kind == "onnx-int8" else None)

    found = choose_and_open(tiny, ["onnx-int8", "torch-fp32"], {}, make, "no CUDA device")
    assert found.engine.kind == "torch-fp32"
    assert opened == ["onnx-int8", "close onnx-int8", "torch-fp32"]
    assert found.why.startswith("no CUDA device: torch-fp32; onnx-int8 fails the quality gate")
    assert found.notes == (), "what serves is without fault"


def test_a_head_that_fails_the_gate_keeps_its_engine_from_being_built(
    tiny: encoder.Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[str] = []
    known: dict[Kind, list[Quality]] = {"onnx-int8": [GOOD, BAD]}
    choose_and_open(tiny, ["onnx-int8", "torch-fp32"], known, lambda kind: Made(Fake(kind, 0, opened)), "")
    assert opened == ["torch-fp32"]
    assert "onnx-int8 fails the quality gate" in caplog.text


def test_a_named_engine_that_fails_serves_with_a_note_and_a_warning(
    tiny: encoder.Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    known: dict[Kind, list[Quality]] = {"onnx-int8": [BAD]}
    found = choose_and_open(tiny, ["onnx-int8"], known, lambda kind: Made(Fake(kind, 0, [])), "asked for by the config")
    assert found.engine.kind == "onnx-int8"
    assert "fails the quality gate" in found.notes[0]
    assert "fails the quality gate" in caplog.text


def test_auto_takes_no_engine_that_a_head_was_not_fitted_on(tmp_path: Path) -> None:
    from local_model.heads import save_head

    found = encoder.find()
    fitted: Any = (np.zeros((2, 384), np.float32), np.zeros(2, np.float32), 1.0, {})
    for name, kinds in {"both": ("onnx-int8", "torch-fp32"), "one": ("torch-fp32",)}.items():
        save_head(tmp_path / name, task=name, labels=("a", "b"), encoder=found, fitted=dict.fromkeys(kinds, fitted))
    both, one = tmp_path / "both", tmp_path / "one"
    opened = open_engine(found, device="cpu", cache_dir=tmp_path, heads=[both, one])
    assert opened.engine.kind == "torch-fp32"
    assert "no head for onnx-int8" in opened.why
    assert not (tmp_path / "onnx").exists(), "nothing is built in vain"


def test_precisions_of_a_gpu_are_measured_once_one_at_a_time(tiny: encoder.Encoder, tmp_path: Path) -> None:
    """An engine that can't be opened (no torchao) is no candidate; figures are kept, by device."""
    opened: list[str] = []

    def make(kind: Kind) -> Made:
        if kind == "torch-fp8":
            raise LoadError("install the gpu extra")
        return Made(Fake(kind, kind == "torch-int8", opened))

    kinds: list[Kind] = ["torch-fp8", "torch-int8", "torch-bf16"]
    found = measured(tiny, kinds, make, tmp_path, "Pretended GPU")
    assert opened == [f"{word}{kind}" for kind in ("torch-fp32", "torch-int8", "torch-bf16") for word in ("", "close ")]
    assert list(found) == ["torch-int8", "torch-bf16"]
    assert found["torch-int8"].label_agreement == 0
    assert found["torch-bf16"].label_agreement == 1
    assert all(quality.texts == 32 and quality.texts_per_second for quality in found.values())

    opened.clear()
    assert measured(tiny, kinds, make, tmp_path, "Pretended GPU") == found
    assert opened == []
    measured(tiny, kinds[1:], make, tmp_path, "another GPU")
    assert opened


@pytest.mark.parametrize(
    ("labels", "heads", "kind"), [(False, False, "torch-bf16"), (False, True, "torch-int8"), (True, False, "torch-fp8")]
)
def test_on_a_gpu_8_bits_are_taken_only_after_somebody_measured_them(
    labels: bool,
    heads: bool,
    kind: Kind,
    tiny: encoder.Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By `learn`, for a head; here, for a classifier. (Stand-ins for CUDA: this runs everywhere.)"""
    from local_model import torch_engine
    from local_model.heads import save_head

    speeds = {"torch-fp8": 3.0, "torch-int8": 2.0, "torch-bf16": 1.0, "torch-fp32": 0.5}
    monkeypatch.setattr(probes, "rate", lambda engine, _rows: speeds[engine.kind])

    def opened(_encoder: Any, *, precision: str, **_: Any) -> Fake:
        return Fake(f"torch-{precision}", 0, [])  # type: ignore[arg-type]

    monkeypatch.setattr(torch_engine, "TorchEngine", opened)
    wide = msgspec.structs.replace(tiny, hidden=1024, labels=tiny.labels if labels else None)
    fitted: Any = (np.zeros((2, 1024), np.float32), np.zeros(2, np.float32), 1.0, {})
    both: tuple[Kind, ...] = ("torch-int8", "torch-fp32")
    save_head(
        tmp_path / "head",
        task="t",
        labels=("a", "b"),
        encoder=wide,
        fitted=dict.fromkeys(both, fitted),
        quality={"torch-int8": GOOD},
    )
    folders = [tmp_path / "head"] if heads else []
    assert open_engine(wide, device="cuda", cache_dir=tmp_path, heads=folders).engine.kind == kind
    named = open_engine(wide, device="cuda", cache_dir=tmp_path, precision="fp8")
    assert named.engine.kind == "torch-fp8"


def test_a_model_too_large_for_fp32_is_not_compared_and_still_served(
    tiny: encoder.Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def make(kind: Kind) -> Made:
        if kind == "torch-fp32":
            raise LoadError("needs 200 GB")
        return Made(Fake(kind, 0, []))

    assert measured(tiny, ["torch-int8", "torch-bf16"], make, tmp_path, "small GPU") == {}
    assert "not compared" in caplog.text


def test_each_giant_has_one_door() -> None:
    """torch, transformers and onnxruntime are imported by the engines and by the network that they run, only."""
    doors = {"network.py", "torch_engine.py", "graphs.py", "onnx_graph.py"}
    giants = {"torch", "transformers", "onnxruntime", "onnx"}
    found = {}
    for file in Path(onnx_engine.__file__).parent.glob("*.py"):
        imported: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
        if imported & giants:
            found[file.name] = imported & giants
    assert set(found) == doors, found


def test_importing_the_package_imports_no_giant() -> None:
    script = (
        "import sys, local_model.model, local_model.fake; "
        "print([name for name in ('torch', 'transformers', 'onnxruntime', 'sklearn') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
