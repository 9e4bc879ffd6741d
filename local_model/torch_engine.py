"""The torch engine: on CUDA dynamic batches as recorded graphs, in bf16, int8 or fp8; on the CPU fp32 or bf16."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch

from local_model.encoder import Encoder
from local_model.engines import KINDS, EngineDead, Kind, Output, Precision
from local_model.footprint import BATCH_TOKENS
from local_model.graphs import Graphs, capture_on, grid, pad
from local_model.network import Network, build
from local_model.types import LoadError

log = logging.getLogger(__name__)

#: Lengths outside the grid are padded up to a multiple: fewer distinct shapes, for which kernels and plans are cached.
PAD_TO = 8
#: The most texts, and tokens with padding, in one forward. On few cores more than 8 short texts gain nothing.
CPU_BATCH = (8, BATCH_TOKENS["cpu"])
CUDA_BATCH = (128, BATCH_TOKENS["cuda"])
#: cuBLAS multiplies int8 and fp8 matrices whose sides are multiples of this; others stay in bf16.
SIDE = 16
#: ... and int8 ones of more than 16 rows, which are the batch's tokens.
LEAST_TOKENS_INT8 = 32
#: The first compute capability with fp8: Ada.
FP8_FROM = (8, 9)

#: Streams that engines captured on and gave back: each keeps a cuBLAS workspace, so they are used again.
_streams: dict[torch.device, list[torch.cuda.Stream]] = {}


class TorchEngine:
    """`forward` must always be called from the same thread, or from threads that take turns."""

    kind: Kind
    recipe = "1"
    threads = 1

    def __init__(self, encoder: Encoder, *, device: str, threads: int, precision: Precision = "auto") -> None:
        """Load, quantize, compile and capture, as `device` and `precision` ask. Raises LoadError."""
        try:
            self._device = torch.device(device)
        except RuntimeError as error:
            raise LoadError(f"device = {device!r} is not one torch knows: use auto, cpu, cuda or cuda:N") from error
        self._cuda = self._device.type == "cuda"
        if self._cuda:
            self._device = _cuda_device(self._device)
        self._precision = _settled(precision, self._device)
        self.kind = KINDS[self._precision]
        self.device = str(self._device)
        self.max_items, self.max_tokens = CUDA_BATCH if self._cuda else CPU_BATCH
        self._limit = encoder.limit
        self._threads = threads
        if not self._cuda:
            torch.set_num_threads(threads)
        self._network: Network | None = None
        self._graphs: Graphs | None = None
        self._stream: torch.cuda.Stream | None = None
        self._notes: dict[str, Any] = {}
        try:
            self._size = self._load(encoder)
        except LoadError:
            self.close()
            raise
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
            failure = f"{encoder.source} in {self._precision} can't be loaded on {self.device}: {type(error).__name__}"
        else:
            return
        self.close()  # out of the block: the traceback keeps the tensors
        raise LoadError(failure)

    def _load(self, encoder: Encoder) -> tuple[int, int]:
        """All that can fail. Gives the parameters and their bytes."""
        self._network = build(encoder, torch.float32 if self._precision == "fp32" else torch.bfloat16)
        self._network.to(self._device)
        if self._precision == "int8" or self._precision == "fp8":
            self._notes["quantized_layers"] = quantize(self._network, self._precision)
            self._network.model.compile(dynamic=True)  # one compilation for the grid, not one for each bucket
        if self._cuda:
            self._capture(encoder.max_tokens)
        return _size(self._network)

    def forward(self, batch: Sequence[Sequence[int]]) -> Output:
        """See `Engine.forward`. Out of memory is raised after the cache was given back, so that a part may fit."""
        try:
            return self._forward(batch)
        except torch.OutOfMemoryError:
            pass  # leave the block first: the traceback keeps the tensors (pytorch issue 18853)
        except torch.AcceleratorError as error:
            raise EngineDead(f"the device failed: {type(error).__name__}") from error
        torch.cuda.empty_cache()
        raise MemoryError(f"a batch of {len(batch)} texts does not fit the device's memory")

    def _forward(self, batch: Sequence[Sequence[int]]) -> Output:
        longest = max(map(len, batch))
        if self._graphs is not None and self._graphs.takes(longest):
            rows = self._graphs.forward(batch)
        else:
            width = min(-(-longest // PAD_TO) * PAD_TO, max(self._limit, longest))
            padded = np.empty((2, len(batch), width), np.int64)
            pad(batch, padded)
            out = self._run(*torch.from_numpy(padded).to(self._device))
            rows = tuple(tensor.cpu().numpy() for tensor in out)
        return Output(rows[0], rows[1] if len(rows) > 1 else None)

    def _run(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert self._network is not None, "the engine was closed"
        with torch.inference_mode():
            out: tuple[torch.Tensor, ...] = self._network(ids, mask)
        return out

    def _capture(self, longest: int) -> None:
        """Record the grid. Where a model can't be captured it runs without, and status says so."""
        free = _streams.setdefault(self._device, [])
        self._stream = free.pop() if free else torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        buckets = grid(longest, LEAST_TOKENS_INT8 if self._precision == "int8" else 1)
        try:
            self._graphs = Graphs(self._run, buckets, capture_on(self._device, self._stream), self._device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers and model code raise what they like
            log.debug("the capture failed", exc_info=True)
            if self._precision in {"int8", "fp8"}:
                raise LoadError(
                    f"{self._precision} can't be compiled here ({type(error).__name__}): use precision = 'bf16'"
                ) from error
            self._notes["without_graphs"] = f"the capture raised {type(error).__name__}"
            log.warning("CUDA graphs can't be captured (%s); served without, slower", type(error).__name__)

    def close(self) -> None:
        """Give the device's memory back, cuBLAS's workspaces excepted. Nothing may be computed after it."""
        self._graphs = self._network = None
        gc.collect()  # models hold themselves in cycles
        if self._stream is not None:
            _streams[self._device].append(self._stream)
            self._stream = None
        if self._cuda:
            torch.cuda.empty_cache()

    def status(self) -> dict[str, Any]:
        parameters, size = self._size
        known: dict[str, Any] = {
            "precision": self._precision,
            "parameters": parameters,
            "artifact_bytes": size,
            "cpu_threads": self._threads,
            **self._notes,
        }
        if self._cuda:
            free, total = torch.cuda.mem_get_info(self._device)
            known["graphs"] = len(self._graphs.buckets) if self._graphs else 0
            known["device_name"] = torch.cuda.get_device_name(self._device)
            known["device_memory"] = {
                "allocated": torch.cuda.memory_allocated(self._device),
                "reserved": torch.cuda.memory_reserved(self._device),
                "peak": torch.cuda.max_memory_allocated(self._device),
                "device_used": total - free,
                "device_total": total,
                **_utilization(self._device),
            }
        return known


def quantize(network: Network, precision: Literal["int8", "fp8"]) -> int:
    """Convert the encoder's linear layers, in place, and give their number; heads, poolers and embeddings are kept.

    Weights get a scale per output channel, activations one per token as they come, so a text's do not depend on its
    batch. The result must be compiled, or it is slower than before. Raises LoadError without torchao, and where no
    layer can be converted (torchao passes over those in silence).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kernels that are not for this device
            from torchao.quantization import (
                Float8DynamicActivationFloat8WeightConfig,
                Int8DynamicActivationInt8WeightConfig,
                PerRow,
                quantize_,
            )
    except ImportError as error:
        raise LoadError(
            f"precision = {precision!r} needs torchao ({error}): pip install 'crossover-router[gpu]', or use 'bf16'"
        ) from error
    made = Int8DynamicActivationInt8WeightConfig if precision == "int8" else Float8DynamicActivationFloat8WeightConfig
    encoder = cast("torch.nn.Module", network.model.base_model)  # without the classifier on it

    def wanted(module: torch.nn.Module, name: str) -> bool:
        linear = isinstance(module, torch.nn.Linear) and "pooler" not in name
        return linear and not any(side % SIDE for side in cast("torch.Tensor", module.weight).shape)

    layers = [name for name, module in encoder.named_modules() if wanted(module, name)]
    if not layers:
        raise LoadError(f"precision = {precision!r}: no linear layer here has sides that are multiples of {SIDE}")
    try:
        # Its settings for the compiler are global, and make a compilation take minutes.
        quantize_(encoder, made(granularity=PerRow(), set_inductor_config=False), filter_fn=wanted)
    except (AssertionError, RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise LoadError(f"torchao can't convert this model to {precision}: {error}") from error
    log.info("%d linear layers converted to %s", len(layers), precision)
    return len(layers)


def cuda_available() -> bool:
    """Whether this build of torch can use the device that the driver sees."""
    return torch.cuda.is_available()


def _cuda_device(device: torch.device) -> torch.device:
    """With its index. Sets the allocator's default, which counts until CUDA is first used."""
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name
        # Blocks that grow: batches of changing shape leave no holes behind.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if not torch.cuda.is_available():
        raise LoadError(f"device = '{device}', but torch finds no CUDA device; use device = 'cpu' or 'auto'")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise LoadError(f"device = '{device}', but the last one here is cuda:{torch.cuda.device_count() - 1}")
    return torch.device("cuda", index)


def _settled(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "int8", "fp8"]:
    """What "auto" means there. Raises LoadError for what the device can't do."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if precision in {"int8", "fp8"} and device.type != "cuda":
        raise LoadError(f"precision = {precision!r} in torch needs CUDA; on a CPU engine = 'onnx' serves int8")
    if precision == "fp8" and torch.cuda.get_device_capability(device) < FP8_FROM:
        raise LoadError(f"precision = 'fp8' needs a GPU of the Ada generation or later; {device} is older: use 'bf16'")
    return precision


def _size(network: Network) -> tuple[int, int]:
    """(parameters, bytes in memory). A quantized weight is made of several tensors."""
    parameters = size = 0
    for tensor in network.parameters():
        parameters += tensor.numel()
        parts = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else ()
        size += sum(part.nbytes for part in (getattr(tensor, name) for name in parts)) if parts else tensor.nbytes
    return parameters, size


def _utilization(device: torch.device) -> dict[str, int]:
    """In percent, as the driver sees it; nothing where it does not tell (MIG)."""
    import pynvml

    with contextlib.suppress(pynvml.NVMLError, RuntimeError):
        return {"utilization": torch.cuda.utilization(device)}
    return {}
