"""Exceptions become `application/problem+json`, for the native routes and the ASGI handler alike."""

from __future__ import annotations

import asyncio
import math
import traceback
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException

from router.problems import ProblemError

MEDIA_TYPE = "application/problem+json"
#: Of every problem of a kind.
HEADERS = {"unauthorized": {"WWW-Authenticate": "Bearer"}, "method-not-allowed": {"Allow": "POST"}}
log = structlog.get_logger("crossover.http")


def problem_headers(error: ProblemError) -> dict[str, str]:
    if error.retry_after is not None:
        return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    return HEADERS.get(error.kind, {})


def as_problem(error: BaseException) -> ProblemError:
    """Whatever was raised, as a problem. Messages of foreign exceptions are not shown: they may hold anything."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return ProblemError("draining", "the service ended before the answer was there", retry_after=1.0)
    if isinstance(error, MethodNotAllowedException):
        return ProblemError("method-not-allowed", "see the Allow header")
    if isinstance(error, NotFoundException):
        return ProblemError("not-found", "the API is described at /schema/openapi.json")
    if isinstance(error, HTTPException) and error.status_code < 500:
        names = [str(item["key"]) for item in error.extra or [] if isinstance(item, dict) and "key" in item]
        return ProblemError("invalid", f"these parameters do not fit: {', '.join(names)}" if names else "see /schema")
    # Where, but not what: a message may hold a text.
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    log.error("unexpected", error=type(error).__name__, where=where)
    return ProblemError("internal", "the log has a line of this; it is not the request's fault")


def handle(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar's exception handler for every exception."""
    problem = as_problem(error)
    headers = problem_headers(problem)
    if isinstance(error, MethodNotAllowedException) and error.headers:
        headers = headers | {"Allow": error.headers.get("Allow", "GET")}
    return Response(
        msgspec.json.encode(problem.problem()), status_code=problem.status, media_type=MEDIA_TYPE, headers=headers
    )
