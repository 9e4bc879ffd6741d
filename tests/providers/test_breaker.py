"""When a provider is left alone, and when it is asked again. The clock is ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from cost.types import Usage
from providers.breaker import Admission, Breaker, BreakerSettings
from providers.fake import ScriptedProvider
from providers.simulator import Simulator
from providers.types import (
    Answer,
    AuthFailed,
    BadRequest,
    FrontierUnavailable,
    Provider,
    ProviderError,
    Question,
    RateLimited,
    Refused,
    SchemaRefused,
    TimedOut,
    Unavailable,
)

ANSWER = Answer("card_arrival", "claude-haiku-5-5", Usage(input=100, output=9))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(BreakerSettings(failures=3, open_s=10, auth_open_s=60), clock)


def admitted(breaker: Breaker) -> Admission:
    admission = breaker.admit()
    assert admission is not None
    return admission


def fail(breaker: Breaker, *errors: Any, given_s: float = 10.0) -> None:
    for error in errors:
        breaker.failed(admitted(breaker), error, given_s)


def test_it_opens_after_failures_in_a_row_and_not_before(breaker: Breaker) -> None:
    fail(breaker, Unavailable("x"), Unavailable("x"))
    breaker.succeeded(admitted(breaker))
    fail(breaker, Unavailable("x"), Unavailable("x"))
    assert breaker.state == "closed"
    fail(breaker, Unavailable("x"))
    assert breaker.state == "open"
    assert breaker.admit() is None
    assert breaker.open_for_s() == 10


def test_half_open_lets_one_probe_through_whose_end_decides(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, *[Unavailable("x")] * 3)
    clock.now += 10
    assert breaker.state == "half_open"
    probe = admitted(breaker)
    assert breaker.admit() is None
    breaker.failed(probe, Unavailable("x"), 10)
    assert breaker.state == "open"
    clock.now += 10
    breaker.succeeded(admitted(breaker))
    assert breaker.state == "closed"
    assert admitted(breaker)
    assert admitted(breaker)


def test_a_probe_that_was_abandoned_leaves_room_for_the_next(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, *[Unavailable("x")] * 3)
    clock.now += 10
    breaker.abandoned(admitted(breaker))
    assert admitted(breaker)


@pytest.mark.parametrize("end", ["succeeded", "abandoned", "failed"])
@pytest.mark.parametrize("probing", [False, True])
def test_a_call_from_before_the_opening_decides_nothing_when_it_ends_in_the_half_open_state(
    breaker: Breaker, clock: Clock, end: str, probing: bool
) -> None:
    late = admitted(breaker)
    fail(breaker, *[Unavailable("x")] * 3)
    clock.now += 10
    probe = admitted(breaker) if probing else None
    if end == "failed":
        breaker.failed(late, Unavailable("x"), 10)
    else:
        getattr(breaker, end)(late)
    assert breaker.state == "half_open"
    if probe is None:
        probe = admitted(breaker)
    assert breaker.admit() is None  # the probe's place is still taken
    breaker.succeeded(probe)
    assert (breaker.state, breaker.failures) == ("closed", 0)


def test_a_call_from_before_the_opening_neither_counts_nor_is_forgiven_once_it_is_closed_again(
    breaker: Breaker, clock: Clock
) -> None:
    late = [admitted(breaker) for _ in range(4)]
    fail(breaker, *[Unavailable("x")] * 3)
    clock.now += 10
    breaker.succeeded(admitted(breaker))
    for admission in late[:3]:
        breaker.failed(admission, Unavailable("x"), 10)
    assert (breaker.state, breaker.failures) == ("closed", 0)
    fail(breaker, *[Unavailable("x")] * 2)
    breaker.succeeded(late[3])
    fail(breaker, Unavailable("x"))
    assert breaker.state == "open"


@pytest.mark.parametrize(
    ("error", "waits"), [(AuthFailed("401"), 60), (RateLimited("429", retry_after=30), 30), (Unavailable("x"), 10)]
)
def test_a_late_call_can_only_lengthen_the_wait_and_only_for_a_refused_key_or_a_plea_for_patience(
    breaker: Breaker, clock: Clock, error: ProviderError, waits: float
) -> None:
    late = admitted(breaker)
    fail(breaker, *[Unavailable("x")] * 3)
    breaker.failed(late, error, 10)
    assert breaker.open_for_s() == waits
    clock.now += waits
    breaker.succeeded(admitted(breaker))
    assert breaker.state == "closed"


def test_a_refused_key_opens_it_at_once_and_for_longer(breaker: Breaker) -> None:
    fail(breaker, AuthFailed("401"))
    assert breaker.open_for_s() == 60


@pytest.mark.parametrize(("asked", "waits"), [(7.0, 7.0), (3600.0, 60.0)])
def test_retry_after_is_a_floor_with_a_ceiling(breaker: Breaker, asked: float, waits: float) -> None:
    fail(breaker, RateLimited("429", retry_after=asked))
    assert breaker.open_for_s() == waits


def test_a_caller_in_a_hurry_does_not_close_a_provider_to_the_others(breaker: Breaker) -> None:
    fail(breaker, *[TimedOut("x")] * 20, given_s=0.1)
    assert breaker.state == "closed"
    fail(breaker, *[TimedOut("x")] * 3, given_s=5)
    assert breaker.state == "open"


@pytest.mark.parametrize(
    "error", [BadRequest("x", status=413), BadRequest("256 labels"), SchemaRefused("x"), Refused("x")]
)
def test_what_lies_in_the_question_does_not_close_a_provider_to_the_others(
    breaker: Breaker, clock: Clock, error: ProviderError
) -> None:
    fail(breaker, *[error] * 20)
    assert breaker.state == "closed"
    fail(breaker, *[BadRequest("no such model", status=404)] * 3)
    assert breaker.state == "open"
    clock.now += 10
    fail(breaker, error)  # as a probe it shows nothing either: the next one decides
    assert breaker.state == "half_open"
    breaker.succeeded(admitted(breaker))
    assert breaker.state == "closed"


def test_an_open_breaker_keeps_the_wire_silent_and_the_answer_fast(
    provider_on: Callable[..., Provider], books: Callable[..., Any], kind: str, question: Question, clock: Clock
) -> None:
    async def main() -> None:
        async with Simulator(faults=[("503", 1.0)]) as sim:
            b = books([provider_on(sim, kind)], clock=clock, breaker=BreakerSettings(failures=3, open_s=10))
            for _ in range(5):
                with pytest.raises(FrontierUnavailable) as caught:
                    await b.ask(question)
                assert caught.value.reason == "provider_unavailable"
            assert sim.calls == len(b.states) == 3
            clock.now += 10
            with pytest.raises(FrontierUnavailable):
                await b.ask(question)
            assert sim.calls == 4  # the probe
            await b.chain.close()

    asyncio.run(main())


def test_a_refused_key_is_shouted_about_without_the_key(
    provider_on: Callable[..., Provider], books: Callable[..., Any], kind: str, question: Question, key: str
) -> None:
    async def main() -> list[Any]:
        async with Simulator() as sim:
            b = books([provider_on(sim, kind)])
            sim.fail_next(["401"])
            with structlog.testing.capture_logs() as logged:
                for _ in range(2):
                    with pytest.raises(FrontierUnavailable):
                        await b.ask(question)
            assert sim.calls == 1
            assert b.states == ["unbilled"]
            await b.chain.close()
            return list(logged)

    logged = asyncio.run(main())
    assert (logged[0]["event"], logged[0]["log_level"]) == ("provider_auth_failed", "error")
    assert key not in repr(logged)


def test_only_one_of_many_callers_probes(books: Callable[..., Any], question: Question, clock: Clock) -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def probe(_: Question) -> Answer:
            await release.wait()
            return ANSWER

        provider = ScriptedProvider("p", "claude-haiku-5-5", [AuthFailed("401"), probe])
        b = books([provider], clock=clock)
        with pytest.raises(FrontierUnavailable):
            await b.ask(question)
        clock.now += 60
        callers = [asyncio.create_task(b.ask(question)) for _ in range(8)]
        await asyncio.wait(callers, return_when=asyncio.FIRST_COMPLETED, timeout=10)  # a refusal comes at once
        release.set()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert len(provider.asked) == 2
        assert sum(not isinstance(r, FrontierUnavailable) for r in results) == 1

    asyncio.run(main())


def test_a_slow_call_that_ends_while_another_probes_lets_no_third_through(
    books: Callable[..., Any], question: Question, clock: Clock
) -> None:
    async def main() -> None:
        gates = [asyncio.Event(), asyncio.Event()]
        asked = asyncio.Semaphore(0)

        def behind(gate: asyncio.Event) -> Callable[[Question], Any]:
            async def answer(_: Question) -> Answer:
                asked.release()
                await gate.wait()
                return ANSWER

            return answer

        provider = ScriptedProvider("p", "claude-haiku-5-5", [behind(gates[0]), AuthFailed("401"), behind(gates[1])])
        b = books([provider], clock=clock)
        slow = asyncio.create_task(b.ask(question))
        await asked.acquire()
        with pytest.raises(FrontierUnavailable):
            await b.ask(question)
        clock.now += 60
        probe = asyncio.create_task(b.ask(question))
        await asked.acquire()
        gates[0].set()
        assert (await slow).label == "card_arrival"
        with pytest.raises(FrontierUnavailable):
            await b.ask(question)
        assert len(provider.asked) == 3
        gates[1].set()
        assert (await probe).label == "card_arrival"
        assert b.chain.status()[0]["breaker"] == "closed"

    asyncio.run(main())


@pytest.mark.parametrize("status", [400, 413, 422])
def test_texts_that_are_refused_do_not_close_a_provider_to_others(breaker: Breaker, status: int) -> None:
    fail(breaker, *[BadRequest("x", status=status)] * 9)
    assert breaker.state == "closed"
    fail(breaker, *[BadRequest("x", status=404)] * 3)  # that is the model's name
    assert breaker.state == "open"


def test_after_a_rest_that_was_asked_for_all_who_waited_get_through(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, RateLimited("429", retry_after=5))
    clock.now += 5
    assert breaker.state == "closed"
    assert breaker.admit() is not None
    assert breaker.admit() is not None


def test_a_rest_that_was_asked_for_ends_in_a_probe_if_the_provider_was_down_before(
    breaker: Breaker, clock: Clock
) -> None:
    fail(breaker, *[Unavailable("x")] * 3)
    clock.now += 10
    fail(breaker, Unavailable("x", retry_after=5))  # the probe
    clock.now += 5
    assert breaker.state == "half_open"


def test_a_rest_shortens_and_eases_no_longer_wait(breaker: Breaker, clock: Clock) -> None:
    first, second = admitted(breaker), admitted(breaker)
    breaker.failed(first, AuthFailed("401"), 10)
    breaker.failed(second, RateLimited("429", retry_after=5), 10)
    assert breaker.open_for_s() == 60
    clock.now += 60
    assert breaker.state == "half_open"
