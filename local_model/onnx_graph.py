"""Makes an encoder's ONNX graph for one text without padding, quantizes it, and opens it."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

# Since 1.31 a session keeps a device id and events for its vendor in the user's cache folder, unless this is set before
# the import (the function that should turn it off does not).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from local_model.encoder import Encoder
from local_model.engines import ExportFailed

if TYPE_CHECKING:
    from local_model.network import Network

Session: TypeAlias = Any  # onnxruntime has no types


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

    session = open_session(graph)
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


def open_session(file: Path, *, threads: int = 1) -> Session:
    """`threads`: of its own, inside a forward. Raises ExportFailed."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; its warnings are about nodes it keeps on the CPU
    try:
        # Its kernel for a sum and its normalization in one takes twice the time of the two kernels.
        slow = ["SkipLayerNormFusion"]
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"], disabled_optimizers=slow)
    except Exception as error:  # its exceptions share no public base
        raise ExportFailed(f"onnxruntime can't load {file.name}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


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


@contextlib.contextmanager
def quiet_exporters() -> Iterator[None]:
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
