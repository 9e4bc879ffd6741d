"""A task's head: a linear layer on the encoder's embedding, or the logits of a model that has its own.

On disk a head is a folder: `manifest.json` and one safetensors file per engine kind, because an embedding differs a
little from engine to engine (on another engine's embeddings 2 % of the decisions flip).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from local_model.encoder import Encoder
from local_model.engines import Kind, Output
from local_model.gate import Quality
from local_model.types import LoadError

log = logging.getLogger(__name__)

SCHEMA = 1
#: Engine kinds near enough to lend each other a head (bf16 against fp32: 0.2 % of decisions flip), with a note.
NEAR: dict[Kind, Kind] = {"torch-bf16": "torch-fp32", "torch-fp32": "torch-bf16"}


class LabelEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    description: str = ""


class EncoderEntry(msgspec.Struct, frozen=True):
    source: str
    digest: str


class ProbesEntry(msgspec.Struct, frozen=True):
    """The file with the head's probabilities of the probe texts, as the engine gave them where it was fitted."""

    file: str
    sha256: str


class EngineEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """The head as fitted on one engine kind. `quality` None: nobody held it against fp32."""

    file: str
    sha256: str
    temperature: float
    metrics: dict[str, float] = {}
    quality: Quality | None = None
    probes: ProbesEntry | None = None


class Manifest(msgspec.Struct, frozen=True):
    """manifest.json"""

    schema: int
    task: str
    labels: tuple[LabelEntry, ...]
    multi_label: bool
    encoder: EncoderEntry
    engines: dict[str, EngineEntry]
    provenance: dict[str, Any] = {}


class Head(msgspec.Struct, frozen=True):
    """What turns an engine's output into calibrated probabilities. No weight: the model's own logits are taken."""

    labels: tuple[str, ...]
    multi_label: bool
    temperature: float
    digest: str
    descriptions: dict[str, str] = {}
    weight: NDArray[np.float32] | None = None  # (labels, hidden)
    bias: NDArray[np.float32] | None = None  # (labels,)
    notes: tuple[str, ...] = ()
    probes: NDArray[np.float32] | None = None  # (32, labels): its answers to the probe texts where it was fitted

    def probabilities(self, output: Output) -> NDArray[np.float32]:
        """(n, labels) for n texts. A row that is not finite stays so: the caller refuses it (`NotFinite`)."""
        with np.errstate(invalid="ignore"):  # infinity - infinity: the NaN is what is wanted
            if self.weight is not None and self.bias is not None:
                # Each row by itself: a product of all rows at once rounds differently with their number.
                logits = np.matmul(output.embeddings[:, None, :], self.weight.T)[:, 0] + self.bias
            elif output.logits is not None:
                logits = output.logits
            else:
                raise ValueError("this model gives no logits, the task needs a head")
            scaled = logits.astype(np.float64) / self.temperature
            return (sigmoid(scaled) if self.multi_label else softmax(scaled)).astype(np.float32)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis; the row's maximum is taken off first, so that logits of any size give no overflow."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + e^-x), without overflow on either side."""
    small = np.exp(-np.abs(logits))
    result: NDArray[np.float64] = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    return result


def model_head(encoder: Encoder) -> Head:
    """The head of a sequence-classification model: its own logits, uncalibrated (temperature 1)."""
    if encoder.labels is None:
        raise LoadError(
            f"{encoder.source} is an encoder without labels: give the task a head (`crossover learn` makes one), "
            "or a sequence-classification model"
        )
    return Head(
        labels=encoder.labels,
        multi_label=encoder.multi_label,
        temperature=1.0,
        digest=encoder.digest,
        notes=(f"{encoder.source}: confidences are the model's own, nothing calibrated them",),
    )


def save_head(
    folder: Path,
    *,
    task: str,
    labels: Sequence[str],
    encoder: Encoder,
    fitted: Mapping[Kind, tuple[NDArray[np.float32], NDArray[np.float32], float, Mapping[str, float]]],
    descriptions: Mapping[str, str] | None = None,
    multi_label: bool = False,
    provenance: Mapping[str, Any] | None = None,
    quality: Mapping[Kind, Quality] | None = None,
    probes: Mapping[Kind, NDArray[np.float32]] | None = None,
) -> Manifest:
    """Write a head folder. `fitted`: engine kind -> weight (labels, hidden), bias (labels,), temperature, metrics.

    `quality`: each against fp32. `probes`: (32, labels) probabilities of the probe texts (local_model.probes).
    """
    folder.mkdir(parents=True, exist_ok=True)
    engines: dict[str, EngineEntry] = {}
    for kind, (weight, bias, temperature, metrics) in fitted.items():
        data = save_tensors(
            {
                "weight": np.ascontiguousarray(weight, dtype=np.float32),
                "bias": np.ascontiguousarray(bias, dtype=np.float32),
            }
        )
        _replace(folder / f"{kind}.safetensors", data)
        scores = (probes or {}).get(kind)
        engines[kind] = EngineEntry(
            file=f"{kind}.safetensors",
            sha256=hashlib.sha256(data).hexdigest(),
            temperature=temperature,
            metrics=dict(metrics),
            quality=(quality or {}).get(kind),
            probes=None if scores is None else _save_probes(folder, kind, scores),
        )
    manifest = Manifest(
        schema=SCHEMA,
        task=task,
        labels=tuple(LabelEntry(name, (descriptions or {}).get(name, "")) for name in labels),
        multi_label=multi_label,
        encoder=EncoderEntry(source=encoder.source, digest=encoder.digest),
        engines=engines,
        provenance=dict(provenance or {}),
    )
    _replace(folder / "manifest.json", msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return manifest


def _save_probes(folder: Path, kind: Kind, scores: NDArray[np.float32]) -> ProbesEntry:
    data = save_tensors({"probabilities": np.ascontiguousarray(scores, dtype=np.float32)})
    _replace(folder / f"{kind}.probes.safetensors", data)
    return ProbesEntry(f"{kind}.probes.safetensors", hashlib.sha256(data).hexdigest())


def read_manifest(folder: Path) -> Manifest:
    """Raises LoadError that names the file and what is wrong in it."""
    file = folder / "manifest.json"
    try:
        manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
    except OSError as error:
        raise LoadError(f"{file} can't be read ({error.strerror}); `crossover learn` makes a head folder") from error
    except msgspec.MsgspecError as error:
        raise LoadError(f"{file} is not a head's manifest: {error}") from error
    if manifest.schema != SCHEMA:
        raise LoadError(
            f"{file} has schema {manifest.schema}, this version reads {SCHEMA}: run `crossover learn` again"
        )
    names = [label.name for label in manifest.labels]
    if len(names) < 2 or len(set(names)) != len(names):
        raise LoadError(f"{file}: a head needs two or more labels, each once")
    return manifest


def qualities(folders: Sequence[Path], kinds: Sequence[Kind]) -> dict[Kind, list[Quality]]:
    """Of `kinds` those that every head in `folders` has (or can borrow, see NEAR), in their order: the figures known.

    A borrowed head has none. Raises LoadError.
    """
    manifests = [read_manifest(folder) for folder in folders]
    return {
        kind: [
            entry.quality for m in manifests if (entry := m.engines.get(kind)) is not None and entry.quality is not None
        ]
        for kind in kinds
        if all(kind in m.engines or NEAR.get(kind) in m.engines for m in manifests)
    }


def load_head(folder: Path, kind: Kind, encoder: Encoder) -> Head:
    """The head for one engine kind; LoadError if it is missing, altered, or was fitted on another encoder."""
    manifest = read_manifest(folder)
    if manifest.encoder.digest != encoder.digest:
        raise LoadError(
            f"{folder}: this head was fitted on {manifest.encoder.source} ({manifest.encoder.digest[:12]}), the "
            f"encoder here is {encoder.source} ({encoder.digest[:12]}): run `crossover learn` again"
        )
    entry = manifest.engines.get(kind)
    notes: tuple[str, ...] = ()
    if entry is None and kind in NEAR and NEAR[kind] in manifest.engines:
        entry = manifest.engines[NEAR[kind]]
        notes = (f"{folder.name}: fitted on {NEAR[kind]}, served on {kind}: confidences are off by a little",)
        log.warning("%s", notes[0])
    if entry is None:
        raise LoadError(
            f"{folder} has no head for the engine {kind}, only for {', '.join(sorted(manifest.engines)) or 'none'}: "
            "run `crossover learn` on this machine, or set [model] engine to one that it has"
        )
    weight, bias = _tensors(folder, entry, (len(manifest.labels), encoder.hidden))
    own = not notes  # a borrowed head answers the probes a little differently, as the note says
    if not 0 < entry.temperature < float("inf"):
        raise LoadError(f"{folder / 'manifest.json'}: temperature must be above 0")
    return Head(
        labels=tuple(label.name for label in manifest.labels),
        multi_label=manifest.multi_label,
        temperature=entry.temperature,
        digest=entry.sha256,
        descriptions={label.name: label.description for label in manifest.labels if label.description},
        weight=weight,
        bias=bias,
        notes=notes,
        probes=_probes(folder, entry.probes, len(manifest.labels)) if own and entry.probes else None,
    )


def _probes(folder: Path, entry: ProbesEntry, labels: int) -> NDArray[np.float32]:
    file, tensors = _read(folder, entry)
    scores = tensors.get("probabilities")
    if scores is None or scores.ndim != 2 or scores.shape[1] != labels:
        raise LoadError(f"{file} holds no probabilities of the probe texts for {labels} labels")
    return scores


def _tensors(
    folder: Path, entry: EngineEntry, shape: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    file, tensors = _read(folder, entry)
    try:
        weight, bias = tensors["weight"], tensors["bias"]
    except KeyError as error:
        raise LoadError(f"{file} is not a head: it has no {error}") from error
    if weight.shape != shape or bias.shape != shape[:1]:
        raise LoadError(f"{file}: weight {weight.shape} and bias {bias.shape} do not fit {shape} (labels, hidden)")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise LoadError(f"{file} holds values that are not finite")
    return weight.astype(np.float32), bias.astype(np.float32)


def _read(folder: Path, entry: EngineEntry | ProbesEntry) -> tuple[Path, dict[str, NDArray[np.float32]]]:
    """The tensors of a file that the manifest describes, and its path. Raises LoadError if it is not that file."""
    file = folder / entry.file
    if Path(entry.file).name != entry.file:
        raise LoadError(f"{folder / 'manifest.json'}: {entry.file!r} is not a file name")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise LoadError(f"{file} can't be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise LoadError(
            f"{file} is not the file that manifest.json describes (sha256 differs): restore it or learn again"
        )
    try:
        return file, load_tensors(data)
    except SafetensorError as error:
        raise LoadError(f"{file} does not hold tensors: {error}") from error


def _replace(file: Path, data: bytes) -> None:
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(data)
    part.replace(file)
