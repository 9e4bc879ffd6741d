"""The torch engine: dynamic batches on CUDA in bf16, or on the CPU in fp32. One thread owns the device."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from local_model.encoder import Encoder
from local_model.engines import EngineDead, Kind, Output
from local_model.network import build
from local_model.types import LoadError

#: Lengths are padded up to a multiple: fewer distinct shapes, for which kernels and plans are cached.
PAD_TO = 8
#: The most texts, and tokens with padding, in one forward. On few cores more than 8 short texts gain nothing.
CPU_BATCH = (8, 2_048)
CUDA_BATCH = (128, 16_384)


class TorchEngine:
    """`forward` must always be called from the same thread, or from threads that take turns."""

    kind: Kind
    recipe = "1"
    threads = 1

    def __init__(self, encoder: Encoder, *, device: str, threads: int) -> None:
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise LoadError(f"device = {device!r}, but torch finds no CUDA device; use device = 'cpu' or 'auto'")
        cuda = device.startswith("cuda")
        self._dtype = torch.bfloat16 if cuda else torch.float32
        self._threads = threads
        if not cuda:
            torch.set_num_threads(threads)
        self.kind = "torch-bf16" if cuda else "torch-fp32"
        try:
            self._device = torch.device(device)
        except RuntimeError as error:
            raise LoadError(f"device = {device!r} is not one torch knows: use auto, cpu, cuda or cuda:N") from error
        self.device = str(self._device)
        self.max_items, self.max_tokens = CUDA_BATCH if cuda else CPU_BATCH
        self._network = build(encoder, self._dtype).to(self._device)
        self._encoder = encoder

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
        longest = max(len(ids) for ids in batch)
        width = min(-(-longest // PAD_TO) * PAD_TO, max(self._encoder.limit, longest))
        ids = np.zeros((len(batch), width), np.int64)
        mask = np.zeros((len(batch), width), np.int64)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        with torch.inference_mode():
            out = self._network(
                torch.from_numpy(ids).to(self._device, non_blocking=True),
                torch.from_numpy(mask).to(self._device, non_blocking=True),
            )
        return Output(out[0].cpu().numpy(), out[1].cpu().numpy() if len(out) > 1 else None)

    def status(self) -> dict[str, Any]:
        tensors = list(self._network.parameters())
        known: dict[str, Any] = {
            "precision": "bf16" if self._dtype is torch.bfloat16 else "fp32",
            "parameters": sum(tensor.numel() for tensor in tensors),
            "artifact_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            "cpu_threads": self._threads,
        }
        if self._device.type == "cuda":
            known["device_name"] = torch.cuda.get_device_name(self._device)
            known["device_memory"] = {
                "allocated": torch.cuda.memory_allocated(self._device),
                "reserved": torch.cuda.memory_reserved(self._device),
                "peak": torch.cuda.max_memory_allocated(self._device),
                **_nvml(torch.cuda.current_device() if self._device.index is None else self._device.index),
            }
        return known


def cuda_available() -> bool:
    """Whether this build of torch can use the device that the driver sees."""
    return torch.cuda.is_available()


def _nvml(index: int) -> dict[str, int]:
    """Used and total bytes of the whole device and its utilization in percent, as the driver sees them."""
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        busy = pynvml.nvmlDeviceGetUtilizationRates(handle)
        return {"device_used": int(memory.used), "device_total": int(memory.total), "utilization": int(busy.gpu)}
    return {}
