"""The CPU engine: the encoder as an int8 ONNX graph, one text per forward, a thread per core.

Dynamic int8 takes one activation scale for the whole batch, so in a batch 2 % of the labels change with their
neighbours. The graph therefore takes one text and no padding, which is also the faster layout on a CPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

# Since 1.31 a session keeps a device id and events for its vendor in the user's cache folder, unless this is set before
# the import (the function that should turn it off does not).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from local_model.encoder import Encoder, sha256_file
from local_model.engines import Kind, Output
from local_model.types import LoadError

if TYPE_CHECKING:
    from local_model.network import Network

log = logging.getLogger(__name__)

RECIPE = "int8-3"  # of export and quantization: a change makes new artifacts


class ExportFailed(LoadError):
    """torch could not export the model, or onnxruntime could not quantize or load it."""


class OnnxEngine:
    """One session, run by `threads` threads at once: `run` releases the GIL, each forward keeps to one core."""

    kind: Kind = "onnx-int8"
    device = "cpu"
    max_items = 1

    def __init__(self, encoder: Encoder, *, threads: int, cache_dir: Path, progress: Callable[[str], None]) -> None:
        self.threads = threads
        self.max_tokens = encoder.max_tokens
        self._artifact, self.notes = artifact(encoder, cache_dir, progress)
        self._session = _session(self._artifact / "model.onnx")
        self._manifest = json.loads((self._artifact / "manifest.json").read_text(encoding="utf-8"))
        self.recipe = RECIPE + ("-7bit" if self._manifest["reduce_range"] else "")

    def forward(self, batch: Sequence[Sequence[int]]) -> Output:
        """See `Engine.forward`. More than one text runs one after another: never together."""
        rows = [self._session.run(None, {"input_ids": np.array([ids], np.int64)}) for ids in batch]
        embeddings = np.concatenate([row[0] for row in rows])
        return Output(embeddings, np.concatenate([row[1] for row in rows]) if len(rows[0]) > 1 else None)

    def status(self) -> dict[str, Any]:
        return {
            "precision": "int8 weights and activations (dynamic, per channel)"
            + (", 7-bit weights: this CPU has no VNNI" if self._manifest["reduce_range"] else ""),
            "parameters": self._manifest["parameters"],
            "artifact_bytes": self._manifest["bytes"],
            "artifact_sha256": self._manifest["sha256"],
            "artifact_built_with": self._manifest["versions"],
        }


def artifact(encoder: Encoder, cache_dir: Path, progress: Callable[[str], None]) -> tuple[Path, tuple[str, ...]]:
    """The folder with the encoder's int8 graph, and notes. Made on first use: some seconds for a small encoder.

    Kept by digest, so another model never meets this one's artifact. Processes that start together build once. A file
    that is not what was built is built again, with a warning.
    """
    reduce_range = not has_vnni()
    name = f"{encoder.digest[:16]}-{encoder.pooling}-{RECIPE}{'-7bit' if reduce_range else ''}"
    root = cache_dir / "onnx"
    folder = root / name
    if _problem(folder) is None:  # asked without the lock: a good artifact may lie on a read-only disk
        return folder, ()
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root / f"{name}.lock", lambda: progress("waiting for another process that builds the int8 model")):
        if not folder.exists():
            _make(encoder, folder, reduce_range, progress)
            return folder, ()
        if (problem := _problem(folder)) is None:
            return folder, ()
        note = f"the cached int8 model in {folder} was damaged ({problem}) and was built again"
        log.warning("%s", note)
        shutil.rmtree(folder)
        _make(encoder, folder, reduce_range, progress)
        return folder, (note,)


def has_vnni() -> bool:
    """Without VNNI, x86 adds u8 x s8 products in 16 bits, which overflow: weights are then kept to 7 bits.

    Source: onnxruntime, "Quantize ONNX models", on reduce_range.
    """
    if platform.machine() not in {"x86_64", "AMD64"}:
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _problem(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        digest = sha256_file(folder / "model.onnx")
        return None if digest == manifest["sha256"] else "model.onnx has another sha256 than it was built with"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def _make(encoder: Encoder, folder: Path, reduce_range: bool, progress: Callable[[str], None]) -> None:
    """Export, quantize, prove that it loads, then move it to its place in one step."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        fp32, made = Path(scratch) / "fp32.onnx", Path(scratch) / "made"
        made.mkdir()
        try:
            with _quiet_exporters():
                progress(f"exporting {encoder.source} to ONNX (once)")
                parameters = export(encoder, fp32)
                progress("quantizing to int8 (once)")
                quantize(fp32, made / "model.onnx", reduce_range=reduce_range)
                _session(made / "model.onnx").run(None, {"input_ids": np.array([[0, 1, 2]], np.int64)})
        except LoadError:
            raise
        except Exception as error:
            # exporters raise whatever the model's code raises; their messages run over pages
            log.debug("the export of %s failed", encoder.source, exc_info=True)
            raise ExportFailed(_first_line(error)) from error
        manifest = {
            "encoder": encoder.digest,
            "recipe": RECIPE,
            "reduce_range": reduce_range,
            "sha256": sha256_file(made / "model.onnx"),
            "bytes": (made / "model.onnx").stat().st_size,
            "parameters": parameters,
            "versions": {name: version(name) for name in ("torch", "transformers", "onnx", "onnxruntime")},
        }
        (made / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        made.rename(folder)
    progress(f"built the int8 model in {time.monotonic() - started:.0f} s; it is kept in {folder}")


def export(encoder: Encoder, target: Path) -> int:
    """Write the fp32 graph: input_ids (1, length) to embedding (1, hidden), logits (1, labels).

    Gives the number of parameters.
    """
    import torch

    from local_model.network import build, one_text

    network = build(encoder)
    example = torch.full((1, 16), 5, dtype=torch.long)
    length = torch.export.Dim("length", min=2, max=encoder.limit)
    with torch.no_grad(), one_text(network):
        torch.onnx.export(
            network,
            (example,),
            str(target),
            dynamo=True,
            input_names=["input_ids"],
            # "embedding" is a name that the exporter gives to a node of its own
            output_names=["pooled", "class_logits"][: 1 + network.classifies],
            dynamic_shapes={"input_ids": {1: length}},
            verbose=False,
        )
    _same_as_torch(network, target, sorted({3, min(40, encoder.max_tokens), encoder.max_tokens}))
    return sum(parameter.numel() for parameter in network.parameters())


def _same_as_torch(network: Network, graph: Path, lengths: Sequence[int]) -> None:
    """An export may succeed with the example's length baked in: compare with torch at others."""
    import torch

    session = _session(graph)
    for length in lengths:
        ids = np.arange(length, dtype=np.int64)[None, :] % 20
        ours = session.run(None, {"input_ids": ids})
        with torch.no_grad():
            theirs = network(torch.from_numpy(ids))
        for mine, wanted in zip(ours, theirs, strict=True):
            if not np.allclose(mine, wanted.numpy(), rtol=1e-3, atol=1e-3):
                raise ExportFailed(f"the exported graph differs from torch at {length} tokens")


def quantize(source: Path, target: Path, *, reduce_range: bool) -> None:
    """Dynamic int8, a weight scale per output channel. `source` is rewritten on the way."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(source, load_external_data=False)
    # The quantizer transposes the weights of a Gemm and then trips over the exporter's notes of their old shapes.
    del graph.graph.value_info[:]
    onnx.save(graph, source)
    ranks = {weight.name: len(weight.dims) for weight in graph.graph.initializer}
    # A Gemm works on the pooled vector alone (pooler, classifier): nothing to win there, and scores to lose. Constants
    # of three dimensions (DeBERTa's positions) have no kernel that takes a scale per channel.
    kept = [
        node.name
        for node in graph.graph.node
        if node.op_type == "Gemm" or (node.op_type == "MatMul" and ranks.get(node.input[1], 2) != 2)
    ]
    quantize_dynamic(
        source,
        target,
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=reduce_range,
        nodes_to_exclude=kept,
    )


def _session(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; its warnings are about nodes it keeps on the CPU
    try:
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no public base
        raise ExportFailed(f"onnxruntime can't load {file.name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


@contextlib.contextmanager
def _lock(file: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Held by one process (or thread) at a time; let go by the system if it dies."""
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet_exporters() -> Iterator[None]:
    """The exporters warn about packages that are not needed, and log to the root logger, which would install a handler
    there that doubles every line of the application's own log.
    """
    root = logging.getLogger()
    handler = logging.NullHandler()
    root.addHandler(handler)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)
