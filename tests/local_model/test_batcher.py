"""The laws of the batcher, on a fake engine that is held and let go by events. No sleeps."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_model.batcher import Batcher
from local_model.engines import EngineDead
from local_model.heads import Head
from local_model.packing import pick
from local_model.scheduling import RECOVERY, WINDOW, Job, Scheduler
from local_model.scoring import Scored, Text
from local_model.types import EngineFailed, Expired, ModelError, NotFinite, Prediction, QueueFull

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
        self.claims: list[list[int]] = []
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


BATCHER = {"threads", "claim", "on_batch", "on_death", "clock"}


def serve(engine: Callable[..., Any], body: Callable[[Batcher], Awaitable[None]], **options: Any) -> Batcher:
    """Run `body` on a loop with a started batcher; `options` are the batcher's or the scheduler's."""
    scheduler = Scheduler(**{name: value for name, value in options.items() if name not in BATCHER})

    def run(batches: Sequence[Sequence[Text]]) -> list[Scored | ModelError]:
        if isinstance(engine, FakeEngine):
            engine.claims.append([item.ids[0] for batch in batches for item in batch])
        return [answer for batch in batches for answer in engine(batch)]

    batcher = Batcher(run, scheduler, **{name: value for name, value in options.items() if name in BATCHER})

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


def submit(batcher: Batcher, texts: Sequence[Text], **options: Any) -> list[asyncio.Future[Prediction]]:
    futures: list[asyncio.Future[Prediction]] = [asyncio.get_running_loop().create_future() for _ in texts]
    batcher.submit(list(zip(texts, futures, strict=True)), **options)
    return futures


@contextlib.contextmanager
def wake_ups() -> Iterator[list[None]]:
    """An entry for each time that another thread woke the loop."""
    loop, seen = asyncio.get_running_loop(), list[None]()
    real = loop.call_soon_threadsafe

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(None)
        return real(*args, **kwargs)

    loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        loop.call_soon_threadsafe = real  # type: ignore[method-assign]


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
            futures += submit(batcher, part)
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
        assert (await submit(batcher, [text(7)])[0]).probabilities[0] == 7

    serve(engine, body, max_items=8)
    assert engine.batches == [[7]]


def test_what_waits_while_the_device_is_busy_rides_together() -> None:
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        first = submit(batcher, [text(0)])
        await entered(engine)
        rest = submit(batcher, [text(i) for i in range(1, 5)])
        engine.go.set()
        await asyncio.gather(*first, *rest)

    serve(engine, body, max_items=8)
    assert [sorted(batch) for batch in engine.batches] == [[0], [1, 2, 3, 4]]


def test_one_text_per_forward_where_the_engine_does_not_batch() -> None:
    engine = FakeEngine()

    async def body(batcher: Batcher) -> None:
        await asyncio.gather(*submit(batcher, [text(i) for i in range(20)]))

    serve(engine, body, threads=2, max_items=1)
    assert sorted(engine.batches) == [[i] for i in range(20)]


def test_a_text_that_breaks_the_forward_fails_alone_and_its_message_stays_inside() -> None:
    engine = FakeEngine(poison=[13], held=True)

    async def body(batcher: Batcher) -> None:
        first = submit(batcher, [text(99)])
        await entered(engine)
        futures = submit(batcher, [text(i) for i in range(32)])
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
        results = await asyncio.gather(*submit(batcher, [text(i) for i in range(3)]), return_exceptions=True)
        assert [type(result).__name__ for result in results] == ["Prediction", "NotFinite", "Prediction"]

    serve(engine, body, max_items=8)


def test_a_full_queue_refuses_the_whole_request_and_says_when_to_come_back() -> None:
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        batcher.observe(texts=1, tokens=1, seconds=0.5)
        running = submit(batcher, [text(0)])
        await entered(engine)
        waiting = submit(batcher, [text(i, 1) for i in range(1, 4)])
        with pytest.raises(QueueFull) as refused:
            batcher.admit("", 2)
        assert refused.value.retry_after == pytest.approx(1.5)
        assert batcher.stats()["waiting"] == batcher.stats()["waiting_tokens"] == 3
        batcher.admit("", 1)
        with pytest.raises(QueueFull):
            batcher.admit("", 1)
        fits = submit(batcher, [text(4, 1)], promised=1)
        engine.go.set()
        await asyncio.gather(*running, *waiting, *fits)

    serve(engine, body, queue_tokens=4)
    assert sorted(engine.batches) == [[i] for i in range(5)], "nothing of the refused request was computed"


def test_a_request_larger_than_the_queue_is_admitted_when_the_queue_is_empty() -> None:
    async def body(batcher: Batcher) -> None:
        batcher.admit("", 30)
        assert len(await asyncio.gather(*submit(batcher, [text(i) for i in range(10)], promised=30))) == 10

    serve(FakeEngine(), body, queue_tokens=4)


def test_a_promise_that_is_taken_back_makes_room() -> None:
    async def body(batcher: Batcher) -> None:
        batcher.admit("a", 4)
        with pytest.raises(QueueFull):
            batcher.admit("b", 1)
        batcher.submit([], tenant="a", promised=4)
        assert batcher.stats()["waiting_tokens"] == 0
        batcher.admit("b", 4)

    serve(FakeEngine(), body, queue_tokens=4)


def test_gone_callers_make_room_and_are_never_computed() -> None:
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        running = submit(batcher, [text(0)])
        await entered(engine)
        for future in submit(batcher, [text(i) for i in range(1, 5)]):
            future.cancel()
        batcher.admit("", 6)
        fits = submit(batcher, [text(5), text(6)], promised=6)
        engine.go.set()
        await asyncio.gather(*running, *fits)
        assert batcher.stats()["cancelled"] == 4

    serve(engine, body, queue_tokens=12)
    assert sorted(engine.batches) == [[0], [5], [6]]


def test_a_text_whose_deadline_passed_in_the_queue_is_told_so_and_not_computed() -> None:
    engine, now = FakeEngine(held=True), [100.0]

    async def body(batcher: Batcher) -> None:
        loop = asyncio.get_running_loop()
        running = submit(batcher, [text(0)])
        await entered(engine)
        late = submit(batcher, [text(1)], deadline=loop.time() + 5)
        patient = submit(batcher, [text(2)], deadline=loop.time() + 5_000)
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
        running = submit(batcher, [text(0)])
        await entered(engine)
        patient = submit(batcher, [text(1)], deadline=loop.time() + 1_000)
        late = submit(batcher, [text(2)], deadline=loop.time() + 0.05)
        later = submit(batcher, [text(3)], deadline=loop.time() + 0.1)
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
        running = submit(batcher, [text(0)])
        await entered(engine)
        waiting = submit(batcher, [text(i) for i in range(1, 101)])
        scheduler = batcher._scheduler
        real = scheduler._wanted

        def counted(*arguments: Any) -> bool:
            nonlocal looked
            looked += 1
            return real(*arguments)

        scheduler._wanted = counted  # type: ignore[method-assign]
        for _ in range(1_000):
            with pytest.raises(QueueFull):
                batcher.admit("", 3)
        assert looked == 100
        for future in waiting:
            future.cancel()
        now[0] += 0.01
        batcher.admit("", 3)
        engine.go.set()
        await asyncio.gather(*running)

    serve(engine, body, queue_tokens=300, clock=lambda: now[0])


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
        futures = submit(batcher, [text(0)])
        await entered(engine)
        futures += submit(batcher, [text(1), text(2)])
        engine.go.set()
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(result) for result in results] == [EngineFailed] * 3
        await told.wait()
        assert not batcher.healthy
        with pytest.raises(EngineFailed):
            await submit(batcher, [text(3)])[0]

    serve(dies, body)
    assert deaths == [error]


def test_an_engine_that_answers_too_few_is_dead_because_whose_answer_is_whose_is_unknown() -> None:
    async def body(batcher: Batcher) -> None:
        with pytest.raises(EngineFailed):
            await submit(batcher, [text(0)])[0]
        assert not batcher.healthy

    serve(lambda batch: [], body)


def test_a_forward_that_hangs_shows_in_health() -> None:
    engine, now = FakeEngine(held=True), [0.0]

    async def body(batcher: Batcher) -> None:
        futures = submit(batcher, [text(0)])
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
        futures = submit(batcher, [text(i) for i in range(4)])
        await entered(engine)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        engine.go.set()
        assert [result.probabilities[0] for result in await asyncio.gather(*futures)] == [0, 1, 2, 3]
        await closing
        with pytest.raises(EngineFailed):
            await submit(batcher, [text(9)])[0]

    serve(engine, body)


def test_closing_does_not_wait_for_ever_and_tells_who_waits() -> None:
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        futures = submit(batcher, [text(i) for i in range(3)])
        await entered(engine)
        await asyncio.to_thread(batcher.close, 0.0)
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(result) for result in results] == [EngineFailed] * 3
        engine.go.set()

    serve(engine, body)


def test_one_wake_up_of_the_loop_delivers_a_whole_batch() -> None:
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        first = submit(batcher, [text(0)])
        await entered(engine)
        rest = submit(batcher, [text(i) for i in range(1, 9)])
        with wake_ups() as wakes:
            engine.go.set()
            await asyncio.gather(*first, *rest)
        assert 1 <= len(wakes) <= 2, "two batches, so two wake-ups at most"

    serve(engine, body, max_items=8)


def test_batches_that_end_while_the_loop_is_busy_wake_it_once() -> None:
    last = threading.Event()

    def engine(batch: Sequence[Text]) -> list[Scored | ModelError]:
        if batch[0].ids[0] == 19:
            last.set()
        return [score(item) for item in batch]

    async def body(batcher: Batcher) -> None:
        with wake_ups() as wakes:
            futures = submit(batcher, [text(i) for i in range(20)])
            assert last.wait(20), "the loop is busy until the last text is in the engine"
            await asyncio.gather(*futures)
        assert 1 <= len(wakes) <= 2, "nineteen together, and the last one perhaps by itself"

    serve(engine, body)


@pytest.mark.parametrize(("max_items", "sizes"), [(1, [1] * 12), (3, [3] * 4)])
def test_every_forward_is_reported_with_its_size_those_of_a_claim_too(max_items: int, sizes: list[int]) -> None:
    seen: list[int] = []

    async def body(batcher: Batcher) -> None:
        await asyncio.gather(*submit(batcher, [text(i) for i in range(12)]))

    batcher = serve(FakeEngine(), body, on_batch=seen.append, claim=4, max_items=max_items, hold=12)
    assert seen == sizes
    assert batcher.stats()["batches"] == len(sizes)


def test_one_bad_text_in_a_claim_fails_alone_and_the_time_is_shared_by_tokens() -> None:
    now, lengths = [0.0], [3, 3, 3, 9, 3, 3, 3, 3, 3]

    def engine(batch: Sequence[Text]) -> list[Scored | ModelError]:
        now[0] += 0.001 * len(batch[0].ids)
        if batch[0].ids[0] == 2:
            raise ValueError("secret text in the message")
        return [score(item) for item in batch]

    async def body(batcher: Batcher) -> None:
        batcher.observe(1_000, 1_000, 1e-3)  # so fast that four are claimed
        futures = submit(batcher, [text(i, length) for i, length in enumerate(lengths)])
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert [isinstance(result, EngineFailed) for result in results] == [i == 2 for i in range(9)]
        answers = [result for result in results if isinstance(result, Prediction)]
        assert [answer.probabilities[0] for answer in answers] == [0, 1, 3, 4, 5, 6, 7, 8]
        assert answers[2].run_us == pytest.approx(3 * answers[0].run_us, abs=3), "9 tokens and 3, in one claim"
        assert batcher.stats()["failed"] == 1

    serve(engine, body, claim=4, hold=9, clock=lambda: now[0])


def test_who_leaves_makes_no_empty_batch_and_whoever_stands_behind_them_goes() -> None:
    """However many left: the thread gets a batch as long as somebody waits."""
    scheduler, loop = Scheduler(max_items=2), asyncio.new_event_loop()
    gone = [loop.create_future() for _ in range(WINDOW * 2 + 1)]
    stays = Job(text(1), loop.create_future(), "", False, None, 0.0)
    scheduler.add([Job(text(0), future, "", False, None, 0.0) for future in gone])
    for future in gone:
        future.cancel()
    assert scheduler.form(0.0) == []
    scheduler.add([*(Job(text(0), future, "", False, None, 0.0) for future in gone), stays])
    assert scheduler.form(0.0) == [stays]
    loop.close()


def test_what_does_not_fit_the_memory_is_computed_in_parts_and_the_budget_shrinks_and_comes_back() -> None:
    memory, sizes = [40], list[int]()

    def engine(batch: Sequence[Text]) -> list[Scored | ModelError]:
        size = len(batch) * max(len(item.ids) for item in batch)
        sizes.append(size)
        if size > memory[0]:
            raise MemoryError("on the device")
        return [score(item) for item in batch]

    async def body(batcher: Batcher) -> None:
        futures = submit(batcher, [text(i, 4) for i in range(100)])
        assert [answer.probabilities[0] for answer in await asyncio.gather(*futures)] == list(range(100))
        assert batcher.stats()["batch_tokens"] == 32, "of 128, then 64, which is halved"
        assert batcher.stats()["out_of_memory"] == 3, "64 twice: the first batch had two halves of that size"
        assert batcher.stats()["failed"] == 0
        (too_long,) = submit(batcher, [text(0, 41)])
        with pytest.raises(EngineFailed, match="memory"):
            await too_long
        assert batcher.healthy
        assert batcher.stats()["batch_tokens"] == 20
        memory[0] = 1_000
        needed = 0
        while batcher.stats()["batch_tokens"] < 128:
            await asyncio.gather(*submit(batcher, [text(i, 128) for i in range(RECOVERY[0])]))  # each alone
            needed += 1
        assert needed == pytest.approx(31, abs=1), "a twentieth, rounded up, after every hundred"
        sizes.clear()
        await asyncio.gather(*submit(batcher, [text(i, 4) for i in range(64)]))
        assert max(sizes) == 128

    serve(engine, body, max_items=32, max_tokens=128, hold=100)


def test_where_many_wait_a_thread_takes_several_batches_at_once_and_their_answers_take_one_wake_up() -> None:
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        first = submit(batcher, [text(99)])
        await entered(engine)
        rest = submit(batcher, [text(i) for i in range(12)])
        with wake_ups() as wakes:
            engine.go.set()
            await asyncio.gather(*first)
            answers = await asyncio.gather(*rest)
        assert [answer.probabilities[0] for answer in answers] == list(range(12))
        # 4 and 4 together; when 4 are left another thread could want them: one by one.
        assert 1 <= len(wakes) <= 1 + 2 + 4
        assert batcher.stats()["batches"] == 13, "still one text per forward"

    serve(engine, body, claim=4)
    assert engine.batches == [[i] for i in [99, *range(12)]]


def test_a_thread_takes_no_second_batch_while_the_first_could_still_fill_it() -> None:
    """Five wait behind a batch of eight: they stay in the queue, and what comes meanwhile rides with them."""
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        futures = submit(batcher, [text(i) for i in range(13)])
        await entered(engine)
        futures += submit(batcher, [text(i) for i in range(13, 16)])
        engine.go.set()
        await asyncio.gather(*futures)

    serve(engine, body, claim=4, max_items=8, hold=13)
    assert [sorted(batch) for batch in engine.batches] == [list(range(8)), list(range(8, 16))]


@pytest.mark.parametrize("closing", [False, True])
def test_what_is_left_after_full_batches_waits_for_company_and_holds_nobody_up(closing: bool) -> None:
    """A thread that may take several batches looks for another one and finds some that are not due."""
    engine = FakeEngine()

    async def body(batcher: Batcher) -> None:
        futures = submit(batcher, [text(i) for i in range(15)])
        if closing:
            await asyncio.to_thread(batcher.close)
        answers = await asyncio.gather(*futures)
        assert [answer.probabilities[0] for answer in answers] == list(range(15))

    serve(engine, body, claim=4, max_items=8, linger_s=60.0 if closing else 0.001, hold=15)
    assert [sorted(batch) for batch in engine.batches] == [list(range(8)), list(range(8, 15))]


def test_when_a_thread_dies_those_of_all_threads_and_all_its_batches_are_told() -> None:
    """Those in a second batch it had taken, those on another thread, and those who wait."""
    entered_both, go = threading.Barrier(3), threading.Event()

    def engine(batch: Sequence[Text]) -> list[Scored | ModelError]:
        entered_both.wait(20)
        if batch[0].ids[0] == 0:
            raise EngineDead("gone")
        assert go.wait(20)
        return [score(item) for item in batch]

    async def body(batcher: Batcher) -> None:
        futures = submit(batcher, [text(i) for i in range(9)])
        await asyncio.to_thread(entered_both.wait, 20)
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(result) for result in results] == [EngineFailed] * 9
        assert not batcher.healthy
        go.set()

    serve(engine, body, threads=2, claim=3, hold=9)


def test_a_late_text_is_told_even_where_batches_are_held_back() -> None:
    engine = FakeEngine()

    async def body(batcher: Batcher) -> None:
        (late,) = submit(batcher, [text(1)], deadline=asyncio.get_running_loop().time() + 0.02)
        with pytest.raises(Expired):
            await asyncio.wait_for(late, 10)
        assert batcher.stats()["expired"] == 1
        assert batcher.stats()["waiting_tokens"] == 0

    serve(engine, body, hold=5)
    assert engine.batches == []


def test_a_text_of_another_tenant_passes_a_flood_and_a_tenant_fills_its_share_only() -> None:
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        futures = submit(batcher, [text(0)], tenant="flood")
        await entered(engine)
        batcher.admit("flood", 150)
        futures += submit(batcher, [text(i) for i in range(1, 51)], tenant="flood", promised=150)
        with pytest.raises(QueueFull):
            batcher.admit("flood", 3)
        batcher.admit("other", 3)
        futures += submit(batcher, [text(100)], tenant="other", promised=3)
        engine.go.set()
        await asyncio.gather(*futures)

    serve(engine, body, queue_tokens=300, tenant_share=0.5)
    assert engine.batches == [[0], [100], *([i] for i in range(1, 51))]


def test_interactive_texts_pass_bulk() -> None:
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        futures = submit(batcher, [text(i) for i in range(20)], bulk=True)
        await entered(engine)
        futures += submit(batcher, [text(i) for i in range(100, 104)])
        engine.go.set()
        await asyncio.gather(*futures)

    serve(engine, body)
    assert engine.batches[:5] == [[0], [100], [101], [102], [103]]


def test_a_claim_holds_texts_of_one_flow_only() -> None:
    """Its answers come together: who has one text waits for its own forward, not for those of a flood beside it."""
    engine = FakeEngine(held=True)

    async def body(batcher: Batcher) -> None:
        futures = submit(batcher, [text(99)], tenant="flood")
        await entered(engine)
        futures += submit(batcher, [text(i) for i in range(8)], tenant="flood")
        futures += submit(batcher, [text(50)], tenant="other")
        futures += submit(batcher, [text(i) for i in range(8, 20)], tenant="flood")
        engine.go.set()
        await asyncio.gather(*futures)

    serve(engine, body, claim=4)
    assert [claim for claim in engine.claims if 50 in claim] == [[50]]
    assert max(map(len, engine.claims)) == 4, "a flood alone is still claimed several at a time"
