"""What an engine is, and which one serves an encoder on this machine.

An engine turns token ids into embeddings (and logits, for a sequence classifier). Each lives in a module of its own
that imports its runtime when the engine is opened.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from local_model.encoder import Encoder
from local_model.types import LoadError, ModelError

log = logging.getLogger(__name__)

EngineName = Literal["auto", "onnx", "torch"]
#: What an engine computes with. A head and its temperature are fitted per kind.
Kind = Literal["onnx-int8", "torch-fp32", "torch-bf16"]


class Output(NamedTuple):
    """Rows in the order of the batch."""

    embeddings: NDArray[np.float32]  # (n, hidden), L2-normalised
    logits: NDArray[np.float32] | None  # (n, labels), for a sequence classifier


class EngineDead(ModelError):
    """The device is gone for good (a sticky CUDA error): only a new process helps."""


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


class Opened(NamedTuple):
    engine: Engine
    why: str
    notes: tuple[str, ...]


def open_engine(
    encoder: Encoder,
    *,
    name: EngineName = "auto",
    device: str = "auto",
    threads: int = 0,
    cache_dir: Path,
    progress: Callable[[str], None] | None = None,
) -> Opened:
    """Build or load the engine for `encoder`; blocks, for seconds on first use. `threads` 0: all cores.

    "auto" is onnx int8 on a CPU and torch on CUDA. An export that fails falls back to torch, with a warning and a note.
    """
    say = progress or (lambda _message: None)
    threads = threads or cores()
    cuda = device == "cuda" or device.startswith("cuda:") or (device == "auto" and name != "onnx" and has_cuda())
    if name == "onnx" and cuda:
        raise LoadError('engine = "onnx" serves the CPU here; use engine = "torch" (or "auto") with device = "cuda"')
    if name == "torch" or cuda:
        why = "asked for by the config" if name == "torch" else "a CUDA device is there"
        return Opened(
            _torch(encoder, device if device != "auto" else ("cuda" if cuda else "cpu"), threads, say), why, ()
        )

    from local_model.onnx_engine import ExportFailed, OnnxEngine

    try:
        engine = OnnxEngine(encoder, threads=threads, cache_dir=cache_dir, progress=say)
    except ExportFailed as error:
        note = f"{encoder.source} can't be exported to ONNX ({error}); served by torch on the CPU, which is slower"
        log.warning("%s", note)
        return Opened(_torch(encoder, "cpu", threads, say), "the ONNX export failed", (note,))
    why = "asked for by the config" if name == "onnx" else "no CUDA device: int8 on the CPU, one text per forward"
    return Opened(engine, why, engine.notes)


def _torch(encoder: Encoder, device: str, threads: int, say: Callable[[str], None]) -> Engine:
    from local_model.torch_engine import TorchEngine

    say(f"loading {encoder.source} into torch on {device}")
    return TorchEngine(encoder, device=device, threads=threads)


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
