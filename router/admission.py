"""The front door: who may come in, before the body is parsed. Everything here is in memory and takes microseconds.

In this order: key → the tenant's rate → media type → a place for the body while it arrives → a slot while it is inside.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from providers.addresses import is_loopback
from router.config import LOCAL_TENANT, Config, Escalate
from router.problems import ProblemError
from router.rates import Rates

Receive = Callable[[], Awaitable[Any]]
Headers = Mapping[bytes, bytes]

#: Bodies that may be on their way at once, for each request that may be inside: a slow one holds no slot.
BODIES_PER_SLOT = 8
#: Bytes that bodies on their way may hold together, all of them (or one, where one may be larger).
BODY_BYTES = 64 * 1024 * 1024
#: Seconds that who has no key, or is over its rate, waits for the refusal, from and to: less than any Retry-After, and
#: not all equally long, or they would all be back at once. Thousands of refusals a second, to callers who ask again at
#: once, would take the event loop from all others.
HOLD_S = (0.25, 1.0)
HELD = ("unauthorized", "rate")


class Tenant(msgspec.Struct, frozen=True):
    name: str
    escalate: Escalate = "auto"


class FrontDoor:
    """Keys, rates and places of one process. `rates` is a file that all workers on this machine count rates in, made
    anew when the service starts; without it this process counts alone."""

    def __init__(self, config: Config, *, rates: Path | None = None) -> None:
        self.keys = Keys()
        self.rates = Rates(rates)
        self.slots = Places("requests (server.max_concurrent)")
        self.bodies, self.body_bytes = Places("bodies on their way"), Places("bytes of bodies on their way")
        self.reload(config)

    def reload(self, config: Config) -> None:
        """From now on the keys, rates and sizes of `config`. Who is inside stays inside, and counted."""
        auth, server = config.auth, config.server
        self.keys.load([(key.sha256, Tenant(key.tenant, key.escalate)) for key in auth.keys], auth.admin)
        self.rates.load(auth.limits)
        shared = len({key.tenant for key in auth.keys}) > 1
        self.slots.resize(server.max_concurrent, shared=shared)
        self.bodies.resize(BODIES_PER_SLOT * server.max_concurrent, shared=shared)
        self.body_bytes.resize(max(BODY_BYTES, (2 if shared else 1) * server.max_body_bytes), shared=shared)
        self._body_limit = server.max_body_bytes
        self._body_seconds = server.body_deadline_ms / 1000

    def identify(self, headers: Headers) -> Tenant:
        """The tenant, by its key; one more of its requests. Raises `unauthorized` or `rate`."""
        tenant = self.keys.tenant(headers)
        self.rates.spend(tenant.name)
        return tenant

    async def body(self, receive: Receive, headers: Headers, tenant: str, *, arrived: bool) -> bytes:
        """The body, at most max_body_bytes, within its deadline (uvicorn itself waits forever). `arrived`: all of it is
        there, so that no time needs to be kept. Raises `too-large`, `slow-body`, `overloaded` or `malformed`."""
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and (len(declared) > 18 or int(declared) > self._body_limit):
            raise self._too_large()
        if arrived:
            return await self._read(receive, tenant)
        self.bodies.take(tenant)
        try:
            async with asyncio.timeout(self._body_seconds):
                return await self._read(receive, tenant)
        except TimeoutError:
            raise ProblemError("slow-body", f"the body must arrive within {self._body_seconds:g} s") from None
        finally:
            self.bodies.leave(tenant)

    async def _read(self, receive: Receive, tenant: str) -> bytes:
        chunks: list[bytes] = []
        size = held = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ProblemError("malformed", "the connection ended before the body did")
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                if size > self._body_limit:
                    raise self._too_large()
                if not message.get("more_body", False):
                    return b"".join([*chunks, chunk]) if chunks else chunk
                self.body_bytes.take(tenant, len(chunk))
                held += len(chunk)
                chunks.append(chunk)
        finally:
            if held:
                self.body_bytes.leave(tenant, held)

    def _too_large(self) -> ProblemError:
        return ProblemError("too-large", f"the body may have {self._body_limit} bytes (server.max_body_bytes)")


# keys -----------------------------------------------------------------------------------------------------------------


class Keys:
    """API keys, kept as SHA-256 (they are long and random: a slow hash would add nothing). They are found by hash in a
    table whose own hash is keyed: the time it takes says nothing of how much of a wrong key is right."""

    def __init__(self) -> None:
        self._tenants: dict[bytes, Tenant] = {}
        self._admin: frozenset[bytes] = frozenset()

    def load(self, tenants: Iterable[tuple[str, Tenant]], admin: Iterable[str]) -> None:
        """Keys as hexadecimal SHA-256. What was there before is revoked."""
        self._tenants = {bytes.fromhex(key): tenant for key, tenant in tenants}
        self._admin = frozenset(bytes.fromhex(key) for key in admin)

    def tenant(self, headers: Headers) -> Tenant:
        """Raises `unauthorized`."""
        if not self._tenants:
            check_host(headers)
            return Tenant(LOCAL_TENANT)
        found = self._tenants.get(hashlib.sha256(presented_key(headers)).digest())
        if found is None:
            raise ProblemError(
                "unauthorized", "send a configured key as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
            )
        return found

    def admin(self, headers: Headers) -> None:
        """Raises `unauthorized`, unless no key of any kind is configured (then only this machine can connect)."""
        if not self._admin and not self._tenants:
            check_host(headers)
        elif hashlib.sha256(presented_key(headers)).digest() not in self._admin:
            raise ProblemError("unauthorized", "this needs a key of [auth] admin")


def presented_key(headers: Headers) -> bytes:
    """The key in `Authorization: Bearer` or `X-API-Key`; empty if there is none."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and key:
        return key.strip()
    return headers.get(b"x-api-key", b"")


def check_host(headers: Headers) -> None:
    """Without keys, whoever reaches the socket is let in. A web page whose name was made to lead here (DNS rebinding)
    is kept out by that name."""
    if not _is_here(headers.get(b"host", b"")):
        raise ProblemError(
            "unauthorized", "without configured keys only requests to localhost or 127.0.0.1 are answered"
        )


@lru_cache(maxsize=64)
def _is_here(header: bytes) -> bool:
    host = header.decode("latin-1") or "localhost"
    name, colon, port = host.rpartition(":")
    return is_loopback(name if colon and (port.isdigit() or not port) else host)


# places ---------------------------------------------------------------------------------------------------------------


class Places:
    """What all requests draw on, counted. No queue: who finds no room is told so at once. Where there are several
    tenants, one gets half at most."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._all = self._share = 0
        self._taken = 0
        self._by_tenant: dict[str, int] = {}

    def resize(self, places: int, *, shared: bool) -> None:
        self._all, self._share = places, max(1, places // 2) if shared else places

    def take(self, tenant: str, count: int = 1) -> None:
        """Raises `overloaded`."""
        mine = self._by_tenant.get(tenant, 0) + count
        if self._taken + count > self._all:
            raise ProblemError("overloaded", f"there is no room for more {self._what} now", retry_after=1.0)
        if mine > self._share:
            raise ProblemError("overloaded", f"{tenant} has its half of all {self._what} now", retry_after=1.0)
        self._taken += count
        self._by_tenant[tenant] = mine

    def leave(self, tenant: str, count: int = 1) -> None:
        self._taken -= count
        left = self._by_tenant.get(tenant, 0) - count
        if left:
            self._by_tenant[tenant] = left
        else:
            self._by_tenant.pop(tenant, None)


def check_media_type(headers: Headers) -> None:
    content_type = headers.get(b"content-type", b"")
    if content_type != b"application/json" and content_type.split(b";")[0].strip().lower() != b"application/json":
        raise ProblemError("unsupported-media-type", "send `Content-Type: application/json`")
    if headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
        raise ProblemError("unsupported-media-type", "send the body without Content-Encoding")


def unique_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Names are lower case already (ASGI); the last of a repeated one wins."""
    return dict(headers)
