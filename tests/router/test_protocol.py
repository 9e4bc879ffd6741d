"""What uvicorn does not bound: the head of a request, in bytes and in seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn

from router.http import protocol
from router.http.protocol import BoundedProtocol

HEAD = b"GET / HTTP/1.1\r\nhost: localhost\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    while scope["type"] == "http" and (await receive()).get("more_body"):
        pass
    if scope["path"] == "/slow":
        await asyncio.sleep(0.5)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def with_server(scenario: Callable[[int], Awaitable[None]]) -> None:
    async def main() -> None:
        config = uvicorn.Config(
            app, port=0, http=BoundedProtocol, lifespan="off", log_config=None, access_log=False, timeout_keep_alive=60
        )
        server = uvicorn.Server(config)
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        try:
            port = server.servers[0].sockets[0].getsockname()[1]
            async with asyncio.timeout(30):
                await scenario(port)
        finally:
            await server.shutdown()

    asyncio.run(main())


async def exchange(port: int, *sent: bytes, last: bool = True) -> bytes:
    """Everything that comes back until the connection closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for data in sent:
        writer.write(data)
        await writer.drain()
    received = await reader.read()
    writer.close()
    await writer.wait_closed()
    return received


def test_a_slow_head_is_answered_and_closed_an_idle_connection_just_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """408 for whoever began; silence for whoever only connected ahead of need."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)

    async def scenario(port: int) -> None:
        assert (await exchange(port, HEAD)).startswith(b"HTTP/1.1 408 ")
        assert await exchange(port) == b""

    with_server(scenario)


def test_between_requests_of_one_connection_no_head_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time counts from a request's first byte; a kept connection may rest."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)

    async def scenario(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(HEAD + b"\r\n")
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.5)  # longer than a head may take
        writer.close()
        await writer.wait_closed()

    with_server(scenario)


def test_large_bodies_and_pipelined_requests_are_no_large_heads() -> None:
    """Only what belongs to a head that is not complete counts."""

    async def scenario(port: int) -> None:
        big = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 300000\r\n\r\n" + b"a" * 300_000
        received = await exchange(port, big + HEAD, b"\r\n" + big + HEAD + b"connection: close\r\n\r\n")
        assert received.count(b"HTTP/1.1 200") == 4
        assert b" 431 " not in received

    with_server(scenario)


def test_what_is_wrong_behind_a_running_request_does_not_take_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer comes, then the connection closes: no 408, 431 or 400 in its place."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)
    slow = HEAD.replace(b"GET /", b"GET /slow") + b"\r\n"

    async def scenario(port: int) -> None:
        for behind in (b"GET /x HT", b"x" * 10 + b"\r\n\r\n", HEAD + b"x-big: " + b"a" * 200_000):
            received = await exchange(port, slow, behind)
            assert received.startswith(b"HTTP/1.1 200"), (behind[:20], received)
            assert received.endswith(b"ok")
            assert received.count(b"HTTP/1.1") == 1

    with_server(scenario)
