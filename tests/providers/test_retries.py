"""When a failed call is made again at the same provider. Clock, pauses and jitter are ours: nothing waits for real."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost.fake import MemoryLedger
from cost.prices import PriceTable
from cost.types import Budget, Usage
from providers.breaker import BreakerSettings
from providers.chain import Chain
from providers.fake import ScriptedProvider
from providers.retries import RetrySettings
from providers.settings import LaneSettings
from providers.types import (
    Answer,
    AuthFailed,
    BadAnswer,
    BadRequest,
    Caller,
    FrontierUnavailable,
    Label,
    ProviderError,
    Question,
    RateLimited,
    SchemaRefused,
    TimedOut,
    Unavailable,
)

Books = Callable[..., Any]
ANSWER = Answer("card_arrival", "claude-haiku-5-5", Usage(input=100, output=9))


class Time:
    """A clock that moves only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def chain(books: Books, time: Time) -> Books:
    """(*scripts of the providers) -> books; jitter is half of what it may be."""

    def make(*scripts: list[Any], **more: Any) -> Any:
        providers = [ScriptedProvider(name, "claude-haiku-5-5", steps) for name, steps in zip("abc", scripts)]  # noqa: B905
        made = books(providers, **{"clock": time, "sleep": time.sleep, "draw": lambda: 0.5, **more})
        made.providers = providers
        return made

    return make


def asked(b: Any) -> list[int]:
    return [len(provider.asked) for provider in b.providers]


@pytest.mark.parametrize("error", [Unavailable("x"), RateLimited("x")])
def test_a_passing_failure_is_tried_once_more_after_a_short_pause(
    chain: Books, time: Time, question: Question, error: ProviderError
) -> None:
    async def main() -> None:
        b = chain([error, ANSWER], [ANSWER])
        answer = await b.ask(question)
        assert (answer.provider, answer.attempts, time.slept) == ("a", 2, [0.05])
        assert answer.cost_nano == b.spent
        assert (asked(b), b.chain.status()[0]["retries"]) == ([2, 0], 1)

    asyncio.run(main())


def test_what_fails_twice_goes_on_to_the_next_provider_and_every_call_has_its_row(
    chain: Books, question: Question
) -> None:
    async def main() -> None:
        b = chain([Unavailable("x")], [Unavailable("x")], [ANSWER])
        answer = await b.ask(question)
        assert (answer.provider, answer.attempts) == ("c", 5)
        assert b.states == ["uncertain"] * 4 + ["settled"]
        assert answer.cost_nano == b.spent

    asyncio.run(main())


@pytest.mark.parametrize("error", [TimedOut("x"), BadAnswer("x"), AuthFailed("x"), BadRequest("x")])
def test_what_would_fail_again_or_has_used_its_time_is_not_tried_again(
    chain: Books, time: Time, question: Question, error: ProviderError
) -> None:
    async def main() -> None:
        b = chain([error], [ANSWER])
        assert (await b.ask(question)).provider == "b"
        assert (asked(b), time.slept) == ([1, 1], [])

    asyncio.run(main())


def test_the_wait_that_a_provider_asks_for_is_the_least_and_ends_in_the_half_open_probe(
    chain: Books, time: Time, question: Question
) -> None:
    async def main() -> None:
        b = chain([RateLimited("x", retry_after=2.0), ANSWER], [ANSWER])
        assert (await b.ask(question, within=6)).provider == "a"
        assert time.slept == [2.05]
        assert b.chain.status()[0]["breaker"] == "closed"  # the probe has closed it

    asyncio.run(main())


@pytest.mark.parametrize(("retry_after", "within"), [(3600.0, 10.0), (30.0, 10.0), (4.0, 5.0), (3.0, 5.0)])
def test_a_wait_that_does_not_fit_the_providers_part_of_the_deadline_is_not_begun(
    chain: Books, time: Time, question: Question, retry_after: float, within: float
) -> None:
    """The first of two has 60 % of the time. The next one is asked at once, and others leave the first alone."""

    async def main() -> None:
        b = chain([RateLimited("x", retry_after=retry_after)], [ANSWER])
        assert (await b.ask(question, within=within)).provider == "b"
        assert (await b.ask(question, within=within)).provider == "b"
        assert (asked(b), time.slept) == ([1, 2], [])

    asyncio.run(main())


def test_a_wait_that_leaves_no_time_for_a_call_as_they_usually_are_is_not_begun(
    chain: Books, time: Time, question: Question
) -> None:
    async def slow(_: Question) -> Answer:
        time.now += 3
        return ANSWER

    async def main() -> None:
        limited = RateLimited("x", retry_after=3.0)
        b = chain([*[slow] * 20, limited, ANSWER])
        for _ in range(20):
            await b.ask(question)
        with pytest.raises(FrontierUnavailable):
            await b.ask(question, within=5)  # 3 s of pause and 3 s of work
        assert time.slept == []
        time.now += 10
        assert (await b.ask(question, within=5)).label == "card_arrival"

    asyncio.run(main())


def test_a_provider_that_the_breaker_leaves_alone_is_not_waited_for(
    chain: Books, time: Time, question: Question
) -> None:
    async def main() -> None:
        b = chain([Unavailable("x")], [ANSWER], breaker=BreakerSettings(failures=1))
        assert (await b.ask(question)).provider == "b"
        assert (asked(b), time.slept) == ([1, 1], [])

    asyncio.run(main())


def test_a_server_without_strict_schemas_is_asked_more_simply_at_once(
    chain: Books, time: Time, question: Question
) -> None:
    """From schema to JSON to words are two steps. They cost nothing, and are nobody's failure."""

    async def main() -> None:
        b = chain([SchemaRefused("x"), SchemaRefused("x"), ANSWER], [ANSWER])
        answer = await b.ask(question)
        assert (answer.provider, answer.attempts, time.slept) == ("a", 3, [])
        assert b.states == ["unbilled", "unbilled", "settled"]
        status = b.chain.status()[0]
        assert (status["failures"], status["retries"]) == (0, 0)
        b = chain([SchemaRefused("x")], [ANSWER])
        assert (await b.ask(question)).provider == "b"
        assert asked(b) == [3, 1]

    asyncio.run(main())


@pytest.mark.parametrize(("callers", "allowed"), [(2, 2), (5, 3), (15, 3), (30, 6)])
def test_of_many_failing_calls_a_fifth_is_tried_again_but_three_at_least(
    chain: Books, question: Question, callers: int, allowed: int
) -> None:
    """And of those who come later likewise: nobody keeps a place who has gone."""

    async def main() -> None:
        all_in, go_on = asyncio.Event(), asyncio.Event()
        under_way = 0

        async def fail(_: Question) -> Answer:
            nonlocal under_way
            under_way += 1
            if under_way == callers:
                all_in.set()
            await all_in.wait()
            raise Unavailable("x")

        async def pause(_: float) -> None:
            await go_on.wait()

        script = [*[fail] * callers, *[ANSWER] * allowed] * 2
        lanes = {"a": LaneSettings(max_in_flight=callers)}
        b = chain(script, lanes=lanes, breaker=BreakerSettings(failures=10**6), sleep=pause)
        for around in (1, 2):
            under_way = 0
            all_in.clear()
            go_on.clear()
            asking = [asyncio.create_task(b.ask(question)) for _ in range(callers)]
            async with asyncio.timeout(10):
                for each in itertools.islice(asyncio.as_completed(asking), callers - allowed):
                    with pytest.raises(FrontierUnavailable):
                        await each
            go_on.set()
            results = await asyncio.gather(*asking, return_exceptions=True)
            assert sum(not isinstance(result, BaseException) for result in results) == allowed
            status = b.chain.status()[0]
            assert (status["retries"], status["overflow"]["retries"]) == (
                around * allowed,
                around * (callers - allowed),
            )
            assert len(b.states) == around * (callers + allowed)

    asyncio.run(main())


def test_a_retry_gives_its_place_in_the_budget_back_even_if_its_caller_leaves(chain: Books, question: Question) -> None:
    async def main() -> None:
        pausing, waiting = asyncio.Semaphore(0), asyncio.Event()

        async def pause(_: float) -> None:
            pausing.release()
            await waiting.wait()

        b = chain(
            [Unavailable("x"), ANSWER, Unavailable("x"), ANSWER],
            sleep=pause,
            retries=RetrySettings(floor=1, share=0.0),
        )
        leaving = asyncio.create_task(b.ask(question))
        await pausing.acquire()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert b.states == ["uncertain"]  # the call that was made; nothing is set aside for the other
        waiting.set()
        assert (await b.ask(question)).attempts == 1
        assert (await b.ask(question)).attempts == 2
        assert b.chain.status()[0]["overflow"]["retries"] == 0

    asyncio.run(main())


def test_who_waits_to_ask_again_holds_no_place_among_the_calls(chain: Books, question: Question) -> None:
    async def main() -> None:
        pausing, go_on = asyncio.Event(), asyncio.Event()

        async def pause(_: float) -> None:
            pausing.set()
            await go_on.wait()

        b = chain([Unavailable("x"), ANSWER], lanes={"a": LaneSettings(max_in_flight=1)}, sleep=pause)
        first = asyncio.create_task(b.ask(question, index=0))
        await pausing.wait()
        assert b.chain.status()[0]["in_flight"] == 0
        assert (await b.ask(question, index=1)).attempts == 1
        go_on.set()
        assert (await first).attempts == 2

    asyncio.run(main())


def test_a_retry_is_made_within_the_budget_of_money_only(chain: Books, question: Question) -> None:
    async def main() -> None:
        whole = chain([ANSWER])
        await whole.ask(question)
        estimate = whole.ledger.attempts[1].intent.estimate_nano
        b = chain([Unavailable("x"), ANSWER], budget=Budget(estimate * 2 - 1))
        with pytest.raises(FrontierUnavailable) as caught:
            await b.ask(question)
        assert (caught.value.reason, caught.value.cost_nano, b.spent) == ("budget", estimate, estimate)
        assert asked(b) == [1]

    asyncio.run(main())


outcomes = st.sampled_from(
    [
        ANSWER,
        RateLimited("x"),
        RateLimited("x", retry_after=0.5),
        RateLimited("x", retry_after=900.0),
        Unavailable("x"),
        SchemaRefused("x"),
        TimedOut("x"),
        AuthFailed("x"),
        BadRequest("x"),
        BadAnswer("x"),
    ]
)


@settings(max_examples=60, deadline=None)
@given(scripts=st.lists(st.lists(outcomes, min_size=1, max_size=8), min_size=1, max_size=3))
def test_whatever_happens_calls_are_few_and_the_money_is_counted_once(scripts: list[list[Any]]) -> None:
    """Per question and provider at most two calls, three with a refused schema. What the callers are told they spent is
    what the books hold."""

    async def main() -> None:
        time = Time()
        ledger = MemoryLedger()
        providers = [ScriptedProvider(f"p{i}", "claude-haiku-5-5", steps) for i, steps in enumerate(scripts)]
        chain = Chain(
            providers,
            ledger=ledger,
            prices=PriceTable.load(),
            budget=Budget(),
            clock=time,
            sleep=time.sleep,
            draw=lambda: 0.5,
        )
        question = Question("t", "text", (Label("card_arrival"), Label("other")))
        told = 0
        for number in range(5):
            deadline = asyncio.get_running_loop().time() + 10
            try:
                told += (await chain.answer(question, Caller(f"r{number}", 0, "t"), deadline=deadline)).cost_nano
            except FrontierUnavailable as error:
                told += error.cost_nano
        attempts = list(ledger.attempts.values())
        assert len(attempts) == sum(len(provider.asked) for provider in providers)
        assert told == sum(attempt.cost_nano for attempt in attempts)
        assert max(time.slept, default=0) < 10
        refused = {
            (a.intent.request_id, a.intent.provider)
            for a in attempts
            if a.outcome and a.outcome.error == "SchemaRefused"
        }
        for key, calls in Counter((a.intent.request_id, a.intent.provider) for a in attempts).items():
            assert calls <= (3 if key in refused else 2)

    asyncio.run(main())
