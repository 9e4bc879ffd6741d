"""`POST /v1/classify`, the hot path: one ASGI handler inside the Litestar app (measured at 2.3 times a native route).

What a native route would do is done here by hand: method, authorisation, media type, limits, schema, problems. Its
operation in the OpenAPI document is in `router.http.openapi`; tests hold both to each other.
"""

from __future__ import annotations

import asyncio
import random
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, TypedDict, cast

import msgspec
from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import HTTPScope, Receive, Scope, Send

from router import admission, outcome
from router.http.errors import MEDIA_TYPE, as_problem, problem_headers
from router.http.protocol import BODY_ARRIVED
from router.logs import log_request
from router.outcome import Outcome
from router.problems import ProblemError
from router.service import Service
from router.types import ClassifyRequest, ClassifyResponse, Failed


class Wishes(TypedDict, total=False):
    """Arguments of `Service.ask`."""

    deadline_ms: int
    read_cache: bool
    write_cache: bool


CALLERS_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_decode = msgspec.json.Decoder(ClassifyRequest).decode
_encode = msgspec.json.Encoder().encode


def classify_handler(service: Service) -> ASGIRouteHandler:
    """The handler, bound to its service."""

    door = service.door
    new_id = request_ids()
    answers = lru_cache(maxsize=32)(lambda status: service.telemetry.requests.labels(str(status)))

    @asgi("/v1/classify", is_mount=False, copy_scope=False)
    async def classify(scope: Scope, receive: Receive, send: Send) -> None:
        started_ns = time.perf_counter_ns()
        http = cast("HTTPScope", scope)
        request_id = new_id()
        headers = admission.unique_headers(scope["headers"])
        outcomes: list[Outcome] = []
        fields: dict[str, Any] = {}
        more: list[tuple[bytes, bytes]] = []
        try:
            if http["method"] != "POST":
                raise ProblemError("method-not-allowed", "POST a JSON body")
            tenant = door.identify(headers)
            fields["tenant"] = tenant.name
            admission.check_media_type(headers)
            pipeline = service.pipeline
            arrived = BODY_ARRIVED in (http.get("extensions") or ())
            body = await door.body(receive, headers, tenant.name, arrived=arrived)
            door.slots.take(tenant.name)
            try:
                request = decode(body)
                ask = service.ask(request, tenant, request_id, started_ns, **wishes(headers))
                fields["task"] = ask.task.info.name
                outcomes = await pipeline.classify(ask)
            finally:
                door.slots.leave(tenant.name)
            total_us = (time.perf_counter_ns() - started_ns) // 1000
            service.telemetry.answered(ask.task.info.name, outcomes, total_us / 1e6)
            results = [outcome.to_wire(o, total_us=total_us, top_k=request.top_k) for o in outcomes]
            if isinstance(results[0], Failed) and all(isinstance(result, Failed) for result in results):
                raise_whole(results[0], outcome.retry_after_s(outcomes[0], time.time()))
            status, payload = 200, _encode(ClassifyResponse(request_id, ask.task.info.name, results))
            media_type = b"application/json"
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - a problem, never a dropped connection
            problem = as_problem(error)
            status, payload, media_type = problem.status, _encode(problem.problem()), MEDIA_TYPE.encode()
            more = [(name.lower().encode(), value.encode()) for name, value in problem_headers(problem).items()]
            fields["problem"] = problem.kind
            if problem.kind in admission.HELD:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(random.uniform(*admission.HOLD_S))
            if not outcomes or problem.kind == "internal":  # else each input's was counted
                service.telemetry.errors.labels(problem.kind).inc()
        shown_id = request_id.encode()
        callers_id = headers.get(b"x-request-id")
        if callers_id is not None and CALLERS_ID.fullmatch(callers_id):
            shown_id, fields["caller_id"] = callers_id, callers_id.decode()
        head = [
            (b"content-type", media_type),
            (b"content-length", b"%d" % len(payload)),
            (b"x-request-id", shown_id),
            *more,
        ]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": payload, "more_body": False})
        answers(status).inc()
        took_ms = (time.perf_counter_ns() - started_ns) // 1000 / 1000
        log_request(outcomes, id=request_id, status=status, total_ms=took_ms, **fields)

    return classify


def request_ids() -> Callable[[], str]:
    """`req_` and 24 hexadecimal digits: 12 of the time in milliseconds, 12 at random. They are the ledger's key, and
    new rows then go where the newest are; random ones would touch a page of its index each."""
    digits = random.Random(secrets.token_bytes(16))  # unique, not secret; the system's own gives up the GIL

    def new_id() -> str:
        return f"req_{time.time_ns() // 1_000_000:012x}{digits.getrandbits(48):012x}"

    return new_id


def decode(body: bytes) -> ClassifyRequest:
    """Raises `malformed` (not JSON) or `invalid` (other JSON). msgspec's messages name fields, never values."""
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        raise ProblemError("invalid", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail = str(error) if isinstance(error, msgspec.DecodeError) else "invalid UTF-8, or nested too deeply"
        raise ProblemError("malformed", detail) from None


def wishes(headers: dict[bytes, bytes]) -> Wishes:
    """What the headers ask for. Raises `invalid`."""
    found: Wishes = {}
    asked_ms = headers.get(b"x-deadline-ms", b"")
    if asked_ms:
        if not asked_ms.isdigit() or len(asked_ms) > 9:
            raise ProblemError("invalid", "X-Deadline-Ms: a whole number of milliseconds")
        found["deadline_ms"] = int(asked_ms)
    if cache_control := headers.get(b"cache-control"):
        directives = {part.strip() for part in cache_control.lower().split(b",")}
        found["read_cache"] = not directives & {b"no-cache", b"no-store"}
        found["write_cache"] = b"no-store" not in directives
    return found


def raise_whole(first: Failed, retry_after: float) -> None:
    """No input succeeded: the first error is the request's."""
    kind = first.error.type.rsplit(":", 1)[-1]
    raise ProblemError(kind, first.error.detail, retry_after=retry_after if first.error.status in (429, 503) else None)
