"""Batch APIs: many questions in one order, answered within a day, at about half the price.

`Batches` is the seam; `providers.anthropic_batches` and `providers.openai_batches` speak through the SDKs' clients.
What a reply says is checked by the adapter of single calls (`SdkProvider.answer`): to the two, a reply is bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx2
import msgspec

from providers import failures
from providers.settings import Kind, Via
from providers.transport import STREAMED
from providers.types import BadAnswer, ProviderError

T = TypeVar("T")

#: A line of results: a reply and its wrapping.
MAX_LINE_BYTES = 1024 * 1024
#: Seconds for a small call; for an upload; between two pieces of a download.
CALL_S, UPLOAD_S, READ_S = 60.0, 900.0, 120.0
#: Seconds that the clocks may differ by: a batch is looked for from so long before it was submitted.
SKEW_S = 3600.0
_OPENAI = "api.openai.com"


def custom_id(job: str, number: int) -> str:
    """What the provider knows a question by: [a-z0-9-], 64 characters at most."""
    return f"{job}-{number}"


class Order(msgspec.Struct, frozen=True):
    """One batch of a job: the questions `first` to `last`, `count` of them, submitted (or about to be) at `at`."""

    job: str
    part: int
    first: int
    last: int
    count: int
    at: float  # unix time, seconds

    def question(self, custom_id: str) -> int | None:
        """The number in it; None: none of this order's."""
        job, _, number = custom_id.rpartition("-")
        if job != self.job or not number.isascii() or not number.isdecimal() or len(number) > 12:
            return None
        return int(number) if self.first <= int(number) <= self.last else None


class Progress(msgspec.Struct, frozen=True):
    """`done` of `total` requests; "failed": the provider refused the batch whole, and charges nothing. `rest`: what
    became of requests that the results don't name, as the provider says ("expired", "cancelled"); "": it doesn't."""

    state: Literal["running", "ended", "failed"]
    done: int = 0
    total: int = 0
    rest: str = ""
    error: str = ""


class Result(msgspec.Struct, frozen=True):
    """One line of results. `reply`: the body of a reply, billed and unchecked; None: the provider says that it failed,
    and charges nothing. `id` is empty where a line could not be read."""

    id: str = ""
    reply: bytes | None = None
    error: str = ""


class Batches(Protocol):
    """The seam. Implementations raise `ProviderError`s only."""

    max_requests: int
    max_bytes: int

    def line(self, custom_id: str, body: dict[str, Any]) -> bytes:
        """A request as the batch holds it."""
        ...

    async def submit(self, order: Order, lines: Sequence[bytes]) -> str:
        """The batch's id. An error that is `billed` "no" says that there is no batch; with any other there may be."""
        ...

    async def progress(self, batch_id: str) -> Progress: ...

    def results(self, order: Order, batch_id: str) -> AsyncGenerator[Result]:
        """In any order, perhaps not all, perhaps some twice."""
        ...

    async def find(self, order: Order, *, known: Collection[str], pause: Callable[[], Awaitable[None]]) -> str | None:
        """The batch that an order became, if it did: for whoever submitted and does not know. `known`: ids of the job's
        other batches. Where only its results tell whose a batch is, it is waited for, with `pause` in between."""
        ...


class Client(Protocol):
    """What the SDKs' asynchronous clients share."""

    async def get(self, path: str, *, cast_to: type[httpx2.Response], options: Any) -> httpx2.Response: ...
    async def post(
        self,
        path: str,
        *,
        cast_to: type[httpx2.Response],
        options: Any,
        body: Any = ...,
        content: Any = ...,
        files: Any = ...,
    ) -> httpx2.Response: ...


def batches_of(kind: Kind, client: Any, *, via: Via | None = None, base_url: str | None = None) -> Batches | None:
    """Of a provider's own SDK client; None: it has no batch API that we know of."""
    if via is not None:
        return None
    if kind == "anthropic":
        from providers.anthropic_batches import AnthropicBatches

        return AnthropicBatches(client)
    # Servers that speak OpenAI's chat format rarely have its batches.
    if kind == "openai" or (kind == "openai-chat" and (base_url is None or urlsplit(base_url).hostname == _OPENAI)):
        from providers.openai_batches import OpenAIBatches

        return OpenAIBatches(client, "/v1/responses" if kind == "openai" else "/v1/chat/completions")
    return None


async def called(call: Awaitable[T], seconds: float = CALL_S) -> T:
    """One call; its errors in this package's words."""
    failure: ProviderError
    try:
        async with asyncio.timeout(seconds):
            return await call
    except ProviderError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever an SDK raises is a provider's failure
        failure = failures.from_error(error)
    raise failure


def get(client: Client, path: str, **params: Any) -> Awaitable[httpx2.Response]:
    """A small reply, for `read`."""
    return client.get(path, cast_to=httpx2.Response, options={"timeout": CALL_S, "params": params})


async def read(call: Awaitable[httpx2.Response], kind: type[T], seconds: float = CALL_S) -> T:
    """A small reply, as `kind`. Raises `BadAnswer` for another: what was done is then not known."""
    response = await called(call, seconds)
    reply: T | None = None
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        reply = msgspec.json.decode(response.content, type=kind)
    if reply is None:
        raise BadAnswer("the reply is none that a batch API gives")
    return reply


async def lines(client: Client, path: str, most: int) -> AsyncGenerator[bytes]:
    """The lines of a download, as they come; b"" stands for one of more than `MAX_LINE_BYTES`. Blank ones are left out,
    and what lies beyond `most` bytes in all."""
    options = {"timeout": READ_S, "headers": {STREAMED: "stream"}}
    response = await called(client.get(path, cast_to=httpx2.Response, options=options), READ_S)
    response = getattr(response, "http_response", response)
    failure: ProviderError | None = None
    line, total = bytearray(), 0
    try:
        async for chunk in response.aiter_raw():
            total += len(chunk)
            if total > most:
                yield b""
                return
            *ends, rest = chunk.split(b"\n")
            for end in ends:
                line += end
                if line.strip():
                    yield bytes(line) if len(line) <= MAX_LINE_BYTES else b""
                line.clear()
            line += rest
            del line[MAX_LINE_BYTES + 1 :]  # of a line that is too long only its length is remembered
        if line.strip():
            yield bytes(line) if len(line) <= MAX_LINE_BYTES else b""
    except ProviderError:
        raise
    except Exception as error:  # noqa: BLE001
        failure = failures.from_error(error)
    finally:
        await response.aclose()
    if failure is not None:
        raise failure
