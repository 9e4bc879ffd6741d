"""The torch engine: its grid of shapes, what it says of itself, and what happens when the device is full or gone."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from local_model import encoder, tokenize, torch_engine
from local_model.encoder import Encoder
from local_model.engines import EngineDead
from local_model.graphs import MOST_TOKENS, Bucket, Graphs, grid, most_texts, nearest, pad
from local_model.network import build
from local_model.torch_engine import TorchEngine, quantize
from local_model.types import LoadError

CPU = torch.device("cpu")
FULL_GRID = grid(512)


@pytest.fixture
def tiny(tiny_model: Callable[..., Path]) -> Encoder:
    return encoder.find(str(tiny_model("bert", num_labels=3)))


def again(run: Callable[[], Any]) -> Callable[[], Any]:
    """In a graph's place: what it would repeat is run again, on the same buffers."""
    return run


def on_grid(engine: TorchEngine, longest: int = 40) -> TorchEngine:
    engine._graphs = Graphs(engine._run, grid(longest), again, CPU)
    return engine


def texts(*lengths: int) -> list[list[int]]:
    return [[2, *(4 + (i * 7 + length) % 19 for i in range(length - 2)), 3] for length in lengths]


# --- the grid


@given(st.integers(1, 128), st.integers(1, 512))
def test_a_batch_goes_to_the_bucket_that_computes_least(count: int, longest: int) -> None:
    fits = [b for b in FULL_GRID if b.texts >= count and b.length >= longest]
    bucket = nearest(FULL_GRID, count, longest)
    assert (bucket is None) == (not fits)
    if bucket:
        assert bucket in fits
        assert bucket.texts * bucket.length == min(b.texts * b.length for b in fits)
    assert nearest(FULL_GRID, most_texts(FULL_GRID, longest), longest), (
        "what does not fit at once goes in parts that do"
    )


def test_the_grid_is_within_the_budget_and_begins_with_the_largest() -> None:
    sizes = [bucket.texts * bucket.length for bucket in FULL_GRID]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == MOST_TOKENS
    assert {bucket.texts for bucket in FULL_GRID} == {1, 2, 4, 8, 16, 32, 64, 128}
    assert {bucket.length for bucket in FULL_GRID} == {16, 32, 48, 64, 96, 128, 192, 256, 384, 512}
    assert len(set(FULL_GRID)) == len(FULL_GRID) == 74


def test_the_grid_ends_where_the_model_does() -> None:
    assert {bucket.length for bucket in grid(40)} == {16, 32, 40}
    assert max(bucket.length for bucket in grid(8192)) == 512
    assert most_texts(grid(8192), 513) == 0
    assert min(bucket.texts * bucket.length for bucket in grid(512, least_tokens=32)) == 32


def test_padding_rows_and_columns_change_nothing(tiny: Encoder) -> None:
    """On the same bucket a text's result is the same bits, whatever the other rows hold; on others within 1e-5."""
    engine = TorchEngine(tiny, device="cpu", threads=1)
    three = texts(5, 12, 9)
    plain = engine.forward(three)
    graphs = Graphs(engine._run, [Bucket(4, 16)], again, CPU)
    padded = graphs.forward(three)
    full = graphs.forward([*three, *texts(16)])
    for one, other, unpadded in zip(padded, full, plain, strict=True):
        assert unpadded is not None
        assert one.shape == unpadded.shape
        assert np.isfinite(one).all()
        assert np.array_equal(one, other[:3])
        assert np.abs(one - unpadded).max() < 1e-5


def test_every_padding_row_sees_one_token() -> None:
    """A row that is masked whole is NaN, which a scale over the batch would carry to the others."""
    padded = np.full((2, 4, 8), 9, np.int64)
    pad([[2, 5, 3], [2, 3]], padded)
    assert padded[1].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]] + [[1, 0, 0, 0, 0, 0, 0, 0]] * 2
    assert padded[0, 0].tolist() == [2, 5, 3, 0, 0, 0, 0, 0]


def test_nothing_of_the_last_batch_is_left_in_the_buffers(tiny: Encoder) -> None:
    engine = TorchEngine(tiny, device="cpu", threads=1)
    graphs = Graphs(engine._run, [Bucket(4, 16)], again, CPU)
    fresh = graphs.forward(texts(4, 7))
    graphs.forward(texts(16, 16, 16, 16))
    for before, after in zip(fresh, graphs.forward(texts(4, 7)), strict=True):
        assert np.array_equal(before, after)


def test_more_texts_than_fit_a_bucket_go_in_turn_and_keep_their_order(tiny: Encoder) -> None:
    engine = TorchEngine(tiny, device="cpu", threads=1)
    lengths = [3 + i % 10 for i in range(11)]
    split = Graphs(engine._run, [Bucket(4, 16), Bucket(2, 8)], again, CPU).forward(texts(*lengths))
    plain = engine.forward(texts(*lengths))
    assert np.abs(split[0] - plain.embeddings).max() < 1e-5
    assert np.abs(split[1] - plain.logits).max() < 1e-5


def test_a_text_longer_than_the_grid_is_answered_without_it(tiny: Encoder) -> None:
    engine = on_grid(TorchEngine(tiny, device="cpu", threads=1), longest=16)
    longer = texts(30, 5)
    wanted = TorchEngine(tiny, device="cpu", threads=1).forward(longer)
    assert np.array_equal(engine.forward(longer).embeddings, wanted.embeddings)


def test_a_model_that_can_not_be_captured_is_served_without_graphs_and_says_so(
    tiny: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_run: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    engine = TorchEngine(tiny, device="cpu", threads=1)
    monkeypatch.setitem(torch_engine._streams, CPU, [object(), object()])
    monkeypatch.setattr(torch_engine, "capture_on", lambda *_: broken)
    engine._capture(40)
    assert engine.status()["without_graphs"] == "the capture raised RuntimeError"
    assert "can't be captured" in caplog.text
    assert engine.forward(texts(5)).logits is not None
    engine._precision = "int8"
    with pytest.raises(LoadError, match="use precision = 'bf16'"):
        engine._capture(40)


# --- precision


def test_bf16_of_the_default_encoder_stays_close_to_fp32(tmp_path: Path) -> None:
    """Measured on a CPU: cosine 0.99995 at least; batch mates change an embedding's values by 0.0014 at most."""
    found = encoder.find()
    tokenizer = tokenize.load(found, tmp_path)
    said = ["My card has not arrived.", "Where is my money?" * 6, "top up", "Der Automat hat meine Karte behalten"]
    batch = [tokenizer.encode(text, truncate=True).ids for text in said]
    wanted = TorchEngine(found, device="cpu", threads=1).forward(batch).embeddings
    engine = TorchEngine(found, device="cpu", threads=1, precision="bf16")
    assert (engine.kind, engine.status()["precision"]) == ("torch-bf16", "bf16")
    together = engine.forward(batch).embeddings
    alone = np.concatenate([engine.forward([ids]).embeddings for ids in batch])
    assert together.dtype == np.float32
    assert (together * wanted).sum(axis=1).min() > 0.9995
    assert np.abs(together - alone).max() < 0.005


@pytest.mark.parametrize(("precision", "way_out"), [("int8", "engine = 'onnx' serves int8"), ("fp8", "needs CUDA")])
def test_eight_bits_on_a_cpu_are_refused_with_the_way_out(precision: Any, way_out: str, tiny: Encoder) -> None:
    with pytest.raises(LoadError, match=way_out):
        TorchEngine(tiny, device="cpu", threads=1, precision=precision)


def test_without_torchao_the_error_names_the_extra(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(LoadError, match=r"crossover-router\[gpu\]"):
        quantize(build(tiny), "int8")


def test_only_the_encoders_own_layers_are_quantized(tiny: Encoder) -> None:
    """Six per layer of BERT; not the pooler, not the classifier. The answers stay near."""
    pytest.importorskip("torchao", reason="torchao is not installed (the gpu extra)")
    network, before = build(tiny, torch.bfloat16), build(tiny)
    assert quantize(network, "int8") == 12
    model: Any = network.model
    assert type(model.classifier.weight) is type(model.bert.pooler.dense.weight) is torch.nn.Parameter
    parameters, size = torch_engine._size(network)
    assert parameters == sum(tensor.numel() for tensor in before.parameters())
    assert size < 2 * parameters
    ids = torch.tensor(texts(12))
    with torch.inference_mode():
        assert torch.nn.functional.cosine_similarity(network(ids)[0], before(ids)[0]).min() > 0.98


def test_a_model_without_a_layer_to_convert_is_refused(tiny_model: Callable[..., Path]) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed (the gpu extra)")
    odd = tiny_model("bert", hidden_size=20, intermediate_size=24)
    with pytest.raises(LoadError, match="multiples of 16"):
        quantize(build(encoder.find(str(odd)), torch.bfloat16), "int8")


# --- the device


def test_a_device_that_torch_does_not_know_is_refused(tiny: Encoder) -> None:
    with pytest.raises(LoadError, match="not one torch knows"):
        TorchEngine(tiny, device="gpu", threads=1)


def test_out_of_memory_gives_the_cache_back_and_the_next_batch_is_answered(
    tiny: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TorchEngine(tiny, device="cpu", threads=1)
    kept: list[weakref.ref[torch.Tensor]] = []
    emptied: list[bool] = []

    def full(ids: torch.Tensor, _mask: torch.Tensor) -> Any:
        big = torch.zeros(8)
        kept.append(weakref.ref(big))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(kept[0]() is None))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_run", full)
        with pytest.raises(MemoryError, match="3 texts"):
            engine.forward(texts(5, 6, 7))
    assert emptied == [True], "emptied once the failed forward's tensors were gone"
    assert engine.forward(texts(5)).logits is not None


def test_a_device_that_failed_for_good_ends_the_engine(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    engine = TorchEngine(tiny, device="cpu", threads=1)
    monkeypatch.setattr(engine, "_run", gone)
    with pytest.raises(EngineDead):
        engine.forward(texts(5))


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_model_that_the_device_does_not_take_is_a_load_error(
    failure: type[Exception], tiny: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise failure("CUDA error: out of memory")

    monkeypatch.setattr(torch_engine, "build", refuse)
    with pytest.raises(LoadError, match="in fp32 can't be loaded on cpu"):
        TorchEngine(tiny, device="cpu", threads=1)


def test_a_closed_engine_keeps_no_weights(tiny: Encoder) -> None:
    engine = on_grid(TorchEngine(tiny, device="cpu", threads=1))
    engine.forward(texts(5))
    assert engine._network is not None
    weights = [weakref.ref(tensor) for tensor in engine._network.parameters()]
    engine.close()
    gc.collect()
    assert not any(tensor() is not None for tensor in weights)
    engine.close()  # twice is fine


def test_the_status_gives_parameters_and_bytes(tiny: Encoder) -> None:
    full = TorchEngine(tiny, device="cpu", threads=1).status()
    half = TorchEngine(tiny, device="cpu", threads=1, precision="bf16").status()
    assert full["parameters"] == half["parameters"] > 10_000
    assert full["artifact_bytes"] == 4 * full["parameters"] == 2 * half["artifact_bytes"]
    assert "device_memory" not in full


def test_the_allocators_setting_is_a_default_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for given_name in (None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")  # so that what is set here is taken back
        monkeypatch.delenv("PYTORCH_ALLOC_CONF")
        monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
        if given_name:
            monkeypatch.setenv(given_name, "max_split_size_mb:64")
        with pytest.raises(LoadError):
            torch_engine._cuda_device(torch.device("cuda"))
        wanted = {None: "expandable_segments:True", "PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}
        assert os.environ.get("PYTORCH_ALLOC_CONF") == wanted.get(given_name)


# --- on a GPU


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    return torch.device("cuda", 0)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "xlm-roberta", "deberta", "modernbert"])
def test_on_cuda_recorded_forwards_answer_as_plain_ones(
    architecture: str, cuda: torch.device, tiny_model: Callable[..., Path]
) -> None:
    engine = TorchEngine(encoder.find(str(tiny_model(architecture, num_labels=3))), device="cuda", threads=1)
    status = engine.status()
    assert status["graphs"] == len(grid(engine._limit)), status.get("without_graphs")
    for lengths in ((5,), (30, 12, 7), tuple(range(3, 38)), (5,) * 128, (38,) * 3):
        recorded = engine.forward(texts(*lengths))
        graphs, engine._graphs = engine._graphs, None
        plain = engine.forward(texts(*lengths))
        engine._graphs = graphs
        assert (recorded.embeddings * plain.embeddings).sum(axis=1).min() > 0.999


@pytest.mark.gpu
def test_on_cuda_a_graph_is_replayed_from_another_thread(cuda: torch.device, tiny: Encoder) -> None:
    """The service warms the engine on one thread and serves on another."""
    from concurrent.futures import ThreadPoolExecutor

    engine = TorchEngine(tiny, device="cuda", threads=1)
    here = engine.forward(texts(5, 9))
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(engine.forward, texts(5, 9)).result()
    assert np.array_equal(here.embeddings, there.embeddings)


@pytest.mark.gpu
def test_on_cuda_a_closed_engine_gives_its_memory_back(cuda: torch.device, tiny: Encoder) -> None:
    def life() -> int:
        engine = TorchEngine(tiny, device="cuda", threads=1)
        engine.forward(texts(5, 9))
        memory = engine.status()["device_memory"]
        assert 0 < memory["allocated"] <= memory["reserved"] <= memory["device_used"]
        engine.close()
        return torch.cuda.memory_reserved(cuda)

    baseline = life()  # cuBLAS keeps a workspace from then on
    assert [life(), life()] == [baseline, baseline]
