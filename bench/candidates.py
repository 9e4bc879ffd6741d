"""Every engine that was tried for the local model, beside those that are served.

A maker gives a function from a batch of token ids to (n, hidden) L2-normalised embeddings. It runs in a process of its
own (bench/engines.py), because these runtimes set threads, allocators and compilers for the whole process.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from local_model import encoder as encoders
from local_model.engines import open_engine
from local_model.onnx_graph import quiet_exporters

Ids = Sequence[Sequence[int]]
Forward = Callable[[Ids], "np.ndarray[Any, Any]"]
PAD_TO = 8  # lengths are padded up to a multiple: fewer distinct shapes, for which kernels and plans are kept


class Workshop(NamedTuple):
    """What a maker gets. Must survive pickling."""

    source: str  # the encoder: a name or a folder
    folder: Path  # holds the exported graphs, and what is made of them
    cache: Path  # of the router's own int8 graph
    cores: int
    calibration: Sequence[Sequence[int]]  # token ids of texts that are not measured


class Candidate(NamedTuple):
    """`batch`: texts per forward. With one, as many forwards run at once as there are cores, each on one core;
    else one forward at a time has all cores.
    """

    name: str
    batch: int
    make: Callable[[Workshop, int], Forward]
    needs: tuple[str, ...] = ()  # packages beyond the router's own
    compiles: bool = False  # needs a C++ compiler

    @property
    def from_graph(self) -> bool:
        """It starts from an exported graph; the router's own engine exports for itself."""
        return self.name.startswith(("onnx", "OpenVINO")) and self.name != SERVED

    def callers(self, cores: int) -> int:
        return cores if self.batch == 1 else 1


def padded(batch: Ids) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(ids, mask), (n, length) int64. One text is not padded."""
    longest = max(len(ids) for ids in batch)
    width = longest if len(batch) == 1 else -(-longest // PAD_TO) * PAD_TO
    ids, mask = np.zeros((len(batch), width), np.int64), np.zeros((len(batch), width), np.int64)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask


# --- graphs: one for a single text, one for padded batches, made once per run


def export_one(shop: Workshop) -> None:
    """one.onnx: input_ids (1, length), fp32."""
    from local_model import onnx_graph

    with quiet_exporters():
        onnx_graph.export(encoders.find(shop.source), shop.folder / "one.onnx")


def export_padded(shop: Workshop) -> None:
    """padded.onnx: input_ids and mask (n, length), fp32."""
    import torch

    from local_model.network import build

    encoder = encoders.find(shop.source)
    ids = torch.full((2, 16), 5, dtype=torch.long)
    shape = {0: torch.export.Dim("n", max=64), 1: torch.export.Dim("length", min=2, max=encoder.limit)}
    with quiet_exporters(), torch.no_grad():
        torch.onnx.export(
            build(encoder),
            (ids, torch.ones_like(ids)),
            str(shop.folder / "padded.onnx"),
            dynamo=True,
            input_names=["input_ids", "mask"],
            output_names=["pooled"],
            dynamic_shapes=(shape, shape),
            verbose=False,
        )


def graph(shop: Workshop, batch: int) -> Path:
    return shop.folder / ("one.onnx" if batch == 1 else "padded.onnx")


def run_onnx(file: Path, threads: int) -> Forward:
    from local_model.onnx_graph import open_session

    session = open_session(file, threads=threads)
    names = [each.name for each in session.get_inputs()]
    return lambda batch: session.run(None, dict(zip(names, padded(batch), strict=False)))[0]


def onnx_served(shop: Workshop, _batch: int) -> Forward:
    """The router's own engine."""
    engine = open_engine(
        encoders.find(shop.source), name="onnx", device="cpu", threads=shop.cores, cache_dir=shop.cache
    ).engine
    return lambda batch: engine.forward(batch).embeddings


def onnx_fp32(shop: Workshop, batch: int) -> Forward:
    return run_onnx(graph(shop, batch), threads_of(shop, batch))


def onnx_dynamic(shop: Workshop, batch: int) -> Forward:
    """The router's quantization, on the graph that takes batches."""
    from local_model.onnx_graph import has_vnni, quantize

    source, made = (shop.folder / f"dynamic-{batch}-{part}.onnx" for part in ("source", "int8"))
    shutil.copy(graph(shop, batch), source)
    quantize(source, made, reduce_range=not has_vnni())
    return run_onnx(made, threads_of(shop, batch))


def onnx_static(shop: Workshop, batch: int, form: str) -> Forward:
    """Activation scales fixed beforehand, from the calibration texts; `form`: QDQ or QOperator."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library carries no types
        def __init__(self) -> None:
            self.left = iter(shop.calibration)

        def get_next(self) -> dict[str, Any] | None:
            ids = next(self.left, None)
            return None if ids is None else {"input_ids": np.array([ids], np.int64)}

    model = onnx.load(graph(shop, 1))
    del model.graph.value_info[:]
    made = shop.folder / f"static-{form}.onnx"
    quantize_static(
        model,
        made,
        Reader(),
        quant_format=QuantFormat[form],
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    return run_onnx(made, threads_of(shop, batch))


def onnx_nbits(shop: Workshop, batch: int, bits: int) -> Forward:
    """MatMulNBits: weights of 4 or 8 bits in blocks of 32, activations in int8 inside the kernel (accuracy level 4)."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(graph(shop, batch)), bits=bits, block_size=32, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    made = shop.folder / f"nbits-{bits}-{batch}.onnx"
    quantizer.model.save_model_to_file(str(made))
    return run_onnx(made, threads_of(shop, batch))


# --- torch


def run_torch(network: Any, threads: int, grad_mode: str = "inference_mode") -> Forward:
    import torch

    torch.set_num_threads(threads)

    def forward(batch: Ids) -> np.ndarray[Any, Any]:
        ids, mask = padded(batch)
        with getattr(torch, grad_mode)():
            out = network(torch.from_numpy(ids), None if len(batch) == 1 else torch.from_numpy(mask))
        found: np.ndarray[Any, Any] = out[0].float().numpy()
        return found

    return forward


def torch_network(shop: Workshop, dtype: str) -> Any:
    import torch

    from local_model.network import build

    return build(encoders.find(shop.source), getattr(torch, dtype))


def torch_eager(shop: Workshop, batch: int, dtype: str) -> Forward:
    return run_torch(torch_network(shop, dtype), threads_of(shop, batch))


def torch_compiled(shop: Workshop, batch: int, dtype: str) -> Forward:
    import torch
    import torch._inductor.config as inductor

    inductor.freezing = True
    return run_torch(torch.compile(torch_network(shop, dtype), dynamic=True), threads_of(shop, batch), "no_grad")


def torch_dynamic(shop: Workshop, batch: int) -> Forward:
    """torch.ao's quantize_dynamic: deprecated, still in torch 2.13."""
    import torch

    quantize: Any = torch.ao.quantization.quantize_dynamic  # it carries no types
    made = quantize(torch_network(shop, "float32"), {torch.nn.Linear}, dtype=torch.qint8)
    return run_torch(made, threads_of(shop, batch))


def torchao_int8(shop: Workshop, batch: int, compiled: bool) -> Forward:
    """torchao's Int8DynamicActivationInt8Weight, a scale per row: no neighbour changes another's scale."""
    import torch
    import torch._inductor.config as inductor

    # Imported for its side effect: without it nothing is lowered to oneDNN's int8 kernels (torchao pull request 4823).
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, PerRow, quantize_
    from torchao.utils import should_reduce_range

    network = torch_network(shop, "float32")
    settings = Int8DynamicActivationInt8WeightConfig(
        granularity=PerRow(), set_inductor_config=False, reduce_range=should_reduce_range(torch.device("cpu"))
    )
    quantize_(
        network,
        settings,
        filter_fn=lambda module, name: isinstance(module, torch.nn.Linear) and "pooler" not in name,
    )
    inductor.freezing = True
    return run_torch(torch.compile(network, dynamic=True) if compiled else network, threads_of(shop, batch), "no_grad")


# --- OpenVINO


def openvino(shop: Workshop, batch: int, precision: str) -> Forward:
    """`precision`: f32, bf16, or int8 made by NNCF: "weights" only, or "full"."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(graph(shop, batch))
    if precision in {"weights", "full"}:
        model = nncf_int8(shop, model, batch, precision)
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": shop.cores,
        "NUM_STREAMS": shop.cores if batch == 1 else 1,
    }
    compiled = core.compile_model(model, "CPU", settings)
    own = threading.local()  # a request must not be used by two threads at once

    def forward(batch: Ids) -> np.ndarray[Any, Any]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        inputs = padded(batch)[: len(compiled.inputs)]
        found: np.ndarray[Any, Any] = own.request.infer(list(inputs))[0].copy()
        return found

    return forward


def nncf_int8(shop: Workshop, model: Any, batch: int, precision: str) -> Any:
    os.environ["NNCF_CI"] = "1"  # its telemetry is off there
    import nncf

    if precision == "weights":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    texts = [shop.calibration[i : i + batch] for i in range(0, len(shop.calibration) - batch + 1, batch)]
    inputs = [list(padded(each))[: len(model.inputs)] for each in texts]
    return nncf.quantize(model, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER)


def threads_of(shop: Workshop, batch: int) -> int:
    return 1 if batch == 1 else shop.cores


SERVED, REFERENCE = "onnx int8 (served)", "torch fp32"
OPENVINO, NNCF, TORCHAO = ("openvino",), ("openvino", "nncf"), ("torchao",)
CANDIDATES = (
    Candidate(SERVED, 1, onnx_served),
    Candidate("onnx int8", 8, onnx_dynamic),
    Candidate("onnx int8", 32, onnx_dynamic),
    Candidate("onnx int8 static, QDQ", 1, partial(onnx_static, form="QDQ")),
    Candidate("onnx int8 static, QOperator", 1, partial(onnx_static, form="QOperator")),
    Candidate("onnx MatMulNBits, 8-bit weights", 1, partial(onnx_nbits, bits=8)),
    Candidate("onnx MatMulNBits, 4-bit weights", 1, partial(onnx_nbits, bits=4)),
    Candidate("onnx fp32", 1, onnx_fp32),
    Candidate("onnx fp32", 8, onnx_fp32),
    Candidate(REFERENCE, 1, partial(torch_eager, dtype="float32")),
    Candidate(REFERENCE, 8, partial(torch_eager, dtype="float32")),
    Candidate("torch bf16", 1, partial(torch_eager, dtype="bfloat16")),
    Candidate("torch bf16", 8, partial(torch_eager, dtype="bfloat16")),
    Candidate("torch fp32, compiled", 8, partial(torch_compiled, dtype="float32"), compiles=True),
    Candidate("torch bf16, compiled", 8, partial(torch_compiled, dtype="bfloat16"), compiles=True),
    Candidate("torch int8 (quantize_dynamic)", 1, torch_dynamic),
    Candidate("torch int8 (quantize_dynamic)", 8, torch_dynamic),
    Candidate("torchao int8", 8, partial(torchao_int8, compiled=False), TORCHAO),
    Candidate("torchao int8, compiled", 8, partial(torchao_int8, compiled=True), TORCHAO, compiles=True),
    Candidate("OpenVINO fp32", 1, partial(openvino, precision="f32"), OPENVINO),
    Candidate("OpenVINO fp32", 8, partial(openvino, precision="f32"), OPENVINO),
    Candidate("OpenVINO bf16", 1, partial(openvino, precision="bf16"), OPENVINO),
    Candidate("OpenVINO bf16", 8, partial(openvino, precision="bf16"), OPENVINO),
    Candidate("OpenVINO int8 weights (NNCF)", 1, partial(openvino, precision="weights"), NNCF),
    Candidate("OpenVINO int8 (NNCF)", 1, partial(openvino, precision="full"), NNCF),
    Candidate("OpenVINO int8 (NNCF)", 8, partial(openvino, precision="full"), NNCF),
)
