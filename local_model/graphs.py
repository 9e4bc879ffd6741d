"""CUDA graphs over a grid of batch shapes: a forward is one launch where it was hundreds, each of them Python's work.

A graph's shapes are fixed, so a batch is padded up to the nearest bucket. The largest is captured first, as vLLM does,
so that the smaller ones find its memory; 16,384 tokens a batch are text-embeddings-inference's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from local_model.footprint import BATCH_TOKENS

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
MOST_TOKENS = BATCH_TOKENS["cuda"]  # in a bucket, padding counted
WARM_UPS = 3  # runs before a capture: kernels are loaded and chosen then, which a capture does not allow


class Bucket(NamedTuple):
    texts: int
    length: int  # tokens of each, padding counted


Tensors = tuple[torch.Tensor, ...]
#: Runs a function of no arguments once or more, and gives what repeats it on what its inputs hold by then.
Record = Callable[[Callable[[], Tensors]], Callable[[], Tensors]]


def grid(longest: int, least_tokens: int = 1) -> tuple[Bucket, ...]:
    """The buckets for texts of up to `longest` tokens, largest first; none has less than `least_tokens` in all."""
    lengths = {min(length, longest) for length in LENGTHS}
    buckets = (Bucket(texts, length) for texts in SIZES for length in lengths)
    fitting = [bucket for bucket in buckets if least_tokens <= _tokens(bucket) <= MOST_TOKENS]
    return tuple(sorted(fitting, key=lambda bucket: (_tokens(bucket), bucket), reverse=True))


def nearest(buckets: Sequence[Bucket], texts: int, longest: int) -> Bucket | None:
    """The bucket that computes the least for `texts` texts, the longest of `longest` tokens."""
    fitting = (bucket for bucket in buckets if bucket.texts >= texts and bucket.length >= longest)
    return min(fitting, key=_tokens, default=None)


def most_texts(buckets: Sequence[Bucket], longest: int) -> int:
    """How many texts of up to `longest` tokens fit one bucket; 0: no bucket is so long."""
    return max((bucket.texts for bucket in buckets if bucket.length >= longest), default=0)


def pad(batch: Sequence[Sequence[int]], into: NDArray[np.int64]) -> None:
    """Write token ids and mask into `into` (2, texts or more, longest or more)."""
    into.fill(0)
    for row, ids in enumerate(batch):
        into[0, row, : len(ids)] = ids
        into[1, row, : len(ids)] = 1
    into[1, len(batch) :, 0] = 1  # a row that sees nothing at all would be computed as NaN


class Graphs:
    """A recorded forward for each bucket. They share one buffer for the input, so they run one at a time."""

    def __init__(
        self,
        forward: Callable[[torch.Tensor, torch.Tensor], Tensors],
        buckets: Sequence[Bucket],
        record: Record,
        device: torch.device,
    ) -> None:
        self.buckets = buckets
        room = 2 * max(map(_tokens, buckets))
        # Pinned, so that the copy to the device needs no second one on the way.
        self._host = torch.zeros(room, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._device = torch.zeros(room, dtype=torch.int64, device=device)
        self._replay: dict[Bucket, Callable[[], Tensors]] = {}
        for bucket in buckets:
            ids, mask = _view(self._device, bucket)
            # Transformers leaves the mask away where all of it is ones: the kernels to warm up are those with a mask.
            mask.zero_()[:, 0] = 1
            self._replay[bucket] = record(lambda ids=ids, mask=mask: forward(ids, mask))  # type: ignore[misc]

    def takes(self, longest: int) -> bool:
        return most_texts(self.buckets, longest) > 0

    def forward(self, batch: Sequence[Sequence[int]]) -> tuple[NDArray[np.float32], ...]:
        """What the recorded function gives for `batch`, a row per text. More texts than fit one bucket go in turn."""
        step = most_texts(self.buckets, max(map(len, batch)))
        parts = [self._forward(batch[start : start + step]) for start in range(0, len(batch), step)]
        return parts[0] if len(parts) == 1 else tuple(np.concatenate(rows) for rows in zip(*parts, strict=True))

    def _forward(self, batch: Sequence[Sequence[int]]) -> tuple[NDArray[np.float32], ...]:
        bucket = nearest(self.buckets, len(batch), max(map(len, batch)))
        assert bucket is not None
        host = _view(self._host, bucket)
        pad(batch, host.numpy())
        _view(self._device, bucket).copy_(host, non_blocking=True)
        # The copy back waits for the device: only then may the host's buffer be written again.
        return tuple(rows[: len(batch)].cpu().numpy() for rows in self._replay[bucket]())


def capture_on(device: torch.device, stream: torch.cuda.Stream) -> Record:
    """Captures CUDA graphs in one shared pool of memory. Their outputs stay alive, so no graph overwrites another's.

    A captured graph may be replayed from any thread (what is bound to its thread are torch.compile's own graph trees,
    pytorch issue 123177, which are not used here). cuBLAS's workspace is bound to `stream` and baked into the graphs:
    engines that live at the same time need a stream each.
    """
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], Tensors]) -> Callable[[], Tensors]:
        with torch.cuda.device(device):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    run()
            graph = torch.cuda.CUDAGraph()
            # Thread-local: an engine that serves meanwhile may allocate on its own thread.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                outputs = run()

        def replay() -> Tensors:
            graph.replay()
            return outputs

        return replay

    return record


def _tokens(bucket: Bucket) -> int:
    return bucket.texts * bucket.length


def _view(buffer: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    return buffer[: 2 * _tokens(bucket)].view(2, *bucket)
