"""What happens to a text before it waits for the engine: admission, tokenizing, and who does it."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from local_model import encoder as encoders
from local_model.heads import Head, model_head
from local_model.station import INLINE, ModelSettings, Station
from local_model.tokenize import Encoded, TextTokenizer
from local_model.types import EngineFailed, Expired, OverLength, Prediction, QueueFull

LONG = "good " * (INLINE // 5 + 1)  # more than is tokenized on the loop


class Watched:
    """A tokenizer that tells which texts it got on which thread, and can be held."""

    def __init__(self, real: TextTokenizer) -> None:
        self.real = real
        self.texts: list[str] = []
        self.threads: set[str] = set()
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()

    def encode(self, text: str, *, truncate: bool) -> Encoded:
        self.texts.append(text)
        self.threads.add(threading.current_thread().name)
        self.entered.release()
        assert self.go.wait(20), "the test never let the tokenizer go"
        return self.real.encode(text, truncate=truncate)


class Service:
    """A started station of a tiny model. The first forward is held while `go` is clear."""

    def __init__(self, station: Station) -> None:
        self.station = station
        self.head: Head = model_head(station.encoder)
        self.tokenizer = Watched(station.tokenizer)
        station.tokenizer = self.tokenizer  # type: ignore[assignment]
        self.batches: list[list[int]] = []  # lengths
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.forward, station.opened.engine.forward = station.opened.engine.forward, self.watched  # type: ignore[method-assign]

    def watched(self, batch: Sequence[Sequence[int]]) -> Any:
        self.entered.set()
        assert self.go.wait(20), "the test never let the engine go"
        self.batches.append([len(ids) for ids in batch])
        return self.forward(batch)

    def submit(
        self, texts: list[str], *, truncate: bool = False, deadline: float | None = None, tenant: str = ""
    ) -> list[asyncio.Future[Prediction]]:
        return self.station.submit(self.head, texts, truncate=truncate, deadline=deadline, tenant=tenant)

    async def ask(self, texts: list[str], **options: Any) -> list[Any]:
        return await asyncio.gather(*self.submit(texts, **options), return_exceptions=True)

    @property
    def stats(self) -> dict[str, int]:
        return self.station.batcher.stats()


Run = Callable[..., Service]


@pytest.fixture
def run(tiny_model: Callable[..., Path], cache_dir: Path) -> Run:
    """`run(body, **settings)`: `await body(service)` on a loop with a started station."""

    def start(body: Callable[[Service], Awaitable[None]], **settings: Any) -> Service:
        chosen = ModelSettings(source=str(tiny_model("bert")), engine="torch", device="cpu", threads=1, **settings)
        service = Service(Station(chosen, encoders.find(chosen.source), [], cache_dir, None))

        async def main() -> None:
            service.station.start(asyncio.get_running_loop())
            try:
                await asyncio.wait_for(body(service), 60)
            finally:
                service.go.set()
                service.tokenizer.go.set()
                await asyncio.to_thread(service.station.close)

        asyncio.run(main())
        return service

    return start


async def happened(what: threading.Semaphore | threading.Event) -> None:
    wait = what.acquire if isinstance(what, threading.Semaphore) else what.wait
    assert await asyncio.to_thread(wait, timeout=20)


# --- who tokenizes


def test_a_short_request_is_tokenized_where_it_is_and_a_long_one_on_a_thread_of_the_pool(run: Run) -> None:
    async def body(service: Service) -> None:
        await service.ask(["good film", "bad plot"])
        assert service.tokenizer.threads == {threading.main_thread().name}
        service.tokenizer.threads.clear()
        await service.ask(["good " * 20] * 100, truncate=True)  # short texts, many of them
        await service.ask([LONG], truncate=True)
        assert all(name.startswith("tokenize") for name in service.tokenizer.threads)

    run(body)


def test_the_loop_turns_while_a_long_text_is_tokenized_and_short_ones_pass_it(run: Run) -> None:
    async def body(service: Service) -> None:
        service.tokenizer.go.clear()
        (long,) = service.submit([LONG], truncate=True)
        await happened(service.tokenizer.entered)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not long.done()
        service.tokenizer.go.set()
        service.station.tokenizer, watched = service.tokenizer.real, service.tokenizer
        assert isinstance((await service.ask(["good"]))[0], Prediction)
        assert isinstance(await long, Prediction)
        assert watched.texts == [LONG]

    run(body)


def test_texts_that_went_to_the_pool_are_answered_in_their_order(run: Run) -> None:
    words = [1 + 7 * i % 30 for i in range(200)]
    texts = [" ".join(["very"] * n) + " " * 40 for n in words]

    async def body(service: Service) -> None:
        found = await service.ask(texts)
        assert service.tokenizer.texts == texts
        assert all(name.startswith("tokenize") for name in service.tokenizer.threads)
        assert [answer.tokens for answer in found] == [n + 2 for n in words]

    run(body)


def test_callers_who_leave_before_their_text_is_tokenized_cost_nothing_more(run: Run) -> None:
    async def body(service: Service) -> None:
        service.tokenizer.go.clear()
        futures = service.submit([f"{LONG}{i}" for i in range(4)], truncate=True)
        await happened(service.tokenizer.entered)
        futures[1].cancel()
        futures[3].cancel()
        service.tokenizer.go.set()
        found = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(answer).__name__ for answer in found] == ["Prediction", "CancelledError"] * 2
        assert [text[-1] for text in service.tokenizer.texts] == ["0", "2"]
        assert service.stats["waiting_tokens"] == 0

    run(body)


def test_what_came_too_late_out_of_the_pool_is_told_and_not_computed(run: Run) -> None:
    async def body(service: Service) -> None:
        service.tokenizer.go.clear()
        (late,) = service.submit([LONG], truncate=True, deadline=asyncio.get_running_loop().time())
        service.tokenizer.go.set()
        with pytest.raises(Expired):
            await late
        assert service.stats["waiting_tokens"] == 0
        assert service.batches == []

    run(body)


# --- who is not let in


def test_a_full_queue_refuses_before_anything_is_tokenized(run: Run) -> None:
    async def body(service: Service) -> None:
        service.go.clear()
        running = service.submit(["good"])
        await happened(service.entered)
        waiting = service.submit(["bad film " * 4])
        seen = len(service.tokenizer.texts)
        for refused in (["good plot " * 4], [LONG], ["a"] * 200):
            with pytest.raises(QueueFull):
                service.submit(refused)
        assert len(service.tokenizer.texts) == seen
        service.go.set()
        await asyncio.gather(*running, *waiting)
        assert isinstance((await service.ask(["good plot " * 4]))[0], Prediction)

    run(body, queue_tokens=20)


def test_what_was_promised_to_a_text_in_the_pool_counts_and_is_given_back(run: Run) -> None:
    async def body(service: Service) -> None:
        service.tokenizer.go.clear()
        pooled = service.submit([LONG], truncate=True)
        assert service.stats["waiting_tokens"] == service.station.encoder.max_tokens
        with pytest.raises(QueueFull):
            service.submit(["good"])
        service.tokenizer.go.set()
        await asyncio.gather(*pooled)
        assert service.stats["waiting_tokens"] == 0

    run(body, queue_tokens=20)


@pytest.mark.parametrize("filler", ["", "very " * 3_000])
def test_a_text_that_is_too_long_or_no_text_at_all_fails_alone(run: Run, filler: str) -> None:
    """Inline, and (with a long neighbour) in the pool."""

    async def body(service: Service) -> None:
        texts = ["good film", "bad " * 50, "\ud800 broken", "awful plot", "x" * 20_000, *([filler] if filler else [])]
        found = await service.ask(texts)
        kinds = [Prediction, OverLength, EngineFailed, Prediction, OverLength, OverLength][: len(texts)]
        assert [type(answer) for answer in found] == kinds
        assert "broken" not in str(found[2])
        assert found[0].tokens == found[3].tokens == 4
        alone = await service.ask(["awful plot"])
        assert found[3].probabilities == pytest.approx(alone[0].probabilities, abs=1e-5)
        assert service.stats["waiting_tokens"] == 0

    run(body)


@pytest.mark.parametrize("filler", ["", "very " * 3_000])
def test_a_tokenizer_that_breaks_on_a_text_fails_that_text_and_says_nothing_of_it(run: Run, filler: str) -> None:
    async def body(service: Service) -> None:
        real = service.tokenizer.encode

        def encode(text: str, *, truncate: bool) -> Encoded:
            if text == "secret":
                raise RuntimeError(f"can't read {text}")
            return real(text, truncate=truncate)

        service.tokenizer.encode = encode  # type: ignore[method-assign]
        found = await service.ask(["good", "secret", "bad", filler], truncate=True)
        assert [type(answer) for answer in found] == [Prediction, EngineFailed, Prediction, Prediction]
        assert "secret" not in str(found[1])
        assert service.stats["waiting_tokens"] == 0

    run(body)


def test_a_document_of_a_hundred_thousand_words_is_refused_unread_with_flat_memory(run: Run) -> None:
    document = "word " * 100_000

    async def body(service: Service) -> None:
        real = service.tokenizer.real._tokenizer
        assert isinstance((await service.ask([document]))[0], OverLength)  # the pool's thread is there
        service.tokenizer.real._tokenizer = None  # type: ignore[assignment]
        tracemalloc.start()
        try:
            (refused,) = await service.ask([document])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            service.tokenizer.real._tokenizer = real
        assert isinstance(refused, OverLength)
        assert refused.tokens == 125_000
        assert peak < 1_000_000
        assert service.batches == []

    run(body)


# --- who goes first, and the end


def test_a_request_of_many_texts_is_bulk_and_lets_a_single_one_pass(run: Run) -> None:
    async def body(service: Service) -> None:
        service.go.clear()
        running = service.submit(["good"])
        await happened(service.entered)
        many = service.submit(["bad film"] * 100)
        few = service.submit(["not very good film"] * 8)
        service.go.set()
        await asyncio.gather(*running, *many, *few)
        first = next(number for number, batch in enumerate(service.batches) if 6 in batch)
        assert first <= 2, "behind what ran, and one batch of those that came before"

    run(body)


def test_closing_fails_what_waits_for_the_pool_and_what_is_in_it(run: Run) -> None:
    async def body(service: Service) -> None:
        service.tokenizer.go.clear()
        threads = service.station._pool._max_workers
        futures = [service.submit([LONG], truncate=True)[0] for _ in range(threads + 2)]
        for _ in range(threads):
            await happened(service.tokenizer.entered)
        await asyncio.to_thread(service.station.close)
        for waiting in futures[threads:]:
            with pytest.raises(EngineFailed):
                await waiting
        service.tokenizer.go.set()
        for begun in futures[:threads]:
            with pytest.raises(EngineFailed):
                await begun
        assert len(service.tokenizer.texts) == threads
        assert service.stats["waiting_tokens"] == 0

    run(body)


def test_texts_are_computed_after_close_by_nobody(run: Run) -> None:
    async def body(service: Service) -> None:
        await asyncio.to_thread(service.station.close)
        (refused,) = await service.ask(["good"])
        assert isinstance(refused, EngineFailed)
        (refused,) = await service.ask([LONG], truncate=True)
        assert isinstance(refused, EngineFailed)
        assert service.stats["waiting_tokens"] == 0

    run(body)
