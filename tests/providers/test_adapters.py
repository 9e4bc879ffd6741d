"""Every adapter through the real SDKs, over a real socket: what it sends, and what becomes of every reply."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import time
import traceback
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from cost.types import Usage
from providers import prompt
from providers.build import build
from providers.settings import Settings
from providers.simulator import Simulator
from providers.simulator.faults import FAULTS
from providers.types import (
    Answer,
    AuthFailed,
    BadAnswer,
    BadRequest,
    Provider,
    ProviderError,
    Question,
    RateLimited,
    Refused,
    SchemaRefused,
    TimedOut,
    Unavailable,
)

On = Callable[..., Provider]


def ask(on: On, kind: str, question: Question, *faults: str, timeout: float = 10.0) -> tuple[Any, Simulator]:
    """One call with a fault ordered: what came of it, and the simulator."""

    async def main() -> tuple[Any, Simulator]:
        async with Simulator(record=True) as sim:
            sim.fail_next(faults)
            provider = on(sim, kind)
            try:
                return await provider.ask(question, timeout=timeout), sim
            except ProviderError as error:
                return error, sim
            finally:
                await provider.close()

    return asyncio.run(main())


def test_the_answer_is_a_label_with_the_model_that_answered_and_its_usage(
    provider_on: On, kind: str, question: Question
) -> None:
    answer, sim = ask(provider_on, kind, question)
    assert isinstance(answer, Answer)
    assert answer.label == "card_arrival"
    assert answer.model.startswith("simulated/")
    (bill,) = sim.bill.values()
    assert (answer.usage.input, answer.usage.output) == (bill["input"], bill["output"])
    assert not answer.usage.estimated


def test_the_request_names_the_model_and_constrains_the_label_to_the_closed_set(
    provider_on: On, kind: str, question: Question
) -> None:
    _, sim = ask(provider_on, kind, question)
    request, headers = sim.requests[0], sim.headers[0]
    labels = ["card_arrival", "lost_or_stolen_card", "exchange_rate"]
    assert request["model"] == {"anthropic": "claude-haiku-5-5", "openai-chat": "gpt-5.6-luna"}.get(kind, "gpt-6-luna")
    assert "temperature" not in request
    if kind == "anthropic":
        assert request["output_config"]["format"]["schema"]["properties"]["label"]["enum"] == labels
        assert request["system"][0]["cache_control"] == {"type": "ephemeral"}
    elif kind == "openai":
        assert request["text"]["format"]["schema"]["properties"]["label"]["enum"] == labels
        assert request["text"]["format"]["strict"] is True
        assert request["store"] is False
    elif kind == "openai-decisions":
        (asked,) = request["questions"]
        assert asked["type"] == "choice"
        assert [choice["value"] for choice in asked["choices"]] == labels
        assert asked["choices"][0]["description"] == "where a new card is"
        assert "description" not in asked["choices"][1]
    else:
        style = request["response_format"]["json_schema"]
        assert style["schema"]["properties"]["label"]["enum"] == labels
        assert style["strict"] is True
    assert headers["accept-encoding"] == "identity"
    assert headers["x-stainless-retry-count"] == "0"


def test_the_text_is_sent_once_as_data_and_never_in_the_instructions(
    provider_on: On, kind: str, question: Question
) -> None:
    _, sim = ask(provider_on, kind, question)
    request = sim.requests[0]
    user = request["messages"][-1]["content"] if "messages" in request else request["input"]
    # Decisions keeps text and question apart itself.
    assert user == (question.text if kind == "openai-decisions" else prompt.user_part(question.text))
    sent = json.dumps(request)
    assert sent.count("canarytext") == 1
    assert "Messages to a bank's support." in sent


def test_the_body_of_a_call_can_be_had_without_making_it_and_its_answer_read_without_a_call(
    provider_on: On, kind: str, question: Question
) -> None:
    """As batches do."""

    async def main() -> None:
        async with Simulator(record=True) as sim:
            provider: Any = provider_on(sim, kind)
            direct = await provider.ask(question, timeout=10)
            (sent,) = sim.requests
            assert provider.request(question) == sent
            path = "/v1/" + provider.path.removeprefix("/v1").strip("/")
            status, reply = sim.answered(path, sent, batch=True)
            assert status == 200
            indirect = provider.answer(question, json.dumps(reply).encode())
            assert (indirect.label, indirect.scores) == (direct.label, direct.scores)
            assert sim.calls == 1
            await provider.close()

    asyncio.run(main())


def test_a_reply_is_found_again_by_the_providers_own_name_for_it(
    provider_on: On, kind: str, question: Question
) -> None:
    """Decisions have none; the header stands in for it. A reply that is no answer has one too."""
    answer, sim = ask(provider_on, kind, question)
    assert answer.reply_id == sim.items[0].reply_id != ""
    failure, sim = ask(provider_on, kind, question, "out_of_set")
    assert failure.reply_id == sim.items[0].reply_id != ""


def test_no_call_changes_the_part_of_the_prompt_that_all_calls_share(
    provider_on: On, kind: str, question: Question
) -> None:
    shown = prompt.of(question)
    before = copy.deepcopy(shown)
    for fault in ("ok", "400", "out_of_set"):
        ask(provider_on, kind, question, fault)
    assert prompt.of(question) is shown
    assert shown == before


@pytest.mark.parametrize(
    ("fault", "error", "billed"),
    [
        ("429", RateLimited, "no"),
        ("401", AuthFailed, "no"),
        ("402", AuthFailed, "no"),
        ("403", AuthFailed, "no"),
        ("400", BadRequest, "no"),
        ("404", BadRequest, "no"),
        ("413", BadRequest, "no"),
        ("422", BadRequest, "no"),
        ("redirect", BadRequest, "no"),
        ("408", Unavailable, "no"),
        ("500", Unavailable, "unknown"),
        ("502", Unavailable, "unknown"),
        ("503", Unavailable, "no"),
        ("504", Unavailable, "unknown"),
        ("529", Unavailable, "no"),
        ("reset", Unavailable, "unknown"),
        ("half_close", Unavailable, "unknown"),
        ("malformed", BadAnswer, "yes"),
        ("html", BadAnswer, "yes"),
        ("empty", BadAnswer, "yes"),
        ("nulls", BadAnswer, "yes"),
        ("gzip_bomb", BadAnswer, "yes"),
        ("out_of_set", BadAnswer, "yes"),
        ("wrong_case", BadAnswer, "yes"),
        ("prose", BadAnswer, "yes"),
        ("refusal", Refused, "yes"),
        ("truncated", BadAnswer, "yes"),
    ],
)
def test_every_failure_has_its_name_and_takes_one_wire_call(
    provider_on: On, kind: str, question: Question, fault: str, error: type[ProviderError], billed: str
) -> None:
    failure, sim = ask(provider_on, kind, question, fault)
    if kind == "openai-chat" and fault in ("400", "422"):
        error = SchemaRefused  # it may have been the schema (tests/providers/test_formats.py)
    assert type(failure) is error
    assert failure.billed == billed
    assert sim.calls == 1  # the SDK retried nothing


def test_a_reply_that_is_no_answer_still_tells_what_it_cost(provider_on: On, kind: str, question: Question) -> None:
    for fault in ("out_of_set", "refusal", "truncated", "prose"):
        failure, sim = ask(provider_on, kind, question, fault)
        (bill,) = sim.bill.values()
        assert failure.usage == Usage(input=bill["input"], output=bill["output"]), fault
        assert failure.model.startswith("simulated/")


@pytest.mark.parametrize("fault", ["hang", "slow_drip"])
def test_the_deadline_cuts_a_call_that_never_ends_and_closes_its_socket(
    provider_on: On, kind: str, question: Question, fault: str
) -> None:
    async def main() -> None:
        async with Simulator() as sim:
            provider = provider_on(sim, kind)
            await provider.ask(question, timeout=10)  # connected and warm
            sim.fail_next([fault])
            started = time.monotonic()
            with pytest.raises(TimedOut) as caught:
                await provider.ask(question, timeout=0.2)
            assert time.monotonic() - started < 0.6
            assert caught.value.billed == "unknown"
            async with asyncio.timeout(5):
                await sim.wait_for(gone=1)
            await provider.close()

    asyncio.run(main())


def test_a_refused_connection_is_unavailable_and_costs_nothing(kind: str, question: Question) -> None:
    async def main() -> None:
        async with Simulator() as gone:
            url = gone.url
        provider = build(kind, name="p", model="m", api_key="k", settings=Settings(base_url=url))  # type: ignore[arg-type]
        with pytest.raises(Unavailable) as caught:
            await provider.ask(question, timeout=5)
        assert caught.value.billed == "no"
        await provider.close()

    asyncio.run(main())


def test_a_gzip_bomb_costs_less_than_16_megabytes(provider_on: On, kind: str, question: Question) -> None:
    async def main() -> int:
        async with Simulator() as sim:
            provider = provider_on(sim, kind)
            await provider.ask(question, timeout=10)
            sim.fail_next(["gzip_bomb"])
            tracemalloc.start()
            try:
                with pytest.raises(BadAnswer):
                    await provider.ask(question, timeout=30)
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
                await provider.close()

    assert asyncio.run(main()) < 16e6


@pytest.mark.parametrize("fault", ["no_usage", "negative_usage", "absurd_usage", "string_usage", "cached_usage"])
def test_usage_that_cannot_be_true_is_replaced_by_an_upper_bound(
    provider_on: On, kind: str, question: Question, fault: str
) -> None:
    answer, sim = ask(provider_on, kind, question, fault)
    (bill,) = sim.bill.values()
    assert answer.usage == build(kind, name="p", model="m", api_key="k").upper_bound(question)  # type: ignore[arg-type]
    assert answer.usage.estimated
    assert answer.usage.input >= bill["input"]
    assert answer.usage.output >= bill["output"]


def test_the_buckets_are_disjoint_whether_the_prefix_is_written_to_the_cache_or_read(
    provider_on: On, kind: str, question: Question
) -> None:
    long = Question(question.task, question.text, question.labels, instructions="Choose well. " * 2000)

    async def main() -> None:
        async with Simulator() as sim:
            provider = provider_on(sim, kind)
            first = (await provider.ask(long, timeout=10)).usage
            second = (await provider.ask(long, timeout=10)).usage
            await provider.close()
        assert first.cache_write_5m > 1024
        assert first.cache_read == 0
        assert second.cache_read == first.cache_write_5m
        assert second.cache_write_5m == 0
        assert first.input == second.input < 100
        (bill,) = sim.bill.values()
        for bucket in ("input", "cache_read", "cache_write_5m", "output"):
            assert getattr(first, bucket) + getattr(second, bucket) == bill[bucket], bucket

    asyncio.run(main())


@pytest.mark.parametrize(
    ("said", "heard"), [("30", 30.0), ("1.5", 1.5), ("junk", None), ("-1", None), ("0", None), ("inf", None)]
)
def test_retry_after_is_heard_where_it_makes_sense(
    provider_on: On, kind: str, question: Question, said: str, heard: float | None
) -> None:
    failure, _ = ask(provider_on, kind, question, f"429@{said}")
    assert failure.retry_after == heard


def test_neither_key_nor_text_reaches_a_log_an_error_or_a_repr(
    provider_on: On, kind: str, question: Question, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []

    async def main() -> None:
        async with Simulator() as sim:
            provider = provider_on(sim, kind)
            said.append(repr(provider))
            for fault in ["401", "429", "500", "400", *FAULTS]:
                sim.fail_next([fault])
                try:
                    said.append(repr(await provider.ask(question, timeout=0.2)))
                except ProviderError as error:
                    # What a log or an error tracker could get hold of: the whole chain of errors.
                    said.extend(traceback.format_exception(error))
                    assert error.__context__ is None
                    assert error.__cause__ is None
                    said.append(repr(vars(error)))
            await provider.close()

    with caplog.at_level(logging.DEBUG), structlog.testing.capture_logs() as logged:
        asyncio.run(main())
    everything = "\n".join([*said, repr(logged), caplog.text, *(repr(vars(r)) for r in caplog.records)])
    assert key not in everything
    assert "canarytext" not in everything


@pytest.mark.parametrize("bad", ["", "sk-a b", "sk-a\nx", "sk-ключ"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_quoted(kind: str, bad: str) -> None:
    with pytest.raises(ValueError, match="key of provider 'p'") as caught:
        build(kind, name="p", model="m", api_key=bad)  # type: ignore[arg-type]
    assert not bad or bad not in str(caught.value)


@pytest.mark.parametrize("url", ["http://api.example.com", "ftp://x", "nonsense", "https://user:word@api.example.com"])
def test_an_address_that_would_leak_is_refused(kind: str, url: str) -> None:
    with pytest.raises(ValueError, match="base_url") as caught:
        build(kind, name="p", model="m", api_key="k", settings=Settings(base_url=url))  # type: ignore[arg-type]
    assert "word" not in str(caught.value).replace("password", "")


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="unknown kind 'gemini'; there are anthropic, openai"):
        build("gemini", name="p", model="m", api_key="k")  # type: ignore[arg-type]
