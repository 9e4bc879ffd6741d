"""The real encoder on its real engines, with the shipped head."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import local_model
from local_model import encoder as encoders
from local_model.heads import save_head
from local_model.model import LocalModel, ModelSettings, TaskSpec
from local_model.types import EngineFailed, LoadError, OverLength, Prediction, QueueFull

SHIPPED = Path(local_model.__file__).parent / "heads" / "banking77"
#: Written for this test: message, label meant.
SAMPLES = [
    ("My new card still hasn't turned up in the mail", "card_arrival"),
    ("The cash machine swallowed my card", "card_swallowed"),
    ("How can I change my PIN?", "change_pin"),
    ("I can't remember my passcode", "passcode_forgotten"),
    ("Please close my account for good", "terminate_account"),
    ("Somebody stole my phone yesterday", "lost_or_stolen_phone"),
    ("Is there a way to use Google Pay with this?", "apple_pay_or_google_pay"),
    ("I was billed two times for the same purchase", "transaction_charged_twice"),
    ("How old do my kids have to be to open an account?", "age_limit"),
    ("My virtual card gets rejected", "virtual_card_not_working"),
]
ODD = ["", " ", "a", "😀" * 300, "\0\0", "é" * 2_000, "e" + "\u0301" * 5_000, "مرحبا بالعالم", "x" * 20_000]


def load(cache_dir: Path, **settings: Any) -> LocalModel:
    tasks = [TaskSpec("banking", SHIPPED), TaskSpec("again", SHIPPED)]
    return LocalModel.load(ModelSettings(**settings), tasks, cache_dir=cache_dir)


@pytest.fixture(scope="module")
def onnx(cache_dir: Path) -> Iterator[LocalModel]:
    model = load(cache_dir, engine="onnx", threads=2)
    model.warm()
    yield model


def run(model: LocalModel, body: Callable[[], Awaitable[None]]) -> None:
    """A loaded model lives on one loop at a time; its threads are started and stopped around `body`."""

    async def main() -> None:
        model.start(asyncio.get_running_loop())
        try:
            await asyncio.wait_for(body(), 60)
        finally:
            await asyncio.to_thread(model.close)

    asyncio.run(main())


async def ask(model: LocalModel, texts: list[str], *, task: str = "banking", truncate: bool = False) -> list[Any]:
    futures = model.submit(task, texts, truncate=truncate, deadline=None)
    return await asyncio.gather(*futures, return_exceptions=True)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_the_shipped_head_understands_messages_it_never_saw(cache_dir: Path, engine: str) -> None:
    model = load(cache_dir, engine=engine)
    labels = model.task("banking").labels
    assert len(labels) == 77
    assert set(model.task("banking").descriptions) == set(labels), "each label is described for the frontier's prompt"

    async def body() -> None:
        found = await ask(model, [text for text, _ in SAMPLES])
        given = [labels[int(result.probabilities.argmax())] for result in found]
        assert sum(label == meant for label, (_, meant) in zip(given, SAMPLES, strict=True)) >= len(SAMPLES) - 1
        for result in found:
            assert result.probabilities.sum() == pytest.approx(1, abs=1e-5)
            assert np.linalg.norm(result.embedding) == pytest.approx(1, abs=1e-5)

    run(model, body)


def test_on_int8_a_text_gets_the_same_bits_alone_and_among_others(cache_dir: Path) -> None:
    model = load(cache_dir, engine="onnx", threads=2)
    texts = [text for text, _ in SAMPLES] + ["word " * n for n in range(1, 200, 9)]

    async def body() -> None:
        together = await ask(model, texts)
        for text, among in zip(texts, together, strict=True):
            alone = (await ask(model, [text]))[0]
            assert np.array_equal(alone.probabilities, among.probabilities)
            assert np.array_equal(alone.embedding, among.embedding)

    run(model, body)


def test_on_torch_fp32_neighbours_change_nothing_beyond_rounding(cache_dir: Path) -> None:
    model = load(cache_dir, engine="torch", device="cpu", threads=2)
    texts = [text for text, _ in SAMPLES] + ["word " * 150]

    async def body() -> None:
        together = await ask(model, texts)
        for text, among in zip(texts, together, strict=True):
            alone = (await ask(model, [text]))[0]
            assert np.abs(alone.probabilities - among.probabilities).max() <= 1e-4

    run(model, body)


def test_tasks_that_share_an_encoder_share_one_pass_engine(onnx: LocalModel) -> None:
    status = onnx.status()
    assert len(status["encoders"]) == 1
    assert onnx.task("banking").identity == onnx.task("again").identity
    assert status["encoders"][0]["texts_per_second"] > 0
    assert status["encoders"][0]["parameters"] == 22_713_216
    assert "no CUDA" in status["encoders"][0]["why"] or "config" in status["encoders"][0]["why"]


def test_odd_texts_are_answered_or_refused_each_by_itself(cache_dir: Path) -> None:
    model = load(cache_dir, engine="onnx", threads=2)

    async def body() -> None:
        for text, result in zip(ODD, await ask(model, ODD), strict=True):
            assert isinstance(result, Prediction | OverLength), f"{len(text)} characters gave {result!r}"
        cut = await ask(model, ODD, truncate=True)
        assert all(isinstance(result, Prediction) for result in cut)
        broken = await ask(model, ["\ud800", "fine"])
        assert isinstance(broken[0], EngineFailed)
        assert isinstance(broken[1], Prediction)

    run(model, body)


def test_a_cut_text_says_so_and_one_that_is_too_long_is_refused_alone(cache_dir: Path) -> None:
    model = load(cache_dir, engine="onnx", threads=1)
    long = "money " * 1_000

    async def body() -> None:
        refused, fine = await ask(model, [long, "money"])
        assert isinstance(refused, OverLength)
        assert refused.limit == 256
        assert refused.tokens == pytest.approx(1_002, rel=0.02)
        assert fine.truncated is False
        (cut,) = await ask(model, [long], truncate=True)
        assert cut.truncated
        assert cut.tokens == pytest.approx(1_002, rel=0.02), "of the whole text: what it would cost elsewhere"

    run(model, body)


def test_a_request_that_does_not_fit_the_queue_is_refused_whole(cache_dir: Path) -> None:
    model = load(cache_dir, engine="onnx", threads=1, queue_tokens=20)

    async def body() -> None:
        first = model.submit("banking", ["one"] * 50, truncate=False, deadline=None)
        with pytest.raises(QueueFull):
            model.submit("banking", ["two"], truncate=False, deadline=None)
        assert len(await asyncio.gather(*first)) == 50
        assert isinstance((await ask(model, ["two"]))[0], Prediction)

    run(model, body)


def test_an_unknown_task_is_a_key_error(onnx: LocalModel) -> None:
    with pytest.raises(KeyError):
        onnx.task("nope")
    with pytest.raises(KeyError):
        onnx.submit("nope", ["x"], truncate=False, deadline=None)


def test_what_changes_answers_changes_the_identity(cache_dir: Path, onnx: LocalModel) -> None:
    base = onnx.task("banking").identity
    shorter = load(cache_dir, engine="onnx", max_tokens=64).task("banking")
    assert set(shorter.identity) ^ set(base) == {"max_tokens=64", "max_tokens=256"}
    torch = load(cache_dir, engine="torch", device="cpu").task("banking")
    changed = {part.partition("=")[0] for part in set(torch.identity) - set(base)}
    assert changed == {"engine", "head", "temperature"}
    assert torch.model != onnx.task("banking").model


def test_an_encoder_without_a_head_is_refused_with_what_to_do(cache_dir: Path) -> None:
    with pytest.raises(LoadError, match="crossover learn"):
        LocalModel.load(ModelSettings(), [TaskSpec("banking")], cache_dir=cache_dir)


def test_scores_that_are_not_finite_are_an_error_and_never_an_answer(cache_dir: Path) -> None:
    model = load(cache_dir, engine="onnx", threads=1)
    engine = model._stations[0].opened.engine
    real = engine.forward

    def forward(batch: Any) -> Any:
        output = real(batch)
        if len(batch[0]) == 3:
            output.embeddings[:] = np.nan
        return output

    engine.forward = forward  # type: ignore[method-assign]

    async def body() -> None:
        broken, fine = await ask(model, ["one", "two words"])
        assert type(broken).__name__ == "NotFinite"
        assert isinstance(fine, Prediction)

    run(model, body)


# --- one model beside another


@pytest.fixture
def version(tiny_model: Callable[..., Path], cache_dir: Path, tmp_path: Path) -> Callable[..., LocalModel]:
    """`version(n, beside=…, **settings)`: a model whose head says "good" of every text.

    Even versions have it as their first label, odd ones as their second: who reads one's scores with the other's labels
    finds "bad".
    """
    source = tiny_model("bert", classifier=False)
    encoder = encoders.find(str(source))

    def make(number: int, *, beside: LocalModel | None = None, **settings: Any) -> LocalModel:
        good = number % 2
        head = tmp_path / f"head-{number}"
        bias = np.full(2, -5.0, np.float32)
        bias[good] = 5.0
        labels = ("bad", "good") if good else ("good", "bad")
        weight = np.zeros((2, encoder.hidden), np.float32)
        save_head(head, task="t", labels=labels, encoder=encoder, fitted={"torch-fp32": (weight, bias, 1.0, {})})
        chosen = ModelSettings(
            source=str(source), engine="torch", device="cpu", threads=1, queue_tokens=10_000, **settings
        )
        return LocalModel.load(chosen, [TaskSpec("t", head)], cache_dir=cache_dir, beside=beside)

    return make


def test_a_head_that_another_engine_must_serve_gets_one_of_its_own_beside(
    tiny_model: Callable[..., Path], cache_dir: Path, tmp_path: Path
) -> None:
    """A swap goes through the gate as a start does: a head fitted for torch alone does not ride on the int8 engine."""
    encoder = encoders.find(str(tiny_model("bert", classifier=False)))
    fitted = (np.zeros((2, encoder.hidden), np.float32), np.zeros(2, np.float32), 1.0, {})
    both, torch_only = tmp_path / "both", tmp_path / "torch-only"
    for head, kinds in ((both, ("onnx-int8", "torch-fp32")), (torch_only, ("torch-fp32",))):
        save_head(head, task="t", labels=("a", "b"), encoder=encoder, fitted=dict.fromkeys(kinds, fitted))
    settings = ModelSettings(source=encoder.source, device="cpu", threads=1)
    first = LocalModel.load(settings, [TaskSpec("t", both)], cache_dir=cache_dir)
    beside = LocalModel.load(settings, [TaskSpec("t", torch_only)], cache_dir=cache_dir, beside=first)
    same = LocalModel.load(settings, [TaskSpec("t", both)], cache_dir=cache_dir, beside=first)
    assert [model.status()["encoders"][0]["kind"] for model in (first, beside, same)] == [
        "onnx-int8",
        "torch-fp32",
        "onnx-int8",
    ]
    assert same._stations == first._stations
    for model in (beside, first):
        model.close()


async def judged(model: LocalModel, texts: list[str]) -> list[str]:
    labels = model.task("t").labels
    found = await asyncio.gather(*model.submit("t", texts, truncate=True, deadline=None))
    return [labels[int(answer.probabilities.argmax())] for answer in found]


def test_a_model_beside_another_shares_its_encoder_and_closing_one_leaves_the_other(
    version: Callable[..., LocalModel],
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        first = version(0)
        first.warm()
        first.start(loop)
        second, other = version(1, beside=first), version(2, beside=first, max_tokens=20)
        assert second._stations == first._stations
        assert other._stations != first._stations, "other settings, another engine"
        assert second.task("t").identity != first.task("t").identity
        second.warm()
        second.start(loop)
        await asyncio.to_thread(first.close)
        await asyncio.to_thread(first.close)
        assert second.healthy
        assert await judged(second, ["film"] * 3) == ["good"] * 3
        never_started = version(3, beside=second)
        await asyncio.to_thread(never_started.close)
        assert second.healthy
        await asyncio.to_thread(other.close)
        assert await judged(second, ["film"]) == ["good"]
        await asyncio.to_thread(second.close)
        assert not second.healthy
        with pytest.raises(EngineFailed):
            await judged(second, ["film"])

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_model_is_idle_when_the_last_who_uses_it_is_done(onnx: LocalModel) -> None:
    async def main() -> None:
        await onnx.idle()
        with onnx:
            with onnx:
                waits = asyncio.create_task(onnx.idle())
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not waits.done()
        await waits

    asyncio.run(asyncio.wait_for(main(), 60))


def test_swapping_under_load_fails_no_request_and_mixes_no_versions(version: Callable[..., LocalModel]) -> None:
    """The head is swapped, and then the encoder's settings with it: what was begun on the old one ends there."""
    swaps, answers = 8, list[tuple[int, list[str]]]()

    async def main() -> None:
        loop, answered, done = asyncio.get_running_loop(), asyncio.Event(), False
        serving = 0, version(0)
        serving[1].warm()
        serving[1].start(loop)

        async def client(size: int) -> None:
            while not done:
                number, model = serving
                with model:
                    answers.append((number, await judged(model, ["very good film"] * size)))
                answered.set()

        clients = [asyncio.create_task(client(size)) for size in (1, 1, 1, 12, 40)]
        for number in range(1, swaps + 1):
            settings = {"max_tokens": 20 + number} if number % 4 == 0 else {}
            new = await asyncio.to_thread(version, number, beside=serving[1], **settings)
            await asyncio.to_thread(new.warm)
            new.start(loop)
            (_, old), serving = serving, (number, new)
            await old.idle()
            await asyncio.to_thread(old.close)
            while answers[-1][0] != number:
                answered.clear()
                await answered.wait()
        done = True
        await asyncio.gather(*clients)
        await asyncio.to_thread(serving[1].close)

    asyncio.run(asyncio.wait_for(main(), 120))
    assert {number for number, _ in answers} == set(range(swaps + 1)), "each version served"
    assert all(set(labels) == {"good"} for _, labels in answers)
