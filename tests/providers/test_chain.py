"""The chain: in order, under one deadline, with every wire call in the books, whoever fails, hangs or leaves."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import structlog

from cost.fake import MemoryLedger
from cost.prices import Price, PriceTable
from cost.types import Budget, Intent, LedgerUnwritable, Outcome, Usage
from providers.breaker import BreakerSettings
from providers.fake import ScriptedProvider
from providers.retries import RetrySettings
from providers.settings import LaneSettings
from providers.simulator import Simulator
from providers.tariffs import MOST_UNPRICED
from providers.types import Answer, BadAnswer, FrontierUnavailable, Provider, Question, Unavailable

On = Callable[..., Provider]
Books = Callable[..., Any]
ANSWER = Answer("card_arrival", "claude-haiku-5-5", Usage(input=100, output=9))


class SlowLedger(MemoryLedger):
    """Reserves or settles only once it is told to."""

    def __init__(self, *, reserve: asyncio.Event | None = None, settle: asyncio.Event | None = None) -> None:
        super().__init__()
        self._gates = (reserve, settle)
        self.reserving = asyncio.Event()

    async def reserve(self, intent: Intent) -> int:
        self.reserving.set()
        if self._gates[0]:
            await self._gates[0].wait()
        return await super().reserve(intent)

    async def settle(self, attempt_id: int, outcome: Outcome) -> None:
        if self._gates[1]:
            await self._gates[1].wait()
        await super().settle(attempt_id, outcome)


def test_an_answer_is_one_wire_call_one_attempt_and_its_list_price(
    provider_on: On, books: Books, kind: str, question: Question
) -> None:
    async def main() -> None:
        async with Simulator() as sim:
            b = books([provider_on(sim, kind)])
            answer = await b.ask(question)
            await b.chain.close()
        (line,) = sim.bill.values()
        assert (sim.calls, b.states) == (1, ["settled"])
        assert answer.label == "card_arrival"
        assert (answer.provider, answer.attempts) == (kind, 1)
        # Dollars per million tokens, in and out, as the vendors list them.
        listed = {"openai-decisions": (0.10, 0.0), "openai-chat": (0.20, 1.20)}.get(kind, (0.10, 0.50))
        by_hand = (line["input"] * listed[0] + line["output"] * listed[1]) * 1000
        assert answer.cost_nano == b.spent == round(by_hand) > 0
        assert b.outcomes[0][2].price_version == PriceTable.load().version
        assert b.outcomes[0][2].reply_id == sim.items[0].reply_id

    asyncio.run(main())


def test_a_failed_call_moves_on_until_a_provider_answers(provider_on: On, books: Books, question: Question) -> None:
    async def main() -> None:
        async with Simulator() as first, Simulator() as second, Simulator() as third:
            providers = [
                provider_on(first, "anthropic"),
                provider_on(second, "openai"),
                provider_on(third, "openai", "third"),
            ]
            b = books(providers, draw=lambda: 0.0)
            first.fail_next(["500", "500"])  # each is tried again once
            second.fail_next(["529", "reset"])
            answer = await b.ask(question)
            assert (answer.provider, answer.attempts) == ("third", 5)
            assert b.states == ["uncertain", "uncertain", "unbilled", "uncertain", "settled"]  # a 500 may be charged
            assert answer.cost_nano == b.spent
            for sim in (first, second, third):
                sim.fail_next(["529", "reset"])
            with pytest.raises(FrontierUnavailable) as caught:
                await b.ask(question)
            assert caught.value.reason == "provider_unavailable"
            assert b.states[5:] == ["unbilled", "uncertain"] * 3
            assert caught.value.cost_nano == b.spent - answer.cost_nano > 0
            assert (first.calls, second.calls, third.calls) == (4, 4, 3)
            await b.chain.close()

    asyncio.run(main())


def test_without_a_provider_it_says_so(books: Books, question: Question) -> None:
    async def main() -> None:
        with pytest.raises(FrontierUnavailable) as caught:
            await books([]).ask(question)
        assert caught.value.reason == "no_provider"

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["hang", "slow_drip"])
def test_the_deadline_holds_and_the_cut_call_counts_with_its_upper_bound(
    provider_on: On, books: Books, kind: str, question: Question, fault: str
) -> None:
    async def main() -> None:
        async with Simulator() as sim:
            b = books([provider_on(sim, kind)])
            await b.ask(question)
            sim.fail_next([fault])
            started = time.monotonic()
            with pytest.raises(FrontierUnavailable) as caught:
                await b.ask(question, within=0.3)
            assert 0.25 < time.monotonic() - started < 0.6
            assert caught.value.reason == "deadline"
            assert b.states == ["settled", "uncertain"]
            assert b.ledger.attempts[2].cost_nano == b.ledger.attempts[2].intent.estimate_nano
            await b.chain.close()

    asyncio.run(main())


def test_a_hanging_provider_leaves_the_next_one_time(provider_on: On, books: Books, question: Question) -> None:
    async def main() -> None:
        async with Simulator() as hanging, Simulator() as well:
            b = books([provider_on(hanging, "anthropic"), provider_on(well, "openai")])
            hanging.fail_next(["hang"])
            answer = await b.ask(question, within=1.5)
            assert answer.provider == "openai"
            assert b.states == ["uncertain", "settled"]
            await b.chain.close()

    asyncio.run(main())


def test_a_deadline_too_near_for_a_call_makes_none(provider_on: On, books: Books, question: Question) -> None:
    async def main() -> None:
        async with Simulator() as sim:
            b = books([provider_on(sim, "anthropic")])
            with pytest.raises(FrontierUnavailable) as caught:
                await b.ask(question, within=0.01)
            assert caught.value.reason == "deadline"
            assert (sim.connections, b.states) == (0, [])
            await b.chain.close()

    asyncio.run(main())


def test_no_byte_is_sent_without_budget_without_books_or_without_a_price(
    provider_on: On, books: Books, kind: str, question: Question
) -> None:
    async def main() -> None:
        broken = MemoryLedger()
        broken.broken = True
        nothing_priced = PriceTable("v", PriceTable.load().as_of, "test", {})
        async with Simulator() as sim:
            for reason, settings in (
                ("budget", {"budget": Budget(1)}),
                ("provider_unavailable", {"ledger": broken}),
                ("provider_unavailable", {"prices": nothing_priced}),
            ):
                b = books([provider_on(sim, kind)], **settings)
                with pytest.raises(FrontierUnavailable) as caught:
                    await b.ask(question)
                assert (caught.value.reason, caught.value.cost_nano) == (reason, 0)
                await b.chain.close()
            assert sim.connections == 0

    asyncio.run(main())


def test_the_budget_ends_the_calls_and_is_never_overspent(provider_on: On, books: Books, question: Question) -> None:
    async def main() -> None:
        budget = 3_000_000  # a few reservations at once
        async with Simulator() as sim:
            b = books([provider_on(sim, "anthropic")], budget=Budget(budget))
            results = await asyncio.gather(*(b.ask(question, index=i) for i in range(40)), return_exceptions=True)
            refused = [r for r in results if isinstance(r, FrontierUnavailable)]
            assert {r.reason for r in refused} == {"budget"}
            assert sim.calls == len(results) - len(refused) > 0
            assert b.spent <= budget
            await b.chain.close()

    asyncio.run(main())


def test_a_caller_who_leaves_cancels_the_call_and_the_books_still_close(
    provider_on: On, books: Books, kind: str, question: Question
) -> None:
    async def main() -> None:
        may_settle = asyncio.Event()
        ledger = SlowLedger(settle=may_settle)
        async with Simulator() as sim:
            b = books([provider_on(sim, kind)], ledger=ledger)
            sim.fail_next(["hang"])
            caller = asyncio.create_task(b.ask(question))
            await sim.wait_for(calls=1)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            assert b.states == ["reserved"]
            may_settle.set()
            await b.chain.close()  # waits for the books
            assert b.states == ["uncertain"]
            async with asyncio.timeout(5):
                await sim.wait_for(gone=1)
            assert b.chain.status()[0]["in_flight"] == 0

    asyncio.run(main())


def test_a_caller_who_leaves_while_the_money_is_reserved_gets_it_back_and_nothing_is_sent(
    provider_on: On, books: Books, question: Question
) -> None:
    async def main() -> None:
        may_reserve = asyncio.Event()
        ledger = SlowLedger(reserve=may_reserve)
        async with Simulator() as sim:
            b = books([provider_on(sim, "anthropic")], ledger=ledger)
            caller = asyncio.create_task(b.ask(question))
            await ledger.reserving.wait()
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            may_reserve.set()
            await b.chain.close()
            assert (b.states, b.spent, sim.connections) == (["unbilled"], 0, 0)

    asyncio.run(main())


def test_a_ledger_that_takes_too_long_to_reserve_is_not_waited_for(
    provider_on: On, books: Books, question: Question
) -> None:
    async def main() -> None:
        may_reserve = asyncio.Event()
        async with Simulator() as sim:
            b = books([provider_on(sim, "anthropic")], ledger=SlowLedger(reserve=may_reserve))
            with pytest.raises(FrontierUnavailable) as caught:
                await b.ask(question, within=0.2)
            may_reserve.set()
            await b.chain.close()
            assert caught.value.reason == "deadline"
            assert (b.states, sim.connections) == (["unbilled"], 0)

    asyncio.run(main())


def test_an_answer_does_not_wait_for_a_slow_settlement_beyond_the_deadline(books: Books, question: Question) -> None:
    async def main() -> None:
        may_settle = asyncio.Event()
        b = books([ScriptedProvider("p", "claude-haiku-5-5", [ANSWER])], ledger=SlowLedger(settle=may_settle))
        answer = await b.ask(question, within=0.2)
        assert (answer.label, b.states) == ("card_arrival", ["reserved"])
        may_settle.set()
        await b.chain.close()
        assert b.states == ["settled"]

    asyncio.run(main())


@pytest.mark.parametrize("failures", [1, 99])
def test_an_outcome_that_can_not_be_written_is_written_later_or_keeps_its_upper_bound(
    books: Books, question: Question, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    monkeypatch.setattr("providers.books.SETTLE_AGAIN_S", (0.0, 3600.0))

    class Stubborn(MemoryLedger):
        tried = 0

        async def settle(self, attempt_id: int, outcome: Outcome) -> None:
            self.tried += 1
            if self.tried <= failures:
                raise LedgerUnwritable("locked")
            await super().settle(attempt_id, outcome)

    async def main() -> None:
        ledger = Stubborn()
        b = books([ScriptedProvider("p", "claude-haiku-5-5", [ANSWER])], ledger=ledger)
        with structlog.testing.capture_logs() as logged:
            async with asyncio.timeout(5):  # neither the answer nor the end waits for the pauses
                assert (await b.ask(question, within=60)).cost_nano == 100 * 100 + 9 * 500
                await b.chain.close()
        assert b.states == (["settled"] if failures == 1 else ["reserved"])
        assert [entry["event"] for entry in logged] == ([] if failures == 1 else ["attempt_not_settled"])
        assert b.spent == (14_500 if failures == 1 else ledger.attempts[1].intent.estimate_nano)

    asyncio.run(main())


def test_a_reply_that_is_no_answer_is_paid_for_and_the_next_provider_asked(
    provider_on: On, books: Books, question: Question
) -> None:
    async def main() -> None:
        async with Simulator() as sim:
            b = books([provider_on(sim, "anthropic"), provider_on(sim, "openai")])
            sim.fail_next(["out_of_set"])
            answer = await b.ask(question)
            await b.chain.close()
        assert (answer.label, b.states) == ("card_arrival", ["settled", "settled"])
        assert [outcome.error for _, _, outcome in b.outcomes] == ["BadAnswer", None]
        assert answer.cost_nano == b.spent

    asyncio.run(main())


def test_a_bad_answer_without_usage_counts_with_its_upper_bound(books: Books, question: Question) -> None:
    async def main() -> None:
        b = books([ScriptedProvider("p", "claude-haiku-5-5", [BadAnswer("nonsense")])])
        with pytest.raises(FrontierUnavailable):
            await b.ask(question)
        (attempt,) = b.ledger.attempts.values()
        assert attempt.state == "settled"
        assert attempt.cost_nano == attempt.intent.estimate_nano > 0
        assert attempt.outcome.usage.estimated

    asyncio.run(main())


def test_a_price_of_the_config_holds_whatever_the_reply_calls_the_model(books: Books, question: Question) -> None:
    """A cloud sells a model under a name and at its own price; the reply has the vendor's name, which is listed."""

    async def main() -> None:
        used = Usage(input=1_000_000, output=0)
        own = Price(input=7_000_000_000, output=7_000_000_000)
        cloud = ScriptedProvider("cloud", "us.haiku", [Answer("card_arrival", "claude-haiku-4-5", used)])
        b = books([cloud], lanes={"cloud": LaneSettings(own_price=own)}, budget=Budget(None))
        await b.ask(question)
        outcome = b.outcomes[0][2]
        assert (outcome.model, outcome.cost_nano) == ("claude-haiku-4-5", 7_000_000_000)
        assert outcome.price_version.endswith(" as us.haiku")
        assert b.chain.status()[0]["unpriced"] == []

    asyncio.run(main())


def test_an_unknown_model_that_answers_is_priced_as_the_configured_one_and_marked(
    books: Books, question: Question
) -> None:
    async def main() -> None:
        answer = Answer("card_arrival", "claude-next", Usage(input=100, output=9))
        b = books([ScriptedProvider("p", "claude-haiku-5-5", [answer])])
        with structlog.testing.capture_logs() as logged:
            assert (await b.ask(question)).cost_nano == 100 * 100 + 9 * 500
            await b.ask(question)
        outcome = b.outcomes[0][2]
        assert (outcome.model, outcome.price_version[-20:]) == ("claude-next", " as claude-haiku-5-5")
        assert [entry["event"] for entry in logged] == ["model_without_price"]  # told once, not at every call
        assert b.chain.status()[0]["unpriced"] == ["claude-next"]

    asyncio.run(main())


def test_a_server_that_makes_up_models_fills_neither_memory_nor_log(books: Books, question: Question) -> None:
    async def main() -> None:
        answers = [Answer("card_arrival", f"made-up-{number}", Usage(input=100, output=9)) for number in range(50)]
        b = books([ScriptedProvider("p", "claude-haiku-5-5", answers)])
        with structlog.testing.capture_logs() as logged:
            for _ in answers:
                await b.ask(question)
        assert len(logged) == len(b.chain.status()[0]["unpriced"]) == MOST_UNPRICED
        assert b.spent == 50 * (100 * 100 + 9 * 500)

    asyncio.run(main())


def test_the_books_keep_the_replys_name_its_thoughts_and_whatever_the_scores_were(
    books: Books, question: Question
) -> None:
    """Of answers and of failures alike."""

    async def main() -> None:
        used = Usage(input=100, output=90, reasoning=80)
        scores = (("card_arrival", 0.75), ("exchange_rate", 0.25))
        refusal = BadAnswer("x", usage=used, model="claude-haiku-5-5", reply_id="msg_1")
        answer = Answer("card_arrival", "claude-haiku-5-5", used, 0.75, scores, "msg_2")
        b = books([ScriptedProvider("p", "claude-haiku-5-5", [refusal]), ScriptedProvider("q", "gpt-6-luna", [answer])])
        told = await b.ask(question)
        assert (told.confidence, told.scores) == (0.75, scores)
        kept = [outcome for _, _, outcome in b.outcomes]
        assert [(o.reply_id, o.usage, o.cost_nano) for o in kept] == [
            ("msg_1", used, 55_000),
            ("msg_2", used, 55_000),
        ]

    asyncio.run(main())


def test_an_adapters_bug_costs_its_own_call_only(books: Books, question: Question) -> None:
    async def bug(_: Question) -> Answer:
        raise RuntimeError("canarytext")

    async def main() -> None:
        b = books([ScriptedProvider("p", "claude-haiku-5-5", [bug]), ScriptedProvider("q", "gpt-6-luna", [ANSWER])])
        with structlog.testing.capture_logs() as logged:
            assert (await b.ask(question)).provider == "q"
        assert b.states == ["uncertain", "settled"]
        assert "canarytext" not in repr(logged)

    asyncio.run(main())


def test_at_most_the_cap_is_in_flight_and_nobody_waits_long_where_nothing_moves(
    books: Books, question: Question
) -> None:
    async def main() -> None:
        release, asked = asyncio.Event(), asyncio.Semaphore(0)

        async def wait(_: Question) -> Answer:
            asked.release()
            await release.wait()
            return ANSWER

        provider = ScriptedProvider("p", "claude-haiku-5-5", [wait])
        b = books([provider], lanes={"p": LaneSettings(max_in_flight=2)}, typical_s=0.2)
        served = [asyncio.create_task(b.ask(question)) for _ in range(2)]
        await asked.acquire()
        await asked.acquire()
        for within in (
            0.08,
            60,
        ):  # the turn can't come in time; with all the time in the world it is not waited for long
            with pytest.raises(FrontierUnavailable) as caught:
                await asyncio.wait_for(b.ask(question, within=within), 5)
            assert caught.value.reason == "overload"
        assert b.chain.status()[0]["overflow"]["in_flight"] == 2
        assert len(provider.asked) == b.chain.status()[0]["in_flight"] == 2
        release.set()
        assert [(await task).label for task in served] == ["card_arrival"] * 2
        assert (await b.ask(question)).label == "card_arrival"

    asyncio.run(main())


def test_status_and_configured_name_the_providers_in_order(books: Books, question: Question) -> None:
    async def main() -> None:
        first = ScriptedProvider("a", "claude-haiku-5-5", [Unavailable("x")])
        b = books([first, ScriptedProvider("b", "gpt-6-luna", [ANSWER])])
        await b.ask(question)
        assert b.chain.configured() == [("a", "scripted/claude-haiku-5-5"), ("b", "scripted/gpt-6-luna")]
        status = b.chain.status()
        assert [(s["name"], s["breaker"], s["last_error"], s["calls"]) for s in status] == [
            ("a", "closed", "Unavailable", 2),
            ("b", "closed", None, 1),
        ]
        await b.chain.close()
        assert first.closed

    asyncio.run(main())


def test_over_mixed_faults_the_books_equal_the_simulators_bill(
    provider_on: On, books: Books, question: Question
) -> None:
    """Calls whose usage came back: to the nano-dollar. The rest of the bill lies under the attempts' upper bounds."""
    menu = ["ok"] * 8 + ["429", "500", "529", "reset", "malformed", "empty", "out_of_set", "refusal", "no_usage"]
    prices, draw = PriceTable.load(), random.Random(5)

    def priced(name: str, line: Counter[str]) -> int:
        used = Usage(input=line["input"], output=line["output"])
        return prices.cost_nano(name.split()[1], used) or 0

    async def main() -> None:
        with structlog.testing.capture_logs():
            async with Simulator() as sim:
                providers = [provider_on(sim, "anthropic"), provider_on(sim, "openai")]
                b = books(providers, prices=prices, breaker=BreakerSettings(failures=10**9), draw=lambda: 0.0)
                for index in range(200):
                    leaves = index % 25 == 7
                    sim.fail_next(["hang" if leaves else draw.choice(menu)])
                    asking = asyncio.create_task(b.ask(question, index=index))
                    if leaves:
                        await sim.wait_for(calls=sim.calls + 1)
                        asking.cancel()
                    await asyncio.gather(asking, return_exceptions=True)
                await b.chain.close()
        attempts = list(b.ledger.attempts.values())
        assert len(attempts) == sim.calls > 200
        clear = [a for a in attempts if a.state == "settled" and not a.outcome.usage.estimated]
        # All calls show the same text, so a line of the bill is a number of equal calls.
        lines = {name: line for name, line in sim.bill.items() if line["calls"]}
        seen = sum(
            priced(name, line) * (line["calls"] - line["unseen"]) // line["calls"] for name, line in lines.items()
        )
        assert sum(a.cost_nano for a in clear) == seen > 0
        unseen = sum(priced(name, line) for name, line in lines.items()) - seen
        assert 0 < unseen < sum(a.cost_nano for a in attempts) - seen

    asyncio.run(main())


def test_a_burst_beyond_the_cap_is_answered_as_long_as_answers_come(books: Books, question: Question) -> None:
    """A request of many texts is no overload: it takes as long as it takes, within its deadline."""

    async def main() -> None:
        async def work(_: Question) -> Answer:
            await asyncio.sleep(0.05)
            return ANSWER

        lanes = {"p": LaneSettings(max_in_flight=4)}
        b = books([ScriptedProvider("p", "claude-haiku-5-5", [work])], lanes=lanes, typical_s=0.05)
        answers = await asyncio.gather(*(b.ask(question, within=20, index=i) for i in range(60)))
        assert len(answers) == len(b.states) == 60  # in 0.75 s, twice as long as a provider is waited for that hangs

    asyncio.run(main())


def test_no_more_wait_than_can_have_their_turn_in_time(books: Books, question: Question) -> None:
    async def main() -> None:
        release, asked = asyncio.Event(), asyncio.Semaphore(0)

        async def wait(_: Question) -> Answer:
            asked.release()
            await release.wait()
            return ANSWER

        lanes = {"p": LaneSettings(max_in_flight=2)}
        b = books([ScriptedProvider("p", "claude-haiku-5-5", [wait])], lanes=lanes, typical_s=1.0)
        asking = [asyncio.create_task(b.ask(question, within=6, index=i)) for i in range(50)]
        await asked.acquire()
        await asked.acquire()
        for each in itertools.islice(asyncio.as_completed(asking), 39):
            with pytest.raises(FrontierUnavailable) as caught:
                await each
            assert caught.value.reason == "overload"
        lane = b.chain.status()[0]
        assert (lane["in_flight"], lane["waiting"]) == (2, 9)  # six seconds, two at a time, a second each
        release.set()
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert sum(not isinstance(result, BaseException) for result in results) == 11
        lane = b.chain.status()[0]
        assert (lane["in_flight"], lane["waiting"], lane["overflow"]["in_flight"]) == (0, 0, 39)

    asyncio.run(main())


def test_who_leaves_while_he_waits_for_his_turn_takes_nobodys_place(books: Books, question: Question) -> None:
    """Even in the moment in which it comes."""

    async def main() -> None:
        async def work(_: Question) -> Answer:
            await asyncio.sleep(0)
            return ANSWER

        lanes = {"p": LaneSettings(max_in_flight=1)}
        b = books([ScriptedProvider("p", "claude-haiku-5-5", [work])], lanes=lanes, typical_s=0.01)
        for turns in range(40):
            asking = [asyncio.create_task(b.ask(question, index=i)) for i in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0)
            asking[1].cancel()
            results = await asyncio.gather(*asking, return_exceptions=True)
            assert [isinstance(result, BaseException) for result in results] in ([False, True, False], [False] * 3)
        assert b.chain.status()[0]["in_flight"] == 0
        assert (await b.ask(question)).label == "card_arrival"

    asyncio.run(main())


def test_a_price_of_the_config_is_that_providers_alone(books: Books, question: Question) -> None:
    """Two providers of one model: a server of one's own that is free does not make the vendor's calls free."""

    async def main() -> None:
        used = Usage(input=100, output=0)
        ours = ScriptedProvider("ours", "gpt-5.5", [Unavailable("x"), Answer("card_arrival", "gpt-5.5", used)])
        vendor = ScriptedProvider("vendor", "gpt-5.5", [Answer("card_arrival", "gpt-5.5", used)])
        free = {"ours": LaneSettings(own_price=Price(input=0, output=0))}
        b = books([ours, vendor], lanes=free, budget=Budget(None), retries=RetrySettings(share=0, floor=0))
        assert (await b.ask(question)).cost_nano == PriceTable.load().cost_nano("gpt-5.5", used)
        assert [a.intent.estimate_nano > 0 for a in b.ledger.attempts.values()] == [False, True]
        assert b.outcomes[1][2].price_version == PriceTable.load().version

    asyncio.run(main())


def test_a_text_that_is_too_long_for_the_known_prices_is_no_alarm(books: Books, question: Question) -> None:
    async def main() -> None:
        own = Price(input=1, output=1)  # above 100,000 tokens it is not known to hold either
        for lanes in ({}, {"p": LaneSettings(own_price=own)}):
            provider = ScriptedProvider("p", "claude-haiku-5-5", [ANSWER])
            b = books([provider], lanes=lanes)
            long = msgspec.structs.replace(question, text="x" * 100_001)
            with pytest.raises(FrontierUnavailable, match="shorter prompts"):
                await b.ask(long)
            assert b.chain.status()[0]["unpriced"] == []
            assert provider.asked == []

    asyncio.run(main())


def test_usage_above_our_upper_bound_is_booked_as_the_provider_counts_it(books: Books, question: Question) -> None:
    async def main() -> None:
        counted = Usage(input=90_000, output=9, estimated=True)
        b = books([ScriptedProvider("p", "claude-haiku-5-5", [msgspec.structs.replace(ANSWER, usage=counted)])])
        await b.ask(question)
        assert b.spent == PriceTable.load().cost_nano("claude-haiku-5-5", counted)

    asyncio.run(main())


def test_a_cheaper_provider_is_asked_when_the_budget_is_too_small_for_the_first(
    books: Books, question: Question
) -> None:
    async def main() -> None:
        dear = ScriptedProvider("dear", "claude-opus-5-5", [ANSWER])
        cheap = ScriptedProvider("cheap", "claude-haiku-5-5", [ANSWER])
        prices, bound = PriceTable.load(), cheap.upper_bound(question)
        day = prices.upper_bound_nano("claude-haiku-5-5", bound.input, bound.output)
        b = books([dear, cheap], budget=Budget(day))
        assert (await b.ask(question)).provider == "cheap"
        with pytest.raises(FrontierUnavailable) as caught:
            await b.ask(question)
        assert caught.value.reason == "budget"
        assert (len(dear.asked), len(cheap.asked)) == (0, 1)

    asyncio.run(main())


def test_a_call_that_cannot_end_in_time_is_not_bought_but_for_one_now_and_then(
    books: Books, question: Question
) -> None:
    """Only a call tells that the provider has become faster."""

    async def main() -> None:
        now = [100.0]

        async def slowly(_question: Question) -> Answer:
            now[0] += 8.0
            return ANSWER

        provider = ScriptedProvider("p", "claude-haiku-5-5", [slowly, ANSWER])
        b = books([provider], clock=lambda: now[0])
        await b.ask(question, within=1.0)  # nothing is known yet
        assert b.chain.status()[0]["typical_s"] == 8.0
        await b.ask(question, within=1.0)  # the one now and then
        for _ in range(3):
            with pytest.raises(FrontierUnavailable) as caught:
                await b.ask(question, within=1.0)
            assert caught.value.reason == "deadline"
        await b.ask(question, within=30.0)
        now[0] += 11.0
        await b.ask(question, within=1.0)
        assert len(provider.asked) == len(b.ledger.attempts) == 4

    asyncio.run(main())
