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
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from safetensors import SafetensorError

# Since 1.31 a session keeps a device id and events for its vendor in the user's cache folder, unless this is set before
# the import (the function that should turn it off does not).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from local_model import gate, probes, tokenize
from local_model.encoder import Encoder, sha256_file
from local_model.engines import ExportFailed, Kind, Output
from local_model.heads import model_head
from local_model.types import LoadError

if TYPE_CHECKING:
    from local_model.network import Network

log = logging.getLogger(__name__)

RECIPE = "int8-3"  # of export and quantization: a change makes new artifacts
FILES = "2"  # of what lies beside the graph: a change makes new artifacts, of the same answers


class OnnxEngine:
    """One session, run by `threads` threads at once: `run` releases the GIL, each forward keeps to one core."""

    kind: Kind = "onnx-int8"
    device = "cpu"
    max_items = 1

    def __init__(self, encoder: Encoder, *, threads: int, cache_dir: Path, progress: Callable[[str], None]) -> None:
        self.threads = threads
        self.max_tokens = encoder.max_tokens
        self._artifact, self._manifest, self._session, self.notes = artifact(encoder, cache_dir, progress)
        self.recipe = RECIPE + ("-7bit" if self._manifest["reduce_range"] else "")

    @property
    def quality(self) -> gate.Quality | None:
        """A sequence classifier's, against fp32 on the probe texts; an encoder's depends on the head."""
        known = self._manifest.get("quality")
        return None if known is None else msgspec.convert(known, gate.Quality)

    def forward(self, batch: Sequence[Sequence[int]]) -> Output:
        """See `Engine.forward`. More than one text runs one after another."""
        return _run(self._session, batch)

    def status(self) -> dict[str, Any]:
        return {
            "precision": "int8 weights and activations (dynamic, per channel)"
            + (", 7-bit weights: this CPU has no VNNI" if self._manifest["reduce_range"] else ""),
            "parameters": self._manifest["parameters"],
            "artifact_bytes": self._manifest["bytes"],
            "artifact_sha256": self._manifest["sha256"],
            "artifact_built_with": self._manifest["versions"],
        }

    def close(self) -> None:
        del self._session


class Artifact(NamedTuple):
    folder: Path
    manifest: dict[str, Any]
    session: ort.InferenceSession
    notes: tuple[str, ...]


class _Damaged(LoadError):
    """The artifact is not what was built."""


def artifact(encoder: Encoder, cache_dir: Path, progress: Callable[[str], None]) -> Artifact:
    """The encoder's int8 graph, loaded. Made on first use: some seconds for a small encoder.

    Kept by digest, so another model never meets this one's artifact. Processes that start together build once. One that
    is not what was built, or answers the probe texts quite otherwise, is built again, with a warning; one that answers
    them a little otherwise is used, with a warning.
    """
    reduce_range = not has_vnni()
    name = f"{encoder.digest[:16]}-{encoder.pooling}-{RECIPE}{'-7bit' if reduce_range else ''}-{FILES}"
    root = cache_dir / "onnx"
    folder = root / name
    with contextlib.suppress(_Damaged):  # asked without the lock: a good artifact may lie on a read-only disk
        return _load(folder)
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root / f"{name}.lock", lambda: progress("waiting for another process that builds the int8 model")):
        if not folder.exists():
            _make(encoder, folder, cache_dir, reduce_range, progress)
            return _load(folder)
        try:
            return _load(folder)
        except _Damaged as problem:
            note = f"the cached int8 model in {folder} was damaged ({problem}) and was built again"
        log.warning("%s", note)
        shutil.rmtree(folder)
        _make(encoder, folder, cache_dir, reduce_range, progress)
        return _load(folder)._replace(notes=(note,))


def _load(folder: Path) -> Artifact:
    """Check it, open it, and ask it the probe texts (as token ids, so that no tokenizer is needed). Raises _Damaged."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for file, digest in (("model.onnx", manifest["sha256"]), ("probes.safetensors", manifest["probes_sha256"])):
            if sha256_file(folder / file) != digest:
                raise _Damaged(f"{file} has another sha256 than it was built with")
        rows, then = probes.load(folder / "probes.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _Damaged(f"{type(error).__name__}: {error}") from error
    session = _session(folder / "model.onnx")
    off = probes.distance(_run(session, rows).embeddings, then)
    if off > probes.BROKEN:
        raise _Damaged(f"its embeddings of the probe texts are off by {off:.2g}")
    if off <= probes.STEADY:
        return Artifact(folder, manifest, session, ())
    note = (
        f"the int8 model in {folder} embeds the probe texts otherwise than when it was built (by up to {off:.3f}): "
        "another processor, or another version of onnxruntime, rounds differently; heads that were fitted there may be "
        "off: run `crossover learn` here"
    )
    log.warning("%s", note)
    return Artifact(folder, manifest, session, (note,))


def _run(session: ort.InferenceSession, batch: Sequence[Sequence[int]]) -> Output:
    """One text after another: never together."""
    rows = [session.run(None, {"input_ids": np.array([ids], np.int64)}) for ids in batch]
    embeddings = np.concatenate([row[0] for row in rows])
    return Output(embeddings, np.concatenate([row[1] for row in rows]) if len(rows[0]) > 1 else None)


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


def _make(encoder: Encoder, folder: Path, cache_dir: Path, reduce_range: bool, progress: Callable[[str], None]) -> None:
    """Export, quantize, let it answer the probe texts, then move it to its place in one step."""
    rows = probes.token_ids(tokenize.load(encoder, cache_dir))
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
                output = _run(_session(made / "model.onnx"), rows)
                quality = None if encoder.labels is None else _quality(encoder, rows, output)
        except LoadError:
            raise
        except Exception as error:
            # exporters raise whatever the model's code raises; their messages run over pages
            log.debug("the export of %s failed", encoder.source, exc_info=True)
            raise ExportFailed(_first_line(error)) from error
        probes.save(made / "probes.safetensors", rows, output)
        manifest = {
            "encoder": encoder.digest,
            "recipe": RECIPE,
            "reduce_range": reduce_range,
            "sha256": sha256_file(made / "model.onnx"),
            "probes_sha256": sha256_file(made / "probes.safetensors"),
            "bytes": (made / "model.onnx").stat().st_size,
            "parameters": parameters,
            "versions": {name: version(name) for name in ("torch", "transformers", "onnx", "onnxruntime")},
        }
        if quality is not None:
            manifest["quality"] = msgspec.to_builtins(quality)
        (made / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        made.rename(folder)
    progress(f"built the int8 model in {time.monotonic() - started:.0f} s; it is kept in {folder}")


def _quality(encoder: Encoder, rows: Sequence[Sequence[int]], output: Output) -> gate.Quality:
    """A sequence classifier's int8 answers to the probe texts against torch's in fp32."""
    import torch

    from local_model.network import build

    network = build(encoder)
    with torch.inference_mode():
        parts = [network(torch.tensor([list(row)])) for row in rows]
    fp32 = Output(*(torch.cat(part).numpy() for part in zip(*parts, strict=True)))
    head = model_head(encoder)
    return gate.measure(head.probabilities(output), head.probabilities(fp32))


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
