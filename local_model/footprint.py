"""How much memory models will take, known from their files before they are loaded, and what would fit instead.

Weights: parameters x bits. Activations: an upper bound for the largest batch. Held to the rule of thumb that
7 billion parameters take 14 GB in 16 bits and about 4 GB in 4 bits.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from local_model.encoder import Encoder
from local_model.types import LoadError

Weights = Literal["fp32", "bf16", "int8", "fp8", "int4"]
#: Bits of a weight with its share of the scales: one for a row is next to nothing; int4 has 16 bits for 32 weights.
BITS: dict[Weights, float] = {"fp32": 32, "bf16": 16, "int8": 8, "fp8": 8, "int4": 4.5}
#: What engines here compute with, best first; int8 on a CPU is the onnx engine's. int4 is served by none.
SERVED: dict[str, tuple[Weights, ...]] = {"cpu": ("fp32", "bf16", "int8"), "cuda": ("fp32", "bf16", "int8", "fp8")}
#: Tokens in the largest batch of the torch engine. The onnx engine has one text per thread.
BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384}
#: Values that a layer holds at once for a token, in multiples of the hidden size: its input and output, query, key,
#: value and attention (6), the wide part before and after its activation (8), and that much again not yet reused.
LIVE = 28
#: Tensors (heads, length, length) at once where attention is written out; fused attention needs its mask alone.
WRITTEN_OUT = 4
#: CUDA's context with the libraries' code and workspaces: a usual figure rounded up, not measured here.
CUDA_CONTEXT = 800_000_000


class Shape(NamedTuple):
    """What the estimate needs of a model."""

    parameters: int
    convertible: int  # of them, in the encoder's linear layers: what int8 and fp8 convert on CUDA
    hidden: int
    layers: int
    heads: int
    written_out: bool  # an attention of its own, without fused kernels
    max_tokens: int


class Room(NamedTuple):
    free: int  # bytes
    where: str  # for people: "this machine has"


def estimate(parameters: int, precision: Weights, *, kept: int = 0) -> int:
    """Bytes of the weights. `kept`: how many of the parameters stay in 16 bits where the others get fewer."""
    bits = BITS[precision]
    return math.ceil(((parameters - kept) * bits + kept * max(bits, BITS["bf16"])) / 8)


def activations(shape: Shape, tokens: int, *, value_bytes: int, written_out: bool) -> int:
    """An upper bound in bytes for one forward of `tokens` tokens, in texts of the longest kind.

    tokens x hidden x (LIVE + layers), since a classifier keeps each layer's output, plus per token and text length
    either heads x WRITTEN_OUT values or a mask. Measured on a CPU, 8 x 256 tokens: MiniLM 58 of 109 MB in fp32, 30
    of 55 MB in bf16; a DeBERTa of its size 134 of 157 MB in fp32.
    """
    attention = shape.heads * WRITTEN_OUT if written_out else 1
    return tokens * (shape.hidden * (LIVE + shape.layers) + shape.max_tokens * attention) * value_bytes


def need(shape: Shape, precision: Weights, *, device: str, threads: int = 1) -> int:
    """Bytes to serve one model, its largest batch included, CUDA's context not."""
    cuda = device.startswith("cuda")
    onnx = precision == "int8" and not cuda
    tokens = shape.max_tokens * threads if onnx else max(BATCH_TOKENS["cuda" if cuda else "cpu"], shape.max_tokens)
    value_bytes = 4 if precision == "fp32" or onnx else 2
    batch = activations(shape, tokens, value_bytes=value_bytes, written_out=shape.written_out or onnx)
    kept = shape.parameters - shape.convertible if cuda else 0
    return estimate(shape.parameters, precision, kept=kept) + batch


def shape_of(encoder: Encoder) -> Shape:
    """From config.json and the headers of the safetensors files: no weight is loaded."""
    from safetensors import safe_open

    config: dict[str, Any] = json.loads((encoder.path / "config.json").read_text(encoding="utf-8"))
    parameters = convertible = 0
    for file in sorted(encoder.path.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no dict
                sides = weights.get_slice(name).get_shape()
                parameters += math.prod(sides)
                if len(sides) == 2 and re.search(r"(^|\.)layers?\.\d+\.", name):
                    convertible += math.prod(sides)
    return Shape(
        parameters=parameters,
        convertible=convertible,
        hidden=encoder.hidden,
        layers=int(config.get("num_hidden_layers") or config.get("n_layers") or 1),
        heads=int(config.get("num_attention_heads") or config.get("n_heads") or 1),
        written_out=encoder.model_type.startswith("deberta"),
        max_tokens=encoder.max_tokens,
    )


def require_fits(
    encoders: Sequence[Encoder], *, device: str, precision: Weights, threads: int = 1, room: Room | None = None
) -> None:
    """Raises LoadError if the encoders do not fit `device` together: what they need, what is there, what would fit.

    `room`: what to assume is free; None: what is free now.
    """
    shapes = {encoder.source: shape_of(encoder) for encoder in encoders}
    room = room or available(device)
    kind = "cuda" if device.startswith("cuda") else "cpu"
    context = CUDA_CONTEXT if kind == "cuda" else 0

    def total(which: Weights) -> int:
        return context + sum(need(shape, which, device=device, threads=threads) for shape in shapes.values())

    if total(precision) <= room.free:
        return
    models = ", ".join(f"{source} ({_millions(shape.parameters)} parameters)" for source, shape in shapes.items())
    smaller = [which for which in SERVED[kind] if BITS[which] < BITS[precision]]
    fitting = next((which for which in smaller if total(which) <= room.free), None)
    if fitting:
        how = "engine = 'onnx', which is int8," if (kind, fitting) == ("cpu", "int8") else f"precision = {fitting!r}"
        advice = f"{how} would fit: about {_size(total(fitting))}"
    else:
        least = smaller[-1] if smaller else precision
        weights = sum(shape.parameters for shape in shapes.values())
        left = room.free - (total(least) - estimate(weights, least))
        most = int(left * 8 / BITS[least])
        advice = "no precision that is served fits"
        advice += f"; in {least} about {_millions(most)} parameters would" if most > 0 else ", not even the batch alone"
        if total("int4") <= room.free:
            advice += f". In 4 bits it would take about {_size(total('int4'))}, but no engine here serves 4 bits"
    raise LoadError(
        f"not enough memory on {device} for {models} in {precision}: about {_size(total(precision))} with the largest "
        f"batch, and {room.where} {_size(room.free)} free. {advice}"
    )


def available(device: str = "cpu") -> Room:
    """What is free now: of the machine and its container (cgroup v2), or of the GPU as its driver sees it."""
    if device.startswith("cuda"):
        return Room(_gpu_free(int(device.partition(":")[2] or 0)), "the device has")
    import psutil

    free = int(psutil.virtual_memory().available)
    container = cgroup_free()
    return (
        Room(free, "this machine has") if container is None or container >= free else Room(container, "its cgroup has")
    )


def cgroup_free(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The least that is left below `memory.max` in this process's groups (cgroup v2); None where nothing limits it.

    Cached files that the kernel would drop first (inactive_file) count as free.
    """
    try:
        name = next(line[3:] for line in own.read_text(encoding="utf-8").splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    group = root / name.strip().lstrip("/")
    left = [_left(folder) for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return min((bytes_left for bytes_left in left if bytes_left is not None), default=None)


def _left(group: Path) -> int | None:
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))  # "max": none, a ValueError
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, limit - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


def _gpu_free(index: int) -> int:
    """By NVML, so that no CUDA context is made. It numbers all devices, CUDA those in CUDA_VISIBLE_DEVICES only."""
    import pynvml

    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    try:
        name = visible[index] if visible else str(index)
        pynvml.nvmlInit()
        by_index = name.isdigit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(name)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(name)
        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
        except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission):
            return sys.maxsize  # it does not tell (memory shared with the CPU, some virtual GPUs): no proof is possible
    except (IndexError, pynvml.NVMLError) as error:
        raise LoadError(f"device = 'cuda:{index}': the NVIDIA driver knows no such device ({error})") from error


def _millions(count: int) -> str:
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
