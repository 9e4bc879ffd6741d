"""The laws of the batcher, on a fake engine that is held and let go by events. No sleeps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_model.batcher import WINDOW, Batcher, _Job
from local_model.engines import EngineDead
from local_model.heads import Head
from local_model.packing import pick
from local_model.scoring import Scored, Text
from local_model.types import EngineFailed, Expired, ModelError, NotFinite, QueueFull

#: The batcher only hands it on.
HEAD = Head(labels=("a", "b"), multi_label=False, temperature=1.0, digest="")


def text(number: int, length: int = 3) -> Text:
    return Text([number] * length, length, False, HEAD)


def score(item: Text) -> Scored:
    """An answer that names its text."""
    return Scored(np.array([item.ids[0]], np.float32), np.zeros(1, np.float32), ((0, 1.0),))


class FakeEngine:
    """Records its batches; holds every forward until `go` is set; raises on the texts in `poison`."""

    def __init__(self, poison: Sequence[int] = (), held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.poison = set(poison)
        self.entered = threading.Event()
        self.go = threading.Event()
        if not held:
            self.go.set()

    def __call__(self, batch: Sequence[Text]) -> list[Scored | ModelError]:
        self.entered.set()
        assert self.go.wait(20), "the test never let the engine go"
        numbers = [item.ids[0] for item in batch]
        self.batches.append(numbers)
        if self.poison & set(numbers):
            raise ValueError("secret text in the message")
        return [score(item) for item in batch]


def serve(engine: Callable[..., Any], body: Callable[[Batcher], Awaitable[None]], **options: Any) -> Batcher:
    """Run `body` on a loop with a started batcher."""
    batcher = Batcher(engine, **options)

    async def main() -> None:
        batcher.start(asyncio.get_running_loop())
        try:
            await asyncio.wait_for(body(batcher), 30)
        finally:
            if isinstance(engine, FakeEngine):
                engine.go.set()
            await asyncio.to_thread(batcher.close)

    asyncio.run(main())
    return batcher


async def entered(engine: FakeEngine) -> None:
    assert await asyncio.to_thread(engine.entered.wait, 20)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=60),
    cancel=st.sets(st.integers(0, 59)),
    poison=st.sets(st.integers(0, 59), max_size=4),
    threads=st.integers(1, 3),
    max_items=st.integers(1, 9),
    chunk=st.integers(1, 20),
)
def test_every_caller_gets_the_answer_to_its_own_text_once_or_its_own_error(
    lengths: list[int], cancel: set[int], poison: set[int], threads: int, max_items: int, chunk: int
) -> None:
    engine = FakeEngine(poison, held=True)

    async def body(batcher: Batcher) -> None:
        futures: list[asyncio.Future[Any]] = []
        for start in range(0, len(lengths), chunk):
            part = [text(i, lengths[i]) for i in range(start, min(start + chunk, len(lengths)))]
            futures += batcher.submit(part)
            await asyncio.sleep(0)
        for i in cancel & set(range(len(futures))):
            futures[i].cancel()
        engine.go.set()
        results = await asyncio.gather(*futures, return_exceptions=True)
        for i, result in enumerate(results):
            if i in cancel:
                assert isinstance(result, asyncio.CancelledError)
            elif i in poison:
                assert isinstance(result, EngineFailed)
            else:
                assert not isinstance(result, BaseException)
                assert result.probabilities[0] == i
                assert result.tokens == lengths[i]

    batcher = serve(engine, body, threads=threads, max_items=max_items, max_tokens=40)
    done = [number for batch in engine.batches for number in batch if not poison & set(batch)]
    assert len(done) == len(set(done)), "a text was computed twice"
    assert all(len(batch) <= max_items for batch in engine.batches)
    assert batcher.stats()["waiting"] == batcher.stats()["running"] == 0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(1, 16), st.integers(1, 300))
def test_a_batch_holds_the_oldest_text_its_neighbours_in_length_and_keeps_to_its_budget(
    lengths: list[int], items: int, tokens: int
) -> None:
    chosen = pick(lengths, items, tokens)
    assert 0 in chosen
    assert len(set(chosen)) == len(chosen) <= items
    longest = max(lengths[i] for i in chosen)
    assert len(chosen) * longest <= tokens or chosen == [0]
    low = min(lengths[i] for i in chosen)
    between = [i for i, n in enumerate(lengths) if low < n < longest]
    assert set(between) <= set(chosen), "a text between two chosen ones costs no padding and was left out"


def test_a_lone_text_is_computed_at_once() -> None:
    engine = FakeEngine()

    async def body(batcher: Batcher) -> None:
        assert (await batcher.submit([text(7)])[0]).probabilities[0] == 7

    serve(engine, body, max_items=8)
    assert engine.batches == [[7]]


def test_what_waits_while_the_device_is_busy_rides_together() -> None:
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        first = batcher.submit([text(0)])
        await entered(engine)
        rest = batcher.submit([text(i) for i in range(1, 5)])
        engine.go.set()
        await asyncio.gather(*first, *rest)

    serve(engine, body, max_items=8)
    assert [sorted(batch) for batch in engine.batches] == [[0], [1, 2, 3, 4]]


def test_one_text_per_forward_where_the_engine_does_not_batch() -> None:
    engine = FakeEngine()

    async def body(batcher: Batcher) -> None:
        await asyncio.gather(*batcher.submit([text(i) for i in range(20)]))

    serve(engine, body, threads=2, max_items=1)
    assert sorted(engine.batches) == [[i] for i in range(20)]


def test_a_text_that_breaks_the_forward_fails_alone_and_its_message_stays_inside() -> None:
    engine = FakeEngine(poison=[13], held=True)

    async def body(batcher: Batcher) -> None:
        first = batcher.submit([text(99)])
        await entered(engine)
        futures = batcher.submit([text(i) for i in range(32)])
        engine.go.set()
        results = await asyncio.gather(*first, *futures, return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        assert isinstance(results[14], EngineFailed)
        assert failed == [results[14]]
        assert "secret" not in str(failed[0])
        assert batcher.healthy

    serve(engine, body, max_items=32, max_tokens=1_000)
    assert len(engine.batches) <= 1 + 1 + 2 * 5, "isolating one of 32 takes at most two forwards a halving"


def test_an_answer_that_is_not_finite_fails_its_text_alone() -> None:
    def engine(batch: Sequence[Text]) -> list[Scored | ModelError]:
        return [NotFinite("no") if item.ids[0] == 1 else score(item) for item in batch]

    async def body(batcher: Batcher) -> None:
        results = await asyncio.gather(*batcher.submit([text(i) for i in range(3)]), return_exceptions=True)
        assert [type(result).__name__ for result in results] == ["Prediction", "NotFinite", "Prediction"]

    serve(engine, body, max_items=8)


def test_a_full_queue_refuses_the_whole_request_and_says_when_to_come_back() -> None:
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        batcher.observe(1, 0.5)
        running = batcher.submit([text(0)])
        await entered(engine)
        waiting = batcher.submit([text(i) for i in range(1, 4)])
        with pytest.raises(QueueFull) as refused:
            batcher.room(2)
        assert refused.value.retry_after == pytest.approx(1.5)
        assert batcher.stats()["waiting"] == 3
        batcher.room(1)
        fits = batcher.submit([text(4)])
        engine.go.set()
        await asyncio.gather(*running, *waiting, *fits)

    serve(engine, body, queue_items=4)
    assert sorted(engine.batches) == [[i] for i in range(5)], "nothing of the refused request was computed"


def test_a_request_larger_than_the_queue_is_admitted_when_the_queue_is_empty() -> None:
    async def body(batcher: Batcher) -> None:
        batcher.room(10)
        assert len(await asyncio.gather(*batcher.submit([text(i) for i in range(10)]))) == 10

    serve(FakeEngine(), body, queue_items=4)


def test_gone_callers_make_room_and_are_never_computed() -> None:
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        running = batcher.submit([text(0)])
        await entered(engine)
        for future in batcher.submit([text(i) for i in range(1, 5)]):
            future.cancel()
        batcher.room(2)
        fits = batcher.submit([text(5), text(6)])
        engine.go.set()
        await asyncio.gather(*running, *fits)
        assert batcher.stats()["cancelled"] == 4

    serve(engine, body, queue_items=4)
    assert sorted(engine.batches) == [[0], [5], [6]]


def test_a_text_whose_deadline_passed_in_the_queue_is_told_so_and_not_computed() -> None:
    engine, now = FakeEngine(held=True), [100.0]

    async def body(batcher: Batcher) -> None:
        loop = asyncio.get_running_loop()
        running = batcher.submit([text(0)])
        await entered(engine)
        late = batcher.submit([text(1)], deadline=loop.time() + 5)
        patient = batcher.submit([text(2)], deadline=loop.time() + 5_000)
        now[0] += 60
        engine.go.set()
        results = await asyncio.gather(*running, *late, *patient, return_exceptions=True)
        assert [type(result).__name__ for result in results] == ["Prediction", "Expired", "Prediction"]
        assert isinstance(results[1], Expired)

    serve(engine, body, clock=lambda: now[0])
    assert engine.batches == [[0], [2]]


def test_who_waits_past_the_deadline_is_told_then_and_not_when_the_device_is_free() -> None:
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        loop = asyncio.get_running_loop()
        running = batcher.submit([text(0)])
        await entered(engine)
        patient = batcher.submit([text(1)], deadline=loop.time() + 1_000)
        late = batcher.submit([text(2)], deadline=loop.time() + 0.05)
        later = batcher.submit([text(3)], deadline=loop.time() + 0.1)
        for future in (*late, *later):
            with pytest.raises(Expired):
                await asyncio.wait_for(future, 10)
        assert not engine.batches, "the device is still busy with the first"
        assert not patient[0].done()
        engine.go.set()
        await asyncio.gather(*running, *patient)

    serve(engine, body)
    assert engine.batches == [[0], [1]]


def test_refusing_many_requests_searches_the_queue_once() -> None:
    """An overload is when the loop has no time to look at every waiting text for every refusal."""
    engine, now, looked = FakeEngine(held=True), [100.0], 0

    async def body(batcher: Batcher) -> None:
        running = batcher.submit([text(0)])
        await entered(engine)
        waiting = batcher.submit([text(i) for i in range(1, 101)])
        real = batcher._wanted

        def counted(*arguments: Any) -> bool:
            nonlocal looked
            looked += 1
            return real(*arguments)

        batcher._wanted = counted  # type: ignore[method-assign]
        for _ in range(1_000):
            with pytest.raises(QueueFull):
                batcher.room(1)
        assert looked == 100
        for future in waiting:
            future.cancel()
        now[0] += 0.01
        batcher.room(1)
        engine.go.set()
        await asyncio.gather(*running)

    serve(engine, body, queue_items=100, clock=lambda: now[0])


@pytest.mark.parametrize("error", [EngineDead("the device is gone"), SystemExit(3), KeyboardInterrupt()])
def test_when_the_engine_thread_dies_every_caller_is_told_and_so_is_the_service(error: BaseException) -> None:
    engine, deaths = FakeEngine(held=True), []

    def dies(batch: Sequence[Text]) -> list[Scored | ModelError]:
        engine(batch)
        raise error

    async def body(batcher: Batcher) -> None:
        told = asyncio.Event()
        batcher.on_death = lambda reason: (deaths.append(reason), told.set())[0]
        assert batcher.healthy
        futures = batcher.submit([text(0)])
        await entered(engine)
        futures += batcher.submit([text(1), text(2)])
        engine.go.set()
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(result) for result in results] == [EngineFailed] * 3
        await told.wait()
        assert not batcher.healthy
        with pytest.raises(EngineFailed):
            await batcher.submit([text(3)])[0]

    serve(dies, body)
    assert deaths == [error]


def test_an_engine_that_answers_too_few_is_dead_because_whose_answer_is_whose_is_unknown() -> None:
    async def body(batcher: Batcher) -> None:
        with pytest.raises(EngineFailed):
            await batcher.submit([text(0)])[0]
        assert not batcher.healthy

    serve(lambda batch: [], body)


def test_a_forward_that_hangs_shows_in_health() -> None:
    engine, now = FakeEngine(held=True), [0.0]

    async def body(batcher: Batcher) -> None:
        futures = batcher.submit([text(0)])
        await entered(engine)
        assert batcher.healthy
        now[0] += 31
        assert not batcher.healthy
        engine.go.set()
        await asyncio.gather(*futures)
        assert batcher.healthy

    serve(engine, body, clock=lambda: now[0])


def test_closing_finishes_what_was_admitted_and_refuses_what_comes_later() -> None:
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        futures = batcher.submit([text(i) for i in range(4)])
        await entered(engine)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        engine.go.set()
        assert [result.probabilities[0] for result in await asyncio.gather(*futures)] == [0, 1, 2, 3]
        await closing
        with pytest.raises(EngineFailed):
            await batcher.submit([text(9)])[0]

    serve(engine, body)


def test_closing_does_not_wait_for_ever_and_tells_who_waits() -> None:
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        futures = batcher.submit([text(i) for i in range(3)])
        await entered(engine)
        await asyncio.to_thread(batcher.close, 0.0)
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(result) for result in results] == [EngineFailed] * 3
        engine.go.set()

    serve(engine, body)


def test_one_wake_up_of_the_loop_delivers_a_whole_batch() -> None:
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        loop = asyncio.get_running_loop()
        first = batcher.submit([text(0)])
        await entered(engine)
        rest = batcher.submit([text(i) for i in range(1, 9)])
        wakes = 0
        real = loop.call_soon_threadsafe

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return real(*args, **kwargs)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        try:
            engine.go.set()
            await asyncio.gather(*first, *rest)
        finally:
            loop.call_soon_threadsafe = real  # type: ignore[method-assign]
        assert wakes <= 2, "two batches, so two wake-ups at most"

    serve(engine, body, max_items=8)


def test_every_forward_is_reported_with_its_size_and_tokens() -> None:
    seen: list[tuple[int, int]] = []

    async def body(batcher: Batcher) -> None:
        await asyncio.gather(*batcher.submit([text(1, 5)]))

    serve(FakeEngine(), body, on_batch=lambda size, tokens, run_us: seen.append((size, tokens)))
    assert seen == [(1, 5)]


def test_callers_who_leave_while_a_batch_forms_leave_no_empty_batch_behind() -> None:
    """A future may be cancelled between two looks at it: the thread lives on, and takes whoever still waits."""

    class Caller:
        """Gone after so many looks."""

        def __init__(self, patience: int) -> None:
            self.patience = patience

        def done(self) -> bool:
            self.patience -= 1
            return self.patience < 0

    def job(patience: int) -> _Job:
        return _Job(Text([1, 2], 2, False, None), Caller(patience), None, 0.0)  # type: ignore[arg-type]

    batcher = Batcher(lambda _: [], max_items=2)
    batcher._queue.append(job(1))
    assert batcher._form() == []
    window = [job(1), *(job(0) for _ in range(WINDOW * 2 - 1))]
    stays = job(9)
    batcher._queue.extend([*window, stays])
    assert batcher._form() == [stays]
