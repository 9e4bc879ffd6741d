"""Batch APIs: both, through the real SDKs' clients, over a socket."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import msgspec
import pytest

from providers import batches
from providers.batches import Batches, Order, Result, batches_of, custom_id
from providers.sdk import SdkProvider
from providers.simulator import Simulator
from providers.types import AuthFailed, BadAnswer, BadRequest, ProviderError, Question, RateLimited, Unavailable

ORDER = Order("0123456789ab", 3, 10, 13, 4, 0.0)
TEXTS = {10: "card arrival", 11: "lost or stolen card", 12: "exchange rate", 13: "another exchange rate"}

Made = Callable[..., tuple[SdkProvider[Any], Batches]]


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """An async test, run to its end."""

    @wraps(test)
    def run(*args: Any, **more: Any) -> None:
        asyncio.run(test(*args, **more))

    return run


@pytest.fixture(params=["anthropic", "openai", "openai-chat"])
def style(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def made(provider_on: Callable[..., SdkProvider[Any]]) -> Made:
    """(simulator, kind) -> the adapter of single calls, and its batches."""

    def make(sim: Simulator, kind: str) -> tuple[SdkProvider[Any], Batches]:
        provider = provider_on(sim, kind)
        found = batches_of(kind, provider.client, base_url="https://api.openai.com/v1")  # type: ignore[arg-type]
        assert found is not None
        return provider, found

    return make


async def submitted(provider: SdkProvider[Any], api: Batches, question: Question, order: Order = ORDER) -> str:
    asked = [(n, msgspec.structs.replace(question, text=text)) for n, text in TEXTS.items()]
    return await api.submit(order, [api.line(custom_id(order.job, n), provider.request(each)) for n, each in asked])


async def results(api: Batches, batch: str, order: Order = ORDER) -> list[Result]:
    return [result async for result in api.results(order, batch)]


async def never() -> None:
    raise AssertionError("it was waited for")


@on_a_loop
async def test_questions_go_out_together_and_their_replies_are_checked_like_any_other(
    style: str, made: Made, question: Question
) -> None:
    async with Simulator() as sim:
        sim.batches.delay_s = None
        provider, api = made(sim, style)
        batch = await submitted(provider, api, question)
        assert (await api.progress(batch)).state == "running"
        sim.batches.finish()
        progress = await api.progress(batch)
        assert (progress.state, progress.done, progress.total) == ("ended", 4, 4)
        found = await results(api, batch)
        labels = {}
        for result in found:
            number = ORDER.question(result.id)
            assert number is not None and result.reply is not None
            answer = provider.answer(msgspec.structs.replace(question, text=TEXTS[number]), result.reply)
            labels[TEXTS[number]] = answer.label
            assert answer.model.startswith("simulated/") and answer.reply_id
        assert [ORDER.question(result.id) for result in found] != sorted(TEXTS)  # the order is another
        assert labels == {
            "card arrival": "card_arrival",
            "lost or stolen card": "lost_or_stolen_card",
            "exchange rate": "exchange_rate",
            "another exchange rate": "exchange_rate",
        }
        assert [item.batch for item in sim.items] == [True] * 4
        await provider.close()


@on_a_loop
async def test_what_the_provider_says_went_wrong_is_told_apart_from_what_can_not_be_read(
    style: str, made: Made, question: Question
) -> None:
    async with Simulator() as sim:
        sim.batches.order(items=["errored", "expired", "unreadable", "unknown"])
        provider, api = made(sim, style)
        batch = await submitted(provider, api, question)
        await api.progress(batch)
        found = await results(api, batch)
        by_number = {ORDER.question(result.id): result for result in found}
        assert by_number[10].reply is None and by_number[10].error
        assert by_number[11].reply is None and "expired" in by_number[11].error
        assert 12 not in by_number and 13 not in by_number
        assert sorted(result.id for result in found)[0] == ""  # cut in the middle
        assert sorted(result.id for result in found)[-1] == "nobody-1"
        await provider.close()


@on_a_loop
async def test_a_line_of_megabytes_is_passed_over_and_the_others_are_read(
    style: str, made: Made, question: Question
) -> None:
    async with Simulator() as sim:
        sim.batches.order(items=["ok", "long", "twice"])
        provider, api = made(sim, style)
        batch = await submitted(provider, api, question)
        await api.progress(batch)
        found = [ORDER.question(result.id) for result in await results(api, batch)]
        assert sorted(found, key=str) == sorted([10, 12, 12, 13, None], key=str)
        await provider.close()


@on_a_loop
async def test_results_without_an_end_are_left(
    style: str, made: Made, question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"providers.{style.removesuffix('-chat')}_batches.MAX_LINE_BYTES", 10)
    async with Simulator() as sim:
        sim.batches.order(items=["long"])
        provider, api = made(sim, style)
        batch = await submitted(provider, api, question)
        await api.progress(batch)
        assert await results(api, batch) == [Result(error="unreadable")]
        await provider.close()


@on_a_loop
async def test_a_batch_that_nobody_heard_of_is_found_again(style: str, made: Made, question: Question) -> None:
    """Among those of others and of other parts; also where only its results tell whose it is."""
    async with Simulator() as sim:
        provider, api = made(sim, style)
        other = await submitted(provider, api, question, msgspec.structs.replace(ORDER, job="ba9876543210"))
        first = await submitted(provider, api, question, msgspec.structs.replace(ORDER, part=2, first=6, last=9))
        assert await api.find(ORDER, known=[first], pause=never) is None
        ours = await submitted(provider, api, question)
        for _ in range(25):  # more than a page of one of them
            await submitted(provider, api, question, msgspec.structs.replace(ORDER, job="ba9876543210"))
        assert await api.find(ORDER, known=[first], pause=never) == ours
        assert await api.find(ORDER, known=[first, ours], pause=never) is None
        assert await api.find(msgspec.structs.replace(ORDER, at=2e12), known=[], pause=never) is None  # older than that
        assert other != ours
        await provider.close()


@on_a_loop
async def test_a_batch_that_only_its_results_can_name_is_waited_for(made: Made, question: Question) -> None:
    async with Simulator() as sim:
        sim.batches.delay_s = None
        provider, api = made(sim, "anthropic")
        ours = await submitted(provider, api, question)
        waits = 0

        async def pause() -> None:
            nonlocal waits
            waits += 1
            sim.batches.finish()

        assert await api.find(ORDER, known=[], pause=pause) == ours
        assert waits == 1
        await provider.close()


@pytest.mark.parametrize(
    ("status", "error", "there_may_be_one"),
    [(401, AuthFailed, False), (400, BadRequest, False), (429, RateLimited, False), (500, Unavailable, True)],
)
@on_a_loop
async def test_a_refused_submission_says_whether_there_may_be_a_batch(
    style: str, made: Made, question: Question, status: int, error: type[ProviderError], there_may_be_one: bool
) -> None:
    async with Simulator() as sim:
        provider, api = made(sim, style)
        sim.batches.fail_next.extend([status] if style == "anthropic" else [0, status])  # not the upload
        with pytest.raises(error) as refused:
            await submitted(provider, api, question)
        assert (refused.value.billed != "no") == there_may_be_one
        assert "canary" not in str(refused.value)
        assert refused.value.__context__ is None  # the SDK's error holds request and key
        await provider.close()


@on_a_loop
async def test_a_file_that_could_not_be_uploaded_is_no_batch(made: Made, question: Question) -> None:
    async with Simulator() as sim:
        provider, api = made(sim, "openai")
        sim.batches.fail_next.append(500)
        with pytest.raises(Unavailable) as refused:
            await submitted(provider, api, question)
        assert refused.value.billed == "no"
        await provider.close()


@pytest.mark.parametrize("reply", [b"", b"[]", b'{"id": 5}', b"<html>", b'{"data": 7}'])
@on_a_loop
async def test_nonsense_for_a_reply_is_a_bad_answer(
    style: str, made: Made, question: Question, reply: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Simulator() as sim:
        provider, api = made(sim, style)

        async def nonsense(*_request: Any) -> tuple[int, bytes]:
            return 200, reply

        monkeypatch.setattr(sim.batches, "handle", nonsense)
        for call in (submitted(provider, api, question), api.progress("b"), api.find(ORDER, known=[], pause=never)):
            with pytest.raises(BadAnswer):
                await call
        await provider.close()


@asynccontextmanager
async def download(answer: bytes) -> AsyncIterator[str]:
    """A server that answers every request with these bytes."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def whole(body: bytes, *headers: str) -> bytes:
    head = "\r\n".join(["HTTP/1.1 200 OK", f"content-length: {len(body)}", *headers])
    return f"{head}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 307 Elsewhere\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", BadRequest),
        (whole(gzip.compress(b"\n" * 2_000_000), "content-encoding: gzip"), BadAnswer),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}", Unavailable),  # cut
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\n{}", Unavailable),
    ],
)
@on_a_loop
async def test_a_download_is_as_safe_as_a_call(
    style: str, provider_on: Callable[..., SdkProvider[Any]], answer: bytes, error: type[ProviderError]
) -> None:
    async with download(answer) as url:
        sim = type("Sim", (), {"url": url})
        provider = provider_on(sim, style)
        with pytest.raises(error):
            _ = [line async for line in batches.lines(provider.client, "/somewhere", 1000)]  # type: ignore[arg-type]
        await provider.close()


@on_a_loop
async def test_lines_are_those_between_line_breaks(provider_on: Callable[..., SdkProvider[Any]]) -> None:
    body = b"one\n\n  \r\ntwo\r\n" + b"x" * (batches.MAX_LINE_BYTES + 1) + b"\nthree"
    async with download(whole(body)) as url:
        provider = provider_on(type("Sim", (), {"url": url}), "anthropic")
        found = [line async for line in batches.lines(provider.client, "/somewhere", 10**9)]  # type: ignore[arg-type]
        assert found == [b"one", b"two\r", b"", b"three"]
        await provider.close()


@pytest.mark.parametrize("more", [{"via": "bedrock"}, {"base_url": "http://localhost:8000/v1"}])
def test_servers_that_may_have_no_batches_are_not_asked(more: dict[str, Any]) -> None:
    assert batches_of("openai-decisions", None) is None
    assert batches_of("openai-chat", None, **more) is None
    assert (batches_of("anthropic", None, **more) is None) == ("via" in more)


def test_ids_are_what_providers_take_and_lead_back_to_the_question() -> None:
    for number in (10, 13):
        name = custom_id(ORDER.job, number)
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name)
        assert ORDER.question(name) == number
    for other in (
        "",
        "10",
        "0123456789ab-9",
        "0123456789ab-14",
        "0123456789ab-x",
        "ba9876543210-10",
        "0123456789ab-١٠",
    ):
        assert ORDER.question(other) is None
