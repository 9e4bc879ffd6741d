"""The CPU engine: the encoder as an int8 ONNX graph, one text per forward, a thread per core.

Dynamic int8 takes one activation scale for the whole batch, so in a batch 2 % of the labels change with their
neighbours. The graph therefore takes one text and no padding, which is also the faster layout on a CPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from safetensors import SafetensorError

from local_model import gate, probes, tokenize
from local_model.encoder import Encoder, sha256_file
from local_model.engines import ExportFailed, Kind, Output
from local_model.heads import model_head
from local_model.onnx_graph import Session, export, first_line, has_vnni, open_session, quantize, quiet_exporters
from local_model.types import LoadError

log = logging.getLogger(__name__)

RECIPE = "int8-4"  # of export and quantization: a change makes new artifacts
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
        self._session = None


class Artifact(NamedTuple):
    folder: Path
    manifest: dict[str, Any]
    session: Session
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
    session = open_session(folder / "model.onnx")
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


def _run(session: Session, batch: Sequence[Sequence[int]]) -> Output:
    """One text after another: never together."""
    rows = [session.run(None, {"input_ids": np.array([ids], np.int64)}) for ids in batch]
    embeddings = np.concatenate([row[0] for row in rows])
    return Output(embeddings, np.concatenate([row[1] for row in rows]) if len(rows[0]) > 1 else None)


def _make(encoder: Encoder, folder: Path, cache_dir: Path, reduce_range: bool, progress: Callable[[str], None]) -> None:
    """Export, quantize, let it answer the probe texts, then move it to its place in one step."""
    rows = probes.token_ids(tokenize.load(encoder, cache_dir))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        fp32, made = Path(scratch) / "fp32.onnx", Path(scratch) / "made"
        made.mkdir()
        try:
            with quiet_exporters():
                progress(f"exporting {encoder.source} to ONNX (once)")
                parameters = export(encoder, fp32)
                progress("quantizing to int8 (once)")
                quantize(fp32, made / "model.onnx", reduce_range=reduce_range)
                output = _run(open_session(made / "model.onnx"), rows)
                quality = None if encoder.labels is None else _quality(encoder, rows, output)
        except LoadError:
            raise
        except Exception as error:
            # exporters raise whatever the model's code raises; their messages run over pages
            log.debug("the export of %s failed", encoder.source, exc_info=True)
            raise ExportFailed(first_line(error)) from error
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
    from local_model.network import build, run

    fp32 = Output(*run(build(encoder), rows))
    head = model_head(encoder)
    return gate.measure(head.probabilities(output), head.probabilities(fp32))


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
