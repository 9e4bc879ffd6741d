"""How much memory a model takes, and what is said where it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from local_model import encoder, footprint
from local_model.encoder import Encoder
from local_model.footprint import Room, Shape, activations, cgroup_free, estimate, need, require_fits, shape_of
from local_model.network import build
from local_model.types import LoadError

SEVEN_BILLION = Shape(7_000_000_000, 6_700_000_000, 4096, 32, 32, False, 512)


def test_the_rule_of_thumb_for_seven_billion_parameters() -> None:
    """14 GB in 16 bits, about 4 GB in 4 bits (3.5 and the scales), 28 in 32, 7 in 8."""
    assert estimate(7_000_000_000, "bf16") == 14_000_000_000
    assert estimate(7_000_000_000, "int4") == pytest.approx(4e9, rel=0.05)
    assert estimate(7_000_000_000, "fp32") == 28_000_000_000
    assert estimate(7_000_000_000, "int8") == estimate(7_000_000_000, "fp8") == 7_000_000_000


def test_embeddings_stay_in_16_bits_where_only_the_layers_are_converted() -> None:
    assert estimate(100, "int8", kept=40) == 60 + 2 * 40
    assert estimate(100, "fp32", kept=40) == 400
    spared = need(SEVEN_BILLION, "bf16", device="cuda:0") - need(SEVEN_BILLION, "int8", device="cuda:0")
    assert spared == SEVEN_BILLION.convertible, "a byte for each parameter that is converted"


@pytest.mark.parametrize("classifier", [True, False])
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "deberta", "modernbert"])
def test_parameters_are_counted_in_the_files_headers(
    architecture: str, classifier: bool, tiny_model: Callable[..., Path]
) -> None:
    """Weights have other names in a classifier's file than in an encoder's."""
    found = encoder.find(str(tiny_model(architecture, classifier=classifier)))
    shape = shape_of(found)
    network = build(found)
    assert shape.parameters == sum(tensor.numel() for tensor in network.parameters())
    assert (shape.hidden, shape.layers, shape.heads) == (32, 2, 2)
    linear = sum(
        module.weight.numel()
        for name, module in network.named_modules()
        if type(module).__name__ == "Linear" and "layer" in name
    )
    assert shape.convertible == linear


def test_activations_grow_with_the_batch_and_with_attention_that_is_written_out() -> None:
    one = activations(SEVEN_BILLION, 512, value_bytes=2, written_out=False)
    assert activations(SEVEN_BILLION, 1024, value_bytes=2, written_out=False) == 2 * one
    assert activations(SEVEN_BILLION, 512, value_bytes=4, written_out=False) == 2 * one
    written = activations(SEVEN_BILLION, 512, value_bytes=2, written_out=True)
    assert written - one > 32 * 512 * 512 * 2, "at least the scores of each head"


def test_the_onnx_engine_needs_a_text_per_thread() -> None:
    threads = [need(SEVEN_BILLION, "int8", device="cpu", threads=n) - 7_000_000_000 for n in (1, 4)]
    assert threads[1] == 4 * threads[0]


def test_what_fits_passes(tiny_model: Callable[..., Path]) -> None:
    require_fits([encoder.find(str(tiny_model()))], device="cpu", precision="fp32")


def found(tiny_model: Callable[..., Path]) -> Encoder:
    return encoder.find(str(tiny_model("bert")))


def refusal(room: float, encoders: list[Encoder], **asked: Any) -> str:
    with pytest.raises(LoadError) as caught:
        require_fits(encoders, room=Room(int(room), "this machine has"), **asked)
    return str(caught.value)


@pytest.fixture
def seven_billion(monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Path]) -> Encoder:
    monkeypatch.setattr(footprint, "shape_of", lambda _encoder: SEVEN_BILLION)
    return found(tiny_model)


def test_the_error_says_what_is_needed_what_is_there_and_which_precision_fits(seven_billion: Encoder) -> None:
    said = refusal(24e9, [seven_billion], device="cpu", precision="fp32")
    assert "7.0 billion parameters) in fp32: about 30.0 GB with the largest batch" in said
    assert "this machine has 24.0 GB free" in said
    assert "precision = 'bf16' would fit: about 15.0 GB" in said
    on_cuda = refusal(14e9, [seven_billion], device="cuda:0", precision="bf16")
    assert "on cuda:0" in on_cuda
    assert "precision = 'int8' would fit" not in on_cuda, "with a batch of 16,384 tokens"
    assert "precision = 'int8' would fit" in refusal(18e9, [seven_billion], device="cuda:0", precision="bf16")


def test_on_a_cpu_int8_is_the_onnx_engines(seven_billion: Encoder) -> None:
    assert "engine = 'onnx', which is int8, would fit" in refusal(10e9, [seven_billion], device="cpu", precision="bf16")


def test_where_nothing_fits_the_largest_model_is_named_and_four_bits_are_not_promised(seven_billion: Encoder) -> None:
    said = refusal(6e9, [seven_billion], device="cpu", precision="fp32")
    assert "no precision that is served fits; in int8 about 5." in said
    assert "billion parameters would" in said
    assert "In 4 bits it would take about 4.9 GB" in said
    assert "no engine here serves 4 bits" in said
    least = refusal(1e6, [seven_billion], device="cpu", precision="fp32")
    assert "not even the batch alone" in least
    assert "4 bits" not in least


def test_several_encoders_are_added_up(tiny_model: Callable[..., Path]) -> None:
    one, other = found(tiny_model), found(tiny_model)
    alone = need(shape_of(one), "fp32", device="cpu")
    room = Room(int(1.5 * alone), "this machine has")
    require_fits([one], device="cpu", precision="fp32", room=room)
    with pytest.raises(LoadError) as caught:
        require_fits([one, other], device="cpu", precision="fp32", room=room)
    assert one.source in str(caught.value)
    assert other.source in str(caught.value)


# --- what is there


def group(folder: Path, limit: str, used: int, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")


def test_the_narrowest_cgroup_counts_and_its_cached_files_are_free(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/pod/container\n")
    root = tmp_path / "fs"
    group(root / "pod" / "container", "max", 10)
    assert cgroup_free(root, own) is None
    group(root / "pod", "1000", 700, inactive=200)
    assert cgroup_free(root, own) == 500
    group(root / "pod" / "container", "400", 600)
    assert cgroup_free(root, own) == 0
    assert cgroup_free(root, tmp_path / "none") is None


def test_a_container_may_have_less_than_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    for container, wanted in ((None, 1000), (5000, 1000), (300, 300)):
        monkeypatch.setattr(footprint, "cgroup_free", lambda container=container: container)
        assert footprint.available("cpu").free == wanted


def test_a_gpus_number_is_looked_up_among_the_visible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {0: 10, 3: 30, "GPU-abc": 40}
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda name: name)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(free=free[handle]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert footprint.available("cuda").free == 10
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    assert footprint.available("cuda:0").free == 30
    assert footprint.available("cuda:1").free == 40
    with pytest.raises(LoadError, match="cuda:2"):
        footprint.available("cuda:2")
