"""The front door: who may come in, before the body is parsed. Everything here is in memory and takes microseconds."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec

from router.config import Auth, Escalate
from router.config_checks import is_loopback
from router.problems import ProblemError

Receive = Callable[[], Awaitable[Any]]

#: Without configured keys there is one tenant, and only this machine can connect.
LOCAL_TENANT = "local"


class Tenant(msgspec.Struct, frozen=True):
    name: str
    escalate: Escalate = "auto"


class Keys:
    """API keys, kept as SHA-256 (they are long and random: a slow hash would add nothing) and compared in constant
    time, all of them each time."""

    def __init__(self, auth: Auth) -> None:
        self._keys = [(bytes.fromhex(key.sha256), Tenant(key.tenant, key.escalate)) for key in auth.keys]
        self._admin = [bytes.fromhex(key) for key in auth.admin]

    def tenant(self, headers: Mapping[bytes, bytes]) -> Tenant:
        """Raises `unauthorized`."""
        if not self._keys:
            check_host(headers)
            return Tenant(LOCAL_TENANT)
        presented = presented_key(headers)
        found: Tenant | None = None
        hashed = hashlib.sha256(presented).digest()
        for known, tenant in self._keys:
            if hmac.compare_digest(hashed, known):
                found = tenant
        if found is None:
            raise ProblemError(
                "unauthorized", "send a configured key as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
            )
        return found

    def admin(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises `unauthorized`, unless no key of any kind is configured (then only this machine can connect)."""
        if not self._admin and not self._keys:
            check_host(headers)
            return
        hashed = hashlib.sha256(presented_key(headers)).digest()
        if not any([hmac.compare_digest(hashed, known) for known in self._admin]):  # noqa: C419 - all, in constant time
            raise ProblemError("unauthorized", "this needs a key of [auth] admin")


def presented_key(headers: Mapping[bytes, bytes]) -> bytes:
    """The key in `Authorization: Bearer` or `X-API-Key`; empty if there is none."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and key:
        return key.strip()
    return headers.get(b"x-api-key", b"")


def check_host(headers: Mapping[bytes, bytes]) -> None:
    """Without keys, whoever reaches the socket is let in. A web page whose name was made to lead here (DNS rebinding)
    is kept out by that name."""
    host = headers.get(b"host", b"").decode("latin-1") or "localhost"
    name, colon, port = host.rpartition(":")
    if not is_loopback(name if colon and (port.isdigit() or not port) else host):
        raise ProblemError(
            "unauthorized", "without configured keys only requests to localhost or 127.0.0.1 are answered"
        )


class Slots:
    """How many requests may be inside at once. No queue: who finds no slot is told so at once."""

    def __init__(self, limit: int) -> None:
        self._free = limit

    def __enter__(self) -> None:
        if self._free <= 0:
            raise ProblemError("overloaded", "as many requests as server.max_concurrent are inside", retry_after=1.0)
        self._free -= 1

    def __exit__(self, *_: object) -> None:
        self._free += 1


def check_media_type(headers: Mapping[bytes, bytes]) -> None:
    content_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if content_type != b"application/json":
        raise ProblemError("unsupported-media-type", "send `Content-Type: application/json`")
    if headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
        raise ProblemError("unsupported-media-type", "send the body without Content-Encoding")


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], *, limit: int, seconds: float) -> bytes:
    """The body, at most `limit` bytes, within `seconds` (uvicorn itself waits forever)."""
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ProblemError("malformed", "the connection ended before the body did")
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > limit:
                    raise _too_large(limit)
                if not message.get("more_body", False):
                    return b"".join(chunks) if len(chunks) > 1 else chunks[0]
    except TimeoutError:
        raise ProblemError("slow-body", f"the body must arrive within {seconds:g} s") from None


def _too_large(limit: int) -> ProblemError:
    return ProblemError("too-large", f"the body may have {limit} bytes (server.max_body_bytes)")


def unique_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Names are lower case already (ASGI); the last of a repeated one wins."""
    return dict(headers)
