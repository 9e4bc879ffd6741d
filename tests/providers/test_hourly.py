"""A machine paid by the hour: its calls together cost the time in which it had something to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost.prices import PriceTable
from cost.types import Usage
from providers.fake import ScriptedProvider
from providers.hourly import HourlyTariff
from providers.settings import LaneSettings
from providers.tariffs import Pricing
from providers.types import Answer, BadAnswer, FrontierUnavailable, Question, RateLimited, TimedOut, Unavailable

Books = Callable[..., Any]
NO_TOKENS = Usage()
ANSWER = Answer("card_arrival", "my-llama", Usage(input=100, output=9), reply_id="chatcmpl-1")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def union_s(calls: list[tuple[float, float]]) -> float:
    """Seconds in which at least one of the (begin, end) was under way."""
    busy, until = 0.0, float("-inf")
    for begin, end in sorted(calls):
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return busy


millis = st.integers(0, 20_000)
call = st.tuples(millis, millis, st.sampled_from(["answered", "failed", "unknown"]))


@given(calls=st.lists(call, max_size=40), nano_per_hour=st.integers(0, 50_000_000_000))
def test_all_calls_together_cost_the_busy_time_and_none_more_than_was_set_aside(
    calls: list[tuple[int, int, str]], nano_per_hour: int
) -> None:
    """Whatever overlaps, and however they end. The rounding is half a nano-dollar a call."""
    clock = Clock()
    hourly = HourlyTariff(nano_per_hour, clock)
    spans = [(begin / 1000, (begin + took) / 1000, end) for begin, took, end in calls]
    events = [(begin, 0, i) for i, (begin, _, _) in enumerate(spans)]
    events += [(end, 1, i) for i, (_, end, _) in enumerate(spans)]
    open_calls: dict[int, Pricing] = {}
    paid = 0
    for at, ends, i in sorted(events):
        clock.now = 100.0 + at
        begin, end, how = spans[i]
        if not ends:
            open_calls[i] = hourly.begin()
            continue
        estimate = hourly.estimate(NO_TOKENS, end - begin)
        pricing = open_calls.pop(i)
        outcome = {
            "answered": lambda p, e: p.answered(ANSWER, e, 1),
            "failed": lambda p, e: p.failed(TimedOut("x"), NO_TOKENS, e, 1),
            "unknown": lambda p, e: p.unknown("Cancelled", e, 1),
        }[how](pricing, estimate)
        assert outcome.state == "settled"
        assert 0 <= outcome.cost_nano <= estimate
        paid += outcome.cost_nano
    busy = union_s([(begin, end) for begin, end, _ in spans])
    assert abs(paid - nano_per_hour * busy / 3600) <= 0.5 * len(spans) + 1e-3


def test_who_is_alone_pays_all_and_two_pay_half_each() -> None:
    clock = Clock()
    hourly = HourlyTariff(3_600_000_000, clock)  # $0.001 a second
    first = hourly.begin()
    clock.now += 1
    second = hourly.begin()
    clock.now += 1
    assert first.unknown("Cancelled", 10**9, 1).cost_nano == 1_500_000
    assert second.unknown("Cancelled", 10**9, 1).cost_nano == 500_000
    clock.now += 3600  # nobody is there
    third = hourly.begin()
    clock.now += 2
    assert third.unknown("Cancelled", 10**9, 1).cost_nano == 2_000_000


def test_a_timer_that_is_late_charges_no_more_than_was_set_aside() -> None:
    clock = Clock()
    hourly = HourlyTariff(3_600_000_000, clock)
    pricing = hourly.begin()
    clock.now += 5
    assert pricing.unknown("Cancelled", hourly.estimate(NO_TOKENS, 2), 1).cost_nano == 2_000_000


def test_an_answer_is_paid_by_its_time_and_keeps_its_tokens_and_its_name(books: Books, question: Question) -> None:
    clock = Clock()

    async def half_a_second(_: Question) -> Answer:
        clock.now += 0.5
        return ANSWER

    async def main() -> None:
        nothing_priced = PriceTable("v", PriceTable.load().as_of, "test", {})
        lanes = {"p": LaneSettings(nano_per_hour=1_200_000_000)}
        b = books([ScriptedProvider("p", "my-llama", [half_a_second])], prices=nothing_priced, lanes=lanes, clock=clock)
        answer = await b.ask(question, within=10)
        (attempt,) = b.ledger.attempts.values()
        assert (attempt.state, attempt.outcome.price_version) == ("settled", "$1.2/h")
        assert answer.cost_nano == attempt.cost_nano == round(1_200_000_000 / 3600 / 2)
        assert attempt.cost_nano < attempt.intent.estimate_nano <= 1_200_000_000 / 360 + 1
        assert (attempt.outcome.usage, attempt.outcome.reply_id) == (ANSWER.usage, "chatcmpl-1")
        status = b.chain.status()[0]
        assert (status["price"], status["unpriced"]) == ("$1.2/h", [])  # a missing token price is no alarm

    asyncio.run(main())


@pytest.mark.parametrize("error", [RateLimited("x"), Unavailable("x"), BadAnswer("x"), TimedOut("x")])
def test_a_call_that_failed_took_its_time_all_the_same(books: Books, question: Question, error: Exception) -> None:
    clock = Clock()

    async def fails(_: Question) -> Answer:
        clock.now += 0.1
        raise error

    async def no_time(_: float) -> None:
        pass

    async def main() -> None:
        lanes = {"p": LaneSettings(nano_per_hour=3_600_000_000)}
        b = books([ScriptedProvider("p", "my-llama", [fails])], lanes=lanes, clock=clock, sleep=no_time)
        with pytest.raises(FrontierUnavailable) as caught:
            await b.ask(question, within=10)
        assert set(b.states) == {"settled"}
        assert caught.value.cost_nano == b.spent == 100_000 * len(b.states)

    asyncio.run(main())
