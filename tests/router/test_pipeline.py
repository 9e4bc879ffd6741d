"""The path of one request, on fakes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from cost.ledger import Ledger
from local_model.types import EngineFailed, NotFinite
from providers.types import FrontierUnavailable
from router.cache.entry import Entry
from router.problems import ProblemError
from router.telemetry import Telemetry
from router.types import ANY_REASON

SURE, UNSURE = "I lost it", "hmm"


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(scenario())  # type: ignore[arg-type]


def test_a_sure_local_answer_stands_and_asks_nobody(bench: Any) -> None:
    """Source local, its cost is device time, one row, no escalation."""

    async def scenario() -> None:
        b = bench()
        (outcome,) = await b.ask(SURE)
        assert (outcome.source, outcome.label, outcome.degraded) == ("local", "lost", None)
        assert b.frontier.asked == []
        assert [row.source for row in b.books.rows] == ["local"]

    run(scenario)


def test_an_unsure_text_goes_to_the_frontier_and_its_answer_is_kept(bench: Any) -> None:
    """The second time it comes from the cache, answered by the frontier, for nothing, and says what was saved."""

    async def scenario() -> None:
        b = bench()
        (first,) = await b.ask(UNSURE)
        (second,) = await b.ask(UNSURE)
        assert (first.source, first.label, first.cost_nano - first.local_nano) == ("frontier", "fee", 1000)
        assert (second.source, second.answered_by, second.cost_nano) == ("cache", "frontier", 0)
        assert second.saved_nano == first.cost_nano
        assert b.frontier.asked == [UNSURE]

    run(scenario)


@pytest.mark.parametrize("reason", ["budget", "deadline", "provider_unavailable", "no_provider"])
def test_without_a_frontier_answer_the_local_label_is_marked_and_not_kept(bench: Any, reason: Any) -> None:
    """What the attempts cost is on the row; the next request tries again."""

    async def scenario() -> None:
        b = bench()
        b.frontier.reply = lambda _: FrontierUnavailable(reason, "why", cost_nano=77)
        for _ in range(2):
            (outcome,) = await b.ask(UNSURE)
            assert (outcome.source, outcome.degraded, outcome.label is not None) == ("local", reason, True)
            assert outcome.cost_nano - outcome.local_nano == 77
        assert len(b.frontier.asked) == 2
        assert b.cache.entries == {}

    run(scenario)


def test_strict_makes_a_degraded_answer_an_error(bench: Any) -> None:
    """Of that input only."""

    async def scenario() -> None:
        b = bench()
        b.frontier.reply = lambda _: FrontierUnavailable("budget", "spent")
        sure, unsure = await b.ask(SURE, UNSURE, refuses=ANY_REASON)
        assert sure.label == "lost"
        assert (unsure.label, unsure.error, unsure.degraded) == (None, "degraded", "budget")
        assert [row.error for row in b.books.rows] == [None, "degraded"]

    run(scenario)


def test_a_budget_that_is_out_may_refuse_and_nothing_else_then(bench: Any) -> None:
    """Hits and sure answers flow on, and another reason for a local label is none to refuse."""

    async def scenario() -> None:
        b = bench()
        over = frozenset({"budget"})
        await b.ask("bought before", threshold=0.99)
        b.frontier.reply = lambda _: FrontierUnavailable("budget", "spent")
        hit, sure, unsure = await b.ask("bought before", SURE, UNSURE, refuses=over)
        assert (hit.source, sure.source) == ("cache", "local")
        assert (unsure.label, unsure.error, unsure.degraded) == (None, "degraded", "budget")
        b.frontier.reply = lambda _: FrontierUnavailable("provider_unavailable", "away")
        (unsure,) = await b.ask(UNSURE, refuses=over)
        assert (unsure.source, unsure.degraded) == ("local", "provider_unavailable")
        b.frontier.reply = lambda _: FrontierUnavailable("budget", "spent")
        (unsure,) = await b.ask(UNSURE)
        assert (unsure.source, unsure.degraded) == ("local", "budget")

    run(scenario)


def test_local_by_choice_is_not_degraded(bench: Any) -> None:
    """`route: "local"`: whatever the confidence, nobody is asked."""

    async def scenario() -> None:
        b = bench()
        (outcome,) = await b.ask(UNSURE, route="local")
        assert (outcome.source, outcome.degraded) == ("local", None)
        assert b.frontier.asked == []

    run(scenario)


def test_policy_is_applied_when_an_entry_is_read(bench: Any) -> None:
    """A local answer kept under a low threshold is a miss under a high one; the frontier's entry survives both."""

    async def scenario() -> None:
        b = bench(confidence=0.9)
        await b.ask(SURE, threshold=0.8)
        (stricter,) = await b.ask(SURE, threshold=0.95)
        assert stricter.source == "frontier"
        (again,) = await b.ask(SURE, threshold=0.95)
        assert (again.source, again.answered_by) == ("cache", "frontier")
        (lax,) = await b.ask(SURE, threshold=0.8)
        assert (lax.source, lax.answered_by) == ("cache", "local")

    run(scenario)


def test_a_kept_frontier_answer_is_not_given_where_only_the_local_model_was_wanted(bench: Any) -> None:
    """`route: "local"` means the local model's label."""

    async def scenario() -> None:
        b = bench()
        await b.ask(UNSURE)
        (outcome,) = await b.ask(UNSURE, route="local")
        assert outcome.source == "local"

    run(scenario)


def test_no_cache_computes_afresh_and_no_store_keeps_nothing(bench: Any) -> None:
    """The two directives of Cache-Control."""

    async def scenario() -> None:
        b = bench()
        await b.ask(SURE, write_cache=False, read_cache=False)
        assert b.cache.entries == {}
        await b.ask(SURE)
        (fresh,) = await b.ask(SURE, read_cache=False)
        assert fresh.source == "local"

    run(scenario)


def test_identical_inputs_in_flight_share_one_computation(bench: Any) -> None:
    """One is paid, the others are marked coalesced and cost nothing; each has its row."""

    async def scenario() -> None:
        b = bench()
        b.frontier.hold = asyncio.Event()
        asks = [asyncio.create_task(b.ask(UNSURE, UNSURE)) for _ in range(3)]
        while not b.frontier.asked:
            await asyncio.sleep(0)
        b.frontier.hold.set()
        outcomes = [outcome for answers in await asyncio.gather(*asks) for outcome in answers]
        assert b.frontier.asked == [UNSURE]
        assert sorted(outcome.coalesced for outcome in outcomes) == [False] + [True] * 5
        assert sum(outcome.cost_nano for outcome in outcomes if outcome.coalesced) == 0
        assert len(b.books.rows) == 6

    run(scenario)


def test_without_a_cache_identical_texts_in_flight_are_computed_once_all_the_same(bench: Any) -> None:
    async def scenario() -> None:
        b = bench()
        b.frontier.hold = asyncio.Event()
        asks = [asyncio.create_task(b.ask(UNSURE, read_cache=False, write_cache=False)) for _ in range(3)]
        while not b.frontier.asked:
            await asyncio.sleep(0)
        b.frontier.hold.set()
        outcomes = [outcome for answers in await asyncio.gather(*asks) for outcome in answers]
        assert b.frontier.asked == [UNSURE]
        assert sorted(outcome.coalesced for outcome in outcomes) == [False, True, True]

    run(scenario)


@pytest.mark.parametrize("difference", [{"tenant": "b"}, {"route": "local"}, {"coalesce": False}])
def test_what_differs_is_not_shared(bench: Any, difference: dict[str, Any]) -> None:
    """Another tenant, another route, a caller who wants it afresh: a computation of its own."""

    async def scenario() -> None:
        b = bench()
        b.frontier.hold = asyncio.Event()
        one = asyncio.create_task(b.ask(UNSURE))
        other = asyncio.create_task(b.ask(UNSURE, **difference))
        while len(b.classifier.seen) < 2:
            await asyncio.sleep(0)
        b.frontier.hold.set()
        outcomes = [*await one, *await other]
        assert not any(outcome.coalesced for outcome in outcomes)

    run(scenario)


def test_a_caller_with_more_time_does_not_get_the_others_deadline(bench: Any) -> None:
    """The impatient one is degraded; who joined it with more time has it computed again."""

    async def scenario() -> None:
        b = bench()
        b.frontier.hold = asyncio.Event()
        hasty = asyncio.create_task(b.ask(UNSURE, seconds=0.08))
        while not b.frontier.asked:
            await asyncio.sleep(0)
        patient = asyncio.create_task(b.ask(UNSURE, seconds=5))
        (degraded,) = await hasty
        b.frontier.hold.set()
        (answered,) = await patient
        assert degraded.degraded == "deadline"
        assert (answered.source, answered.degraded) == ("frontier", None)

    run(scenario)


def test_a_caller_who_leaves_stops_neither_the_call_nor_those_who_wait_with_it(bench: Any) -> None:
    """The first caller is cancelled; the second gets the answer of the call that the first began."""

    async def scenario() -> None:
        b = bench()
        b.frontier.hold = asyncio.Event()
        leaver = asyncio.create_task(b.ask(UNSURE))
        while not b.frontier.asked:
            await asyncio.sleep(0)
        stayer = asyncio.create_task(b.ask(UNSURE))
        await asyncio.sleep(0)
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        b.frontier.hold.set()
        (outcome,) = await stayer
        assert outcome.label == "fee"
        assert b.frontier.asked == [UNSURE]

    run(scenario)


def test_one_bad_text_hurts_nobody_else(bench: Any) -> None:
    """Empty, too long, failing: an error for it, answers for its neighbours, in input order."""

    async def scenario() -> None:
        def fail(text: str) -> Exception | None:
            return EngineFailed("boom") if text == "poison" else None

        b = bench(max_tokens=5, fail=fail)
        texts = [SURE, "   ", "a b c d e f g h", "poison", "the fee"]
        outcomes = await b.ask(*texts, route="local", over_length="reject")
        errors = [outcome.error for outcome in outcomes]
        assert errors == [None, "empty", "over-length", "model-failed", None]
        assert [outcome.label for outcome in outcomes] == ["lost", None, None, None, "fee"]

    run(scenario)


def test_a_text_the_local_model_fails_on_is_escalated_where_that_is_allowed(bench: Any) -> None:
    """NaN is no confident answer."""

    async def scenario() -> None:
        b = bench(fail=lambda _: NotFinite("nan"))
        (outcome,) = await b.ask(SURE)
        assert (outcome.source, outcome.label) == ("frontier", "fee")
        b.frontier.reply = lambda _: FrontierUnavailable("budget", "spent")
        (outcome,) = await b.ask("another one lost")
        assert (outcome.label, outcome.error) == (None, "model-failed")

    run(scenario)


@pytest.mark.parametrize(
    ("over_length", "source", "truncated"),
    [("escalate", "frontier", False), ("truncate", "local", True), ("reject", "error", False)],
)
def test_a_long_text_is_escalated_truncated_or_rejected_as_configured(
    bench: Any, over_length: str, source: str, truncated: bool
) -> None:
    """And never truncated silently."""

    async def scenario() -> None:
        b = bench(max_tokens=4)
        (outcome,) = await b.ask("lost one two three four five six", over_length=over_length)
        assert (outcome.source, outcome.truncated) == (source, truncated)

    run(scenario)


def test_a_full_queue_refuses_the_whole_request_before_anything_is_computed(bench: Any) -> None:
    """429, and hits are still served."""

    async def scenario() -> None:
        b = bench(queue_items=2)
        await b.ask(SURE)
        b.classifier.hold()
        waiting = asyncio.create_task(b.ask("in the queue"))
        await asyncio.sleep(0.01)
        with pytest.raises(ProblemError) as caught:
            await b.ask("x1", "x2", "x3")
        assert (caught.value.kind, caught.value.status) == ("overloaded", 429)
        assert b.classifier.seen == [SURE]
        (hit,) = await b.ask(SURE)
        assert hit.source == "cache"
        b.classifier.release()
        await waiting

    run(scenario)


def test_books_that_cannot_be_written_do_not_stop_answers(bench: Any) -> None:
    """The failure is reported; the chain is what stops paid calls."""

    async def scenario() -> None:
        b = bench()
        b.books.broken = True
        (outcome,) = await b.ask(SURE)
        assert outcome.label == "lost"
        assert len(b.ledger_errors) == 1

    run(scenario)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from([SURE, UNSURE, "the fee", "when does it arrive", " ", "lost " * 9]), min_size=1, max_size=12
    ),
    st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_every_input_gets_one_outcome_and_one_row_in_order(bench: Any, texts: list[str], flags: list[bool]) -> None:
    """Whatever the mix of hits, errors, repeats and options."""

    async def scenario() -> None:
        b = bench(max_tokens=6)
        strict, read, write = flags
        for _ in range(2):
            b.books.rows.clear()
            refuses = ANY_REASON if strict else frozenset()
            outcomes = await b.ask(*texts, refuses=refuses, read_cache=read, write_cache=write)
            assert len(outcomes) == len(b.books.rows) == len(texts)
            assert [row.index for row in b.books.rows] == list(range(len(texts)))
            assert all((outcome.label is None) == (outcome.error is not None) for outcome in outcomes)
            assert all((o.error == "empty") == (not text.strip()) for o, text in zip(outcomes, texts, strict=True))
            for text, outcome in zip(texts, outcomes, strict=True):
                if outcome.label is not None and text in (SURE, "the fee", "when does it arrive"):
                    assert outcome.label == {SURE: "lost", "the fee": "fee"}.get(text, "arrival")

    run(scenario)


def test_what_this_process_remembers_is_not_looked_up(bench: Any) -> None:
    """Only the texts that are still open are; each says where it was found."""

    async def scenario() -> None:
        b = bench()
        await b.ask(SURE)
        await b.ask("the fee")
        b.cache.remembers = {b"a/" + SURE.encode()}
        b.cache.looked_up.clear()
        remembered, looked_up, computed = await b.ask(SURE, "the fee", "when does it arrive")
        tiers = [outcome.cache_tier for outcome in (remembered, looked_up, computed)]
        assert tiers == ["memory", "redis", None]
        assert {slot.text for slot in b.cache.looked_up} == {b"a/the fee", b"a/when does it arrive"}
        b.cache.looked_up.clear()
        (again,) = await b.ask(SURE)
        assert (again.source, again.cache_tier, again.cost_nano) == ("cache", "memory", 0)
        assert b.cache.looked_up == []
        assert [row.cache_tier for row in b.books.rows][-1] == "memory"

    run(scenario)


def test_policy_is_applied_to_what_is_remembered_too(bench: Any) -> None:
    """A local answer that today's threshold would escalate is no hit in either tier."""

    async def scenario() -> None:
        b = bench(confidence=0.9)
        await b.ask(SURE, threshold=0.8)
        b.cache.remembers = {b"a/" + SURE.encode()}
        (stricter,) = await b.ask(SURE, threshold=0.95)
        assert (stricter.source, stricter.cache_tier) == ("frontier", None)

    run(scenario)


def test_what_another_process_buys_is_waited_for_and_not_bought_again(bench: Any) -> None:
    """A frontier's answer, coalesced, for no more than the local model's time; it is kept where it was bought."""

    async def scenario() -> None:
        b = bench()
        b.cache.elsewhere = Entry("k", "frontier", 1.0, "arrival", None, (), "simulated/m", 1000, 7, False)
        outcome, joined = await b.ask(UNSURE, UNSURE)
        assert (outcome.source, outcome.label, outcome.coalesced) == ("frontier", "arrival", True)
        assert (outcome.cost_nano, outcome.degraded, outcome.model) == (outcome.local_nano, None, "simulated/m")
        assert outcome.local_nano > 0 == joined.cost_nano
        assert b.frontier.asked == []
        assert b.cache.entries == {}
        (slot,) = b.cache.claimed
        assert (slot.kind, slot.text) == ("frontier", b"a/hmm")

    run(scenario)


def test_who_wants_it_afresh_neither_waits_nor_makes_others_wait(bench: Any) -> None:
    """`no-cache` and `no-store` claim nothing; what stands locally claims nothing either."""

    async def scenario() -> None:
        b = bench()
        await b.ask(UNSURE, read_cache=False)
        await b.ask(UNSURE, read_cache=False, write_cache=False)
        await b.ask(SURE)
        assert b.cache.claimed == []
        assert len(b.frontier.asked) == 2

    run(scenario)


@pytest.mark.parametrize("impatient", [False, True], ids=["gone", "out of time"])
def test_a_paid_answer_is_kept_although_its_caller_left(bench: Any, impatient: bool) -> None:
    """It is stored where the call lands: the next caller finds what this one paid for."""

    async def scenario() -> None:
        b = bench()
        b.frontier.hold = asyncio.Event()
        slow = b.frontier.answer

        async def answer(question: Any, caller: Any, *, deadline: float) -> Any:
            return await slow(question, caller, deadline=deadline + 60)  # a reply that comes after all

        b.frontier.answer = answer
        caller = asyncio.create_task(b.ask(UNSURE, seconds=0.1 if impatient else 5))
        while not b.frontier.asked:
            await asyncio.sleep(0)
        if impatient:
            (outcome,) = await caller
            assert outcome.degraded == "deadline"
        else:
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)
        b.frontier.hold.set()
        while not b.cache.entries:
            await asyncio.sleep(0)
        (hit,) = await b.ask(UNSURE)
        assert (hit.source, hit.answered_by) == ("cache", "frontier")
        assert len(b.frontier.asked) == 1

    run(scenario)


def test_hits_misses_and_coalesced_are_counted_apart(bench: Any) -> None:
    """A coalesced input is no hit and no miss: what was called 92 % of hits would be 70 %."""

    async def scenario() -> None:
        b = bench()
        telemetry = Telemetry()
        telemetry.caching = True
        b.frontier.hold = asyncio.Event()
        asks = [asyncio.create_task(b.ask(UNSURE)) for _ in range(3)]
        while not b.frontier.asked:
            await asyncio.sleep(0)
        b.frontier.hold.set()
        answers = [*await asyncio.gather(*asks), await b.ask(UNSURE)]
        b.cache.remembers = {b"a/" + UNSURE.encode()}
        answers.append(await b.ask(UNSURE))
        for outcomes in answers:
            telemetry.answered("t", outcomes, 0.001)
        lines = generate_latest(telemetry.registry).decode().splitlines()
        counted = {
            line.split(" ")[0][len("crossover_") :]: float(line.split(" ")[1]) for line in lines if "#" not in line
        }
        assert counted['cache_lookups_total{result="miss",tier=""}'] == 1
        assert counted['cache_lookups_total{result="hit_frontier",tier="redis"}'] == 1
        assert counted['cache_lookups_total{result="hit_frontier",tier="memory"}'] == 1
        assert counted["coalesced_total"] == 2

    run(scenario)


def test_two_tasks_on_one_model_never_share_a_computation(bench: Any) -> None:
    """The same text for another task has other thresholds, other instructions and another row."""
    import msgspec

    async def scenario() -> None:
        b = bench()
        b.frontier.hold = asyncio.Event()
        one = asyncio.create_task(b.ask(UNSURE))
        while not b.frontier.asked:
            await asyncio.sleep(0)
        b.classifier._tasks["u"] = b.classifier._tasks["t"]
        b.route = msgspec.structs.replace(b.route, info=msgspec.structs.replace(b.route.info, name="u"))
        (other,) = await b.ask(UNSURE, threshold=0.1)
        b.frontier.hold.set()
        await one
        assert (other.source, other.coalesced) == ("local", False)

    run(scenario)


def test_who_joins_with_less_time_gets_the_local_label_that_is_already_known(bench: Any) -> None:
    """Degraded, within its own deadline; the patient one gets the frontier's."""

    async def scenario() -> None:
        b = bench()
        b.frontier.hold = asyncio.Event()
        patient = asyncio.create_task(b.ask(UNSURE, seconds=5))
        while not b.frontier.asked:
            await asyncio.sleep(0)
        (hasty,) = await b.ask(UNSURE, seconds=0.1)
        assert (hasty.source, hasty.degraded, hasty.coalesced) == ("local", "deadline", True)
        assert hasty.cost_nano == 0
        b.frontier.hold.set()
        (answered,) = await patient
        assert answered.source == "frontier"

    run(scenario)


def test_a_local_model_that_hangs_does_not_hold_a_request_beyond_its_deadline(bench: Any) -> None:
    """504 for that input."""

    async def scenario() -> None:
        b = bench()
        b.classifier.hold()
        async with asyncio.timeout(5):
            (outcome,) = await b.ask(SURE, seconds=0.05)
        assert outcome.error == "deadline"
        b.classifier.release()

    run(scenario)


def test_books_that_hang_do_not_hold_an_answer_beyond_its_deadline(bench: Any, tmp_path: Path) -> None:
    """The answer leaves, the failure is reported, the writing goes on once it can."""

    async def scenario() -> None:
        b = bench()
        ledger = b.pipeline._ledger = Ledger.open(tmp_path / "l.db", busy_ms=20_000)
        other = sqlite3.connect(tmp_path / "l.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        async with asyncio.timeout(5):
            (outcome,) = await b.ask(SURE, seconds=0.1)
        assert outcome.label == "lost"
        assert len(b.ledger_errors) == 1
        other.execute("ROLLBACK")
        await asyncio.to_thread(ledger.close)
        assert other.execute("SELECT label FROM inputs").fetchall() == [("lost",)]
        other.close()

    run(scenario)


def test_a_full_queue_costs_a_late_joiner_its_own_input_only(bench: Any) -> None:
    """Its neighbours were computed, perhaps paid for: they are answered."""

    async def scenario() -> None:
        b = bench(queue_items=1)
        b.frontier.hold = asyncio.Event()
        hasty = asyncio.create_task(b.ask(UNSURE, seconds=0.15))
        while not b.frontier.asked:
            await asyncio.sleep(0)
        batch = asyncio.create_task(b.ask(SURE, UNSURE, seconds=5))
        while SURE not in b.classifier.seen:
            await asyncio.sleep(0)
        b.classifier.hold()
        b.classifier._waiting.append(b.classifier._waiting)  # somebody else is in the queue
        (degraded,) = await hasty
        assert degraded.degraded == "deadline"
        sure, unsure = await batch
        assert sure.label == "lost"
        assert unsure.error == "overloaded"

    run(scenario)


def test_an_answer_kept_from_a_cut_text_is_not_given_where_long_texts_are_rejected(bench: Any) -> None:
    """The rule of today decides."""

    async def scenario() -> None:
        b = bench(max_tokens=4)
        long = "lost one two three four five six"
        (cut,) = await b.ask(long, over_length="truncate")
        assert cut.truncated
        (refused,) = await b.ask(long, over_length="reject")
        assert refused.error == "over-length"

    run(scenario)


def test_thirty_callers_behind_an_impatient_one_make_one_more_call_not_thirty(bench: Any) -> None:
    """The first of them begins anew; the others join it."""

    async def scenario() -> None:
        b = bench()
        b.frontier.hold = asyncio.Event()
        hasty = asyncio.create_task(b.ask(UNSURE, seconds=0.15))
        while not b.frontier.asked:
            await asyncio.sleep(0)
        patient = [asyncio.create_task(b.ask(UNSURE, seconds=5)) for _ in range(30)]
        (degraded,) = await hasty
        while len(b.frontier.asked) < 2:
            await asyncio.sleep(0)
        b.frontier.hold.set()
        outcomes = [outcome for answers in await asyncio.gather(*patient) for outcome in answers]
        assert degraded.degraded == "deadline"
        assert {outcome.source for outcome in outcomes} == {"frontier"}
        assert sorted(outcome.coalesced for outcome in outcomes) == [False] + [True] * 29
        assert len(b.frontier.asked) == 2

    run(scenario)


def test_what_was_given_up_at_the_end_is_not_paid_for(bench: Any) -> None:
    """Its caller has left and the service closes; then the local model, which is closed later, comes with an unsure
    answer: nobody is asked any more, and whoever still waited is told."""

    async def scenario() -> None:
        b = bench()
        b.classifier.hold()
        gone = asyncio.create_task(b.ask(UNSURE))
        waiting = asyncio.create_task(b.ask(UNSURE))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await b.pipeline.close()
        b.classifier.release()
        (outcome,) = await waiting
        assert (outcome.label, outcome.error) == (None, "draining")
        await asyncio.sleep(0.01)
        assert b.frontier.asked == []

    run(scenario)


def test_an_error_where_nobody_can_catch_it_reaches_the_caller(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The local answer is made in a callback of the loop, which would only log it; the next request is served again."""

    async def scenario() -> None:
        b = bench()
        with monkeypatch.context() as broken:
            broken.setattr("router.outcome.from_prediction", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                async with asyncio.timeout(5):
                    await b.ask(SURE)
        (outcome,) = await b.ask(SURE)
        assert outcome.label == "lost"

    run(scenario)
