"""/v1/cache: what `crossover cache` does, for the holder of an admin key (without any keys: for this machine). A text
comes in a body, never in a URL, and leaves in no log."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, cast

import msgspec
import structlog
from litestar import Request, Router, get, post
from litestar.connection import ASGIConnection
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.handlers.base import BaseRouteHandler
from litestar.params import FromQuery, JSONBody, QueryParameter
from litestar.types import HTTPScope
from msgspec import Meta

from router import paths
from router.admission import check_media_type, presented_key, unique_headers
from router.cache.inspect import InspectError, Selection, connected, page
from router.cache.overview import By, EntryView, Overview, explained, overview, views
from router.cache.purge import Purge, audited, plan
from router.config import Name
from router.http.errors import handle
from router.http.ops import problems
from router.problems import ProblemError
from router.service import Service

log = structlog.get_logger("crossover.cache")

#: SCAN steps for one page: what is rare is looked for over several requests.
STEPS_A_PAGE = 40
Digest = Annotated[
    str, Meta(pattern=r"^[0-9a-f]{32}$", description="A text's digest, as it stands in keys and ledger.")
]
Source = Literal["local", "frontier"]
#: Of a query. Litestar heeds its own constraints there, msgspec's in bodies.
OneOf = Annotated[str | None, QueryParameter(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")]


class EntryRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`text` (of any tenant, or of `tenant`) or `digest`."""

    text: str | None = None
    digest: Digest | None = None
    tenant: Name | None = None
    task: Name | None = None


class EntryResponse(msgspec.Struct, frozen=True):
    hit: Annotated[bool, Meta(description="Whether a request would be answered from one of these now.")]
    entries: list[EntryView]


class Page(msgspec.Struct, frozen=True):
    entries: list[EntryView]
    cursor: Annotated[str | None, Meta(description="For the next page, which may be empty; null: this was the last.")]


class PurgeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all of `task`, `source`, `tenant` and `text` say; `all` where none of them is given. Without `yes`, nothing
    is removed: the answer says what would be."""

    task: Name | None = None
    source: Source | None = None
    tenant: Name | None = None
    text: str | None = None
    all: bool = False
    yes: bool = False


def cache_router(service: Service) -> Router:
    """The routes, bound to their service."""

    async def admin_only(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        """Before the body is read. The media type keeps out what a web page could send without asking."""
        headers = unique_headers(connection.scope["headers"])
        service.door.keys.admin(headers)
        if cast("HTTPScope", connection.scope)["method"] == "POST":
            check_media_type(headers)

    @contextmanager
    def opened() -> Iterator[Any]:
        if service.config.cache.url == "off":
            raise ProblemError("not-found", 'there is no cache: cache.url is "off"')
        try:
            with connected(service.redis_url) as client:
                yield client
        except InspectError as error:
            raise ProblemError("cache-unavailable", str(error), retry_after=2.0) from None

    @get("/stats", sync_to_thread=True, responses=problems(401, 404, 422, 503), summary="Sizes, life times, hit ratios")
    def stats(by: FromQuery[By] = "hour", hours: Annotated[int, QueryParameter(ge=1, le=24 * 366)] = 24) -> Overview:
        with opened() as client:
            return overview(client, service.secret, service.ledger_path, by=by, since=time.time() - hours * 3600)

    @get("/entries", sync_to_thread=True, responses=problems(401, 404, 422, 503), summary="Entries, in pages")
    def entries(
        tenant: OneOf = None,
        task: OneOf = None,
        source: FromQuery[Source | None] = None,
        cursor: Annotated[str, QueryParameter(pattern=r"^[0-9]{1,19}$")] = "0",
        limit: Annotated[int, QueryParameter(ge=1, le=1000, description="A page may hold some more.")] = 100,
    ) -> Page:
        with opened() as client:
            wanted = Selection(tenant, task, source)
            following, found = page(client, service.secret, wanted, int(cursor), limit=limit, steps=STEPS_A_PAGE)
        return Page(views(found, service.ledger_path), str(following) if following else None)

    @post(
        "/entry",
        sync_to_thread=True,
        status_code=200,
        responses=problems(401, 404, 413, 415, 422, 503),
        summary="What is kept of one text, and why it is a hit or a miss",
    )
    def entry(data: JSONBody[EntryRequest]) -> EntryResponse:
        if (data.text is None) == (data.digest is None):
            raise ProblemError("invalid", "give either `text` or `digest`")
        with opened() as client:
            wanted = Selection(data.tenant, data.task, None, data.text, data.digest)
            found = explained(client, service.secret, wanted)
        return EntryResponse(any(not item.differs for item in found), found)

    @post(
        "/purge",
        sync_to_thread=True,
        status_code=200,
        responses=problems(401, 404, 413, 415, 422, 503),
        summary="Remove entries everywhere; a dry run unless `yes`",
    )
    def purge(request: Request[Any, Any, Any], data: JSONBody[PurgeRequest]) -> Purge:
        wanted = Selection(data.tenant, data.task, data.source, data.text)
        if data.all != (wanted == Selection()):
            raise ProblemError("invalid", "give at least one of `task`, `source`, `tenant` and `text`, or else `all`")
        with opened() as client:
            if not data.yes:
                return plan(client, service.secret, wanted)
            who = admin_of(request)
            done = audited(client, service.secret, wanted, who=who, state_dir=paths.state_dir())
        log.info(
            "cache_purged",
            who=who,
            **{name: getattr(data, name) for name in ("task", "source", "tenant")},
            by_text=data.text is not None,
            entries=done.entries,
            paid_usd=done.paid_usd,
            unconfirmed=done.unconfirmed,
        )
        return done

    return Router(
        "/v1/cache",
        route_handlers=[stats, entries, entry, purge],
        guards=[admin_only],
        request_max_body_size=service.config.server.max_body_bytes,
        exception_handlers={
            UnicodeDecodeError: malformed,
            RecursionError: malformed,
            RequestEntityTooLarge: too_large,
        },
    )


def malformed(request: Request[Any, Any, Any], _: Exception) -> Any:
    """Of a body (Litestar makes these a 500)."""
    return handle(request, ProblemError("invalid", "the body is invalid UTF-8, or nested too deeply"))


def too_large(request: Request[Any, Any, Any], _: Exception) -> Any:
    return handle(request, ProblemError("too-large", "the body is larger than server.max_body_bytes"))


def admin_of(request: Request[Any, Any, Any]) -> str:
    """Whose key it was, for logs: never the key."""
    key = presented_key(unique_headers(request.scope["headers"]))
    return f"admin:{hashlib.sha256(key).hexdigest()[:8]}" if key else "admin:local"
