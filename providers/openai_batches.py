"""OpenAI Batch: a file of requests, a batch that names it, files of results and of errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing, suppress
from typing import Any, Literal

import httpx2
import msgspec

from providers.batches import (
    CALL_S,
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
from providers.types import ProviderError

#: Whose a batch is, in its metadata.
_JOB, _PART = "crossover_job", "crossover_part"
_PAGE = 20  # with all metadata that each may have, a page stays small
_STATES: dict[str, Literal["running", "ended", "failed"]] = {
    "validating": "running",
    "in_progress": "running",
    "finalizing": "running",
    "cancelling": "running",
    "completed": "ended",
    "expired": "ended",
    "cancelled": "ended",
    "failed": "failed",
}


class _File(msgspec.Struct, frozen=True):
    id: str


class _Counts(msgspec.Struct, frozen=True):
    total: int = 0
    completed: int = 0
    failed: int = 0


class _Error(msgspec.Struct, frozen=True):
    code: str | None = None


class _Errors(msgspec.Struct, frozen=True):
    data: list[_Error] | None = None


class _Batch(msgspec.Struct, frozen=True):
    id: str
    status: str
    created_at: float = 0.0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: _Errors | None = None
    request_counts: _Counts | None = None
    metadata: dict[str, str] | None = None


class _Page(msgspec.Struct, frozen=True):
    data: list[_Batch]
    has_more: bool = False


class _Response(msgspec.Struct, frozen=True):
    status_code: int
    body: msgspec.Raw = msgspec.Raw()


class _Line(msgspec.Struct, frozen=True):
    custom_id: str
    response: _Response | None = None
    error: _Error | None = None


class _Said(msgspec.Struct, frozen=True):
    """What an error's body says."""

    error: _Error | None = None


_decoder = msgspec.json.Decoder(_Line)


class OpenAIBatches:
    """Implements `Batches`. `endpoint`: "/v1/responses" or "/v1/chat/completions"."""

    max_requests = 50_000
    max_bytes = 64 * 1024 * 1024  # of their 200 MB: a part is held in memory

    def __init__(self, client: Client, endpoint: str) -> None:
        self._client = client
        self._endpoint = endpoint

    def line(self, custom_id: str, body: dict[str, Any]) -> bytes:
        body = {name: value for name, value in body.items() if name != "service_tier"}  # a batch is a tier of its own
        return msgspec.json.encode({"custom_id": custom_id, "method": "POST", "url": self._endpoint, "body": body})

    async def submit(self, order: Order, lines: Sequence[bytes]) -> str:
        """A file that was uploaded for nothing costs nothing; it is theirs for 30 days."""
        file = await self._upload(f"crossover-{order.job}-{order.part}.jsonl", b"\n".join(lines))
        body = {
            "input_file_id": file,
            "endpoint": self._endpoint,
            "completion_window": "24h",
            "metadata": {_JOB: order.job, _PART: str(order.part)},
        }
        call = self._client.post("/batches", cast_to=httpx2.Response, body=body, options={"timeout": CALL_S})
        return (await read(call, _Batch)).id

    async def _upload(self, name: str, content: bytes) -> str:
        options = {"timeout": UPLOAD_S, "headers": {"Content-Type": "multipart/form-data"}}
        call = self._client.post(
            "/files",
            cast_to=httpx2.Response,
            body={"purpose": "batch"},
            files=[("file", (name, content, "application/jsonl"))],
            options=options,
        )
        failure: ProviderError
        try:
            return (await read(call, _File, UPLOAD_S)).id
        except ProviderError as error:
            failure = error
        failure.billed = "no"  # a file alone is no batch
        raise failure

    async def progress(self, batch_id: str) -> Progress:
        batch = await self._batch(batch_id)
        counts = batch.request_counts or _Counts()
        errors = batch.errors.data if batch.errors else None
        return Progress(
            _STATES.get(batch.status, "running"),
            counts.completed + counts.failed,
            counts.total,
            rest=batch.status if batch.status in ("expired", "cancelled") else "",
            error=name_of(errors[0].code) if errors else "",
        )

    async def results(self, order: Order, batch_id: str) -> AsyncGenerator[Result]:
        batch = await self._batch(batch_id)
        for file in (batch.output_file_id, batch.error_file_id):
            if not file:
                continue
            found = lines(self._client, f"/files/{file}/content", (order.count + 100) * MAX_LINE_BYTES)
            async with aclosing(found):
                async for line in found:
                    yield _result(line)

    async def find(self, order: Order, *, known: Collection[str], pause: Callable[[], Awaitable[None]]) -> str | None:  # noqa: ARG002 - the metadata tells at once
        after: dict[str, str] = {}
        while True:
            page = await read(get(self._client, "/batches", limit=_PAGE, **after), _Page)
            for batch in page.data:  # the newest first
                if batch.created_at < order.at - SKEW_S:
                    return None
                ours = batch.metadata is not None and (
                    (batch.metadata.get(_JOB), batch.metadata.get(_PART)) == (order.job, str(order.part))
                )
                # One that failed whole did nothing; the order may be submitted anew.
                if ours and batch.id not in known and batch.status != "failed":
                    return batch.id
            if not page.has_more or not page.data:
                return None
            after = {"after": page.data[-1].id}

    async def _batch(self, batch_id: str) -> _Batch:
        return await read(get(self._client, f"/batches/{batch_id}"), _Batch)


def _result(line: bytes) -> Result:
    try:
        found = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Result(error="unreadable")
    response = found.response
    if response is not None and response.status_code == 200:
        # Without a body it is a reply that says nothing, which is billed.
        return Result(found.custom_id, bytes(response.body))
    said = found.error
    if said is None and response is not None:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            said = msgspec.json.decode(response.body, type=_Said).error
    return Result(found.custom_id, None, (name_of(said.code) if said else "") or "failed")
