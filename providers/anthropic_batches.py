"""Anthropic Message Batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, Literal

import httpx2
import msgspec

from providers.batches import (
    MAX_LINE_BYTES,
    SKEW_S,
    UPLOAD_S,
    Client,
    Order,
    Progress,
    Result,
    get,
    lines,
    read,
)
from providers.parse import name_of

_PATH = "/v1/messages/batches"
_PAGE = 100


class _Counts(msgspec.Struct, frozen=True):
    processing: int = 0
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0

    @property
    def total(self) -> int:
        return sum(msgspec.structs.astuple(self))


class _Batch(msgspec.Struct, frozen=True):
    id: str
    processing_status: Literal["in_progress", "canceling", "ended"]
    request_counts: _Counts
    created_at: datetime


class _Page(msgspec.Struct, frozen=True):
    data: list[_Batch]
    has_more: bool = False


class _Error(msgspec.Struct, frozen=True):
    type: str = ""
    error: Any = None


class _Ended(msgspec.Struct, frozen=True):
    type: Literal["succeeded", "errored", "canceled", "expired"]
    message: msgspec.Raw = msgspec.Raw()
    error: _Error | None = None


class _Line(msgspec.Struct, frozen=True):
    custom_id: str
    result: _Ended


_decoder = msgspec.json.Decoder(_Line)


class AnthropicBatches:
    """Implements `Batches`. A batch has no name of ours: whose it is, only the ids in its results tell."""

    max_requests = 100_000
    max_bytes = 64 * 1024 * 1024  # of their 256 MB: a part is held in memory

    def __init__(self, client: Client) -> None:
        self._client = client

    def line(self, custom_id: str, body: dict[str, Any]) -> bytes:
        body = {name: value for name, value in body.items() if name != "service_tier"}  # a batch is a tier of its own
        return msgspec.json.encode({"custom_id": custom_id, "params": body})

    async def submit(self, order: Order, lines: Sequence[bytes]) -> str:  # noqa: ARG002 - it takes no name
        content = b'{"requests":[' + b",".join(lines) + b"]}"
        call = self._client.post(_PATH, cast_to=httpx2.Response, content=content, options={"timeout": UPLOAD_S})
        return (await read(call, _Batch, UPLOAD_S)).id

    async def progress(self, batch_id: str) -> Progress:
        batch = await read(get(self._client, f"{_PATH}/{batch_id}"), _Batch)
        counts = batch.request_counts
        state: Literal["running", "ended"] = "ended" if batch.processing_status == "ended" else "running"
        return Progress(state, counts.total - counts.processing, counts.total)

    async def results(self, order: Order, batch_id: str) -> AsyncGenerator[Result]:
        # Not their `results_url`: the key goes to the configured host only.
        found = lines(self._client, f"{_PATH}/{batch_id}/results", (order.count + 100) * MAX_LINE_BYTES)
        async with aclosing(found):
            async for line in found:
                yield _result(line)

    async def find(self, order: Order, *, known: Collection[str], pause: Callable[[], Awaitable[None]]) -> str | None:
        after: dict[str, str] = {}
        while True:
            page = await read(get(self._client, _PATH, limit=_PAGE, **after), _Page)
            for batch in page.data:  # the newest first
                if batch.created_at.timestamp() < order.at - SKEW_S:
                    return None
                alike = batch.id not in known and batch.request_counts.total == order.count
                if alike and await self._is(order, batch.id, pause):
                    return batch.id
            if not page.has_more or not page.data:
                return None
            after = {"after_id": page.data[-1].id}

    async def _is(self, order: Order, batch_id: str, pause: Callable[[], Awaitable[None]]) -> bool:
        while (await self.progress(batch_id)).state == "running":
            await pause()
        results = self.results(order, batch_id)
        async with aclosing(results):
            async for result in results:
                if result.id:
                    return order.question(result.id) is not None
        return False


def _result(line: bytes) -> Result:
    try:
        found = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Result(error="unreadable")
    if found.result.type == "succeeded":
        # Without a message it is a reply that says nothing, which is billed.
        return Result(found.custom_id, bytes(found.result.message))
    inner = found.result.error.error if found.result.error else None
    why = name_of(inner.get("type")) if isinstance(inner, dict) else ""
    return Result(found.custom_id, None, why or found.result.type)
