"""What an engine is, and which one serves an encoder on this machine.

An engine turns token ids into embeddings (and logits, for a sequence classifier). Each lives in a module of its own
that imports its runtime when the engine is opened.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from local_model.encoder import Encoder
from local_model.gate import Quality, choose, measure
from local_model.types import LoadError, ModelError

log = logging.getLogger(__name__)

EngineName = Literal["auto", "onnx", "torch"]
#: What an engine computes with. A head and its temperature are fitted per kind.
Kind = Literal["onnx-int8", "torch-fp32", "torch-bf16", "torch-int8", "torch-fp8"]
#: What torch computes with. "auto": fp32 on a CPU, bf16 on CUDA.
Precision = Literal["auto", "fp32", "bf16", "int8", "fp8"]
KINDS: dict[Precision, Kind] = {"fp32": "torch-fp32", "bf16": "torch-bf16", "int8": "torch-int8", "fp8": "torch-fp8"}
PRECISIONS = {kind: precision for precision, kind in KINDS.items()}
#: Below this width a GPU's 8-bit products win nothing over bf16, and compiling them takes minutes: "auto" does not try.
EIGHT_BIT_FROM = 1024


class Output(NamedTuple):
    """Rows in the order of the batch."""

    embeddings: NDArray[np.float32]  # (n, hidden), L2-normalised
    logits: NDArray[np.float32] | None  # (n, labels), for a sequence classifier


def together(outputs: Sequence[Output]) -> Output:
    """The rows of all, in order."""
    if len(outputs) == 1:
        return outputs[0]
    logits = [output.logits for output in outputs if output.logits is not None]
    embeddings = np.concatenate([output.embeddings for output in outputs])
    return Output(embeddings, np.concatenate(logits) if logits else None)


class EngineDead(ModelError):
    """The device is gone for good (a sticky CUDA error): only a new process helps."""


class ExportFailed(LoadError):
    """The model has no ONNX form, or onnxruntime could not quantize or load it: torch serves it."""


class Engine(Protocol):
    """The seam. `threads` threads may call `forward` at once, each with at most `max_items` texts and about
    `max_tokens` tokens, padding counted.
    """

    kind: Kind
    recipe: str  # how it computes, beyond its kind: part of a cached answer's identity
    device: str
    threads: int
    max_items: int
    max_tokens: int

    def forward(self, batch: Sequence[Sequence[int]]) -> Output: ...

    def status(self) -> dict[str, Any]:
        """Precision, parameters, bytes, device memory: what `/v1/status` shows."""
        ...

    def close(self) -> None:
        """Give the device's memory back. Nothing may be computed after it."""
        ...


class Opened(NamedTuple):
    engine: Engine
    why: str
    notes: tuple[str, ...]


class Made(NamedTuple):
    """An engine just opened. `quality`: against fp32, if what was built tells it."""

    engine: Engine
    quality: Quality | None = None
    notes: tuple[str, ...] = ()


def open_engine(
    encoder: Encoder,
    *,
    name: EngineName = "auto",
    device: str = "auto",
    threads: int = 0,
    precision: Precision = "auto",
    cache_dir: Path,
    progress: Callable[[str], None] | None = None,
    heads: Sequence[Path] = (),
) -> Opened:
    """Build or load the engine for `encoder`; blocks, for seconds on first use. `threads` 0: all cores.

    "auto" is the fastest engine that passes the quality gate (local_model.gate) and that every head in `heads`, the
    folders of the tasks on this encoder, was fitted on. An engine or precision that is named is taken, with a warning
    if it fails. An export that fails falls back to torch, with a warning and a note. Raises LoadError.
    """
    say = progress or (lambda _message: None)
    threads = threads or cores()
    where = place(name, device)
    cuda = where.startswith("cuda")

    def make(kind: Kind) -> Made:
        if kind == "onnx-int8":
            from local_model.onnx_engine import OnnxEngine

            engine = OnnxEngine(encoder, threads=threads, cache_dir=cache_dir, progress=say)
            return Made(engine, engine.quality, engine.notes)
        from local_model.torch_engine import TorchEngine

        say(f"loading {encoder.source} into torch on {where}")
        return Made(TorchEngine(encoder, device=where, threads=threads, precision=PRECISIONS[kind]))

    possible = candidates(name, cuda=cuda, precision=precision, hidden=encoder.hidden)
    order, known = of_heads(possible, heads)
    without = [kind for kind in possible if kind not in order]
    if cuda and encoder.labels is not None and len(order) > 1:
        for kind, quality in measured(encoder, order, make, cache_dir, _device_name(where)).items():
            known.setdefault(kind, []).append(quality)
    if cuda:  # 8 bits nobody measured serve only who names them
        order = tuple(kind for kind in order if known.get(kind) or kind == order[-1])
    named = name != "auto" or precision != "auto"
    reason = "asked for by the config" if named else "a CUDA device is there" if cuda else "no CUDA device"
    if without:
        reason += f", no head for {', '.join(without)}"
    return choose_and_open(encoder, order, known, make, reason)


def place(name: EngineName, device: str) -> str:
    """The device that "auto" stands for."""
    if device != "auto":
        return device
    return "cuda" if name != "onnx" and has_cuda() else "cpu"


def of_heads(possible: tuple[Kind, ...], heads: Sequence[Path]) -> tuple[tuple[Kind, ...], dict[Kind, list[Quality]]]:
    """The candidates that every head was fitted on, and what the heads know of them."""
    if not heads:
        return possible, {}
    from local_model.heads import qualities

    known = qualities(heads, possible)
    return tuple(known) or possible, known  # none: loading a head says what is missing


def candidates(name: EngineName, *, cuda: bool, precision: Precision, hidden: int) -> tuple[Kind, ...]:
    """What may serve, usually the fastest first; the last is the one that loses nothing. Raises LoadError."""
    if name == "onnx" and cuda:
        raise LoadError('engine = "onnx" serves the CPU here; use engine = "torch" (or "auto") with device = "cuda"')
    if name == "onnx" and precision not in ("auto", "int8"):
        raise LoadError(f'engine = "onnx" computes in int8, not {precision}: use engine = "torch"')
    if name == "onnx" or (name == "auto" and not cuda and precision == "int8"):
        return ("onnx-int8",)
    if precision != "auto":
        return (KINDS[precision],)
    if cuda:
        return ("torch-fp8", "torch-int8", "torch-bf16") if hidden >= EIGHT_BIT_FROM else ("torch-bf16",)
    return ("torch-fp32",) if name == "torch" else ("onnx-int8", "torch-fp32")


def choose_and_open(
    encoder: Encoder,
    order: Sequence[Kind],
    known: Mapping[Kind, Sequence[Quality]],
    make: Callable[[Kind], Made],
    reason: str,
) -> Opened:
    """Open the gate's choice; where the figures come with what was built, choose again with them."""
    notes: list[str] = []
    figures = {kind: list(each) for kind, each in known.items()}
    judged: set[Kind] = set()
    while True:
        kind = choose(order, figures).kind
        try:
            made = make(kind)
        except ExportFailed as error:
            note = f"{encoder.source} can't be exported to ONNX ({error}); served by torch on the CPU, which is slower"
            log.warning("%s", note)
            notes.append(note)
            order, reason = [each for each in order if each != kind] or ["torch-fp32"], "the ONNX export failed"
            continue
        if made.quality is not None and kind not in judged:
            judged.add(kind)
            figures.setdefault(kind, []).append(made.quality)
            if choose(order, figures).kind != kind:
                made.engine.close()
                continue
        break
    choice = choose(order, figures)
    for each, failure in choice.failed.items():
        log.warning("%s: %s", encoder.source, failure)
        if each == kind:
            notes.append(f"{encoder.source}: {failure}")
    return Opened(made.engine, f"{reason}: {choice.why}", (*notes, *made.notes))


def measured(
    encoder: Encoder, kinds: Sequence[Kind], make: Callable[[Kind], Made], cache_dir: Path, device_name: str
) -> dict[Kind, Quality]:
    """A sequence classifier's figures on this device, against fp32 on it, by the probe texts. Kept in `cache_dir`
    until the libraries change.

    Each engine is opened, timed and closed, one at a time. One that can't be opened (LoadError) is left out.
    """
    from local_model import probes, tokenize
    from local_model.heads import model_head

    where = re.sub(r"[^A-Za-z0-9.]+", "-", f"{device_name} torch {_version('torch')} torchao {_version('torchao')}")
    file = cache_dir / "gate" / f"{encoder.digest[:16]}-{encoder.max_tokens}-{where}.json"
    kept: dict[Kind, Quality | None] = {}  # None: it can't be opened here
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        kept = msgspec.json.decode(file.read_bytes(), type=dict[Kind, Quality | None])
    missing = [kind for kind in kinds if kind not in kept]
    if not missing:
        return {kind: quality for kind in kinds if (quality := kept[kind]) is not None}
    rows = probes.token_ids(tokenize.load(encoder, cache_dir))
    head = model_head(encoder)

    def ask(kind: Kind) -> tuple[NDArray[np.float32], float]:
        engine = make(kind).engine
        try:
            return head.probabilities(probes.run(engine, rows)), probes.rate(engine, rows)
        finally:
            engine.close()

    try:
        fp32, _ = ask("torch-fp32")
    except (LoadError, MemoryError) as error:
        log.warning(
            "%s does not run in fp32 on %s, so its precisions are not compared: %s", encoder.source, device_name, error
        )
        return {}
    for kind in missing:
        try:
            mine, speed = ask(kind)
        except MemoryError:
            log.info("%s is no candidate for %s now: it ran out of memory", kind, encoder.source)
        except LoadError as error:
            log.info("%s is no candidate for %s: %s", kind, encoder.source, error)
            kept[kind] = None
        else:
            kept[kind] = measure(mine, fp32, texts_per_second=speed)
    with contextlib.suppress(OSError):  # a folder that can't be written: it is measured again next time
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n")
        part.replace(file)
    return {kind: quality for kind in kinds if (quality := kept.get(kind)) is not None}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


def _device_name(device: str) -> str:
    """As the driver has it: torch need not be started to know what was measured before."""
    import pynvml

    try:
        pynvml.nvmlInit()
        index = int(device.partition(":")[2] or 0)
        return str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index)))
    except (pynvml.NVMLError, ValueError):
        return device


def has_cuda() -> bool:
    """Whether an NVIDIA driver answers; asked without importing torch, which takes a second."""
    import pynvml

    try:
        pynvml.nvmlInit()
        found: int = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return False
    if not found:
        return False
    from local_model.torch_engine import cuda_available

    return cuda_available()


def cores() -> int:
    """Cores this process may use: its affinity mask, and its container's CPU quota (cgroup v2)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 here
    return count
