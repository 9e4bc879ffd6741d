"""What uvicorn does not bound, and that each request of a connection gets its own answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
import uvloop

from router.http import protocol
from router.http.protocol import BoundedProtocol

HEAD = b"GET / HTTP/1.1\r\nhost: localhost\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Says ok; /no refuses without reading; /slow takes its time; /echo/... says its path."""
    status, body = 200, b"ok"
    if scope["path"] == "/no":
        status, body = 429, b"no"
    else:
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.disconnect":
            return
    if scope["path"] == "/slow":
        await asyncio.sleep(0.5)
    elif scope["path"].startswith("/echo"):
        body = scope["path"].encode()
    head = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def with_server(scenario: Callable[[int], Awaitable[None]], keep_alive: int = 60) -> None:
    async def main() -> None:
        config = uvicorn.Config(
            app,
            port=0,
            http=BoundedProtocol,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=keep_alive,
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

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as in service: others forgive more
        runner.run(main())


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


# an answer before the body came ---------------------------------------------------------------------------------------

REFUSED = b"POST /no HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n"
CHUNKED = b"POST /no HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"


def echo(number: int, *, last: bool = False) -> bytes:
    close = b"connection: close\r\n" if last else b""
    return b"GET /echo/%d HTTP/1.1\r\nhost: localhost\r\n%s\r\n" % (number, close)


def bodies(received: bytes) -> list[bytes]:
    """What the answers in `received` say, in order."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        found.append(rest[:length])
        received = rest[length:]
    return found


@pytest.mark.parametrize("refused", [REFUSED + b"a" * 100_000, CHUNKED + b"5\r\nhello\r\n" * 9 + b"0\r\n\r\n"])
def test_after_a_refusal_the_next_request_gets_its_own_answer(refused: bytes) -> None:
    """Sent all at once, or the body only after the refusal was read, in pieces that end anywhere."""

    async def scenario(port: int) -> None:
        at_once = await exchange(port, refused + echo(1) + refused + echo(2, last=True))
        assert bodies(at_once) == [b"no", b"/echo/1", b"no", b"/echo/2"]

        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(3):
            head, body = refused.split(b"\r\n\r\n", 1)
            writer.write(head + b"\r\n\r\n")
            await reader.readuntil(b"\r\n\r\nno")
            behind = body + echo(number)
            middle = len(body) // 2 + number
            for piece in (behind[:middle], behind[middle:-5], behind[-5:]):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
            await reader.readuntil(b"\r\n\r\n/echo/%d" % number)
        writer.close()
        await writer.wait_closed()

    with_server(scenario)


def test_the_body_of_a_refused_request_is_waited_for_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds, however it trickles, and in bytes; then the connection closes, and nothing is said twice."""
    monkeypatch.setattr(protocol, "UNREAD_SECONDS", 0.3)
    monkeypatch.setattr(protocol, "UNREAD_BYTES", 1_000_000)

    async def scenario(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REFUSED)
        received = asyncio.create_task(reader.read())
        while not received.done():  # for as long as it lets us
            writer.write(b"a")
            await asyncio.sleep(0.05)
        assert bodies(await received) == [b"no"]
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CHUNKED)
        assert await reader.readuntil(b"no")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"2710\r\n" + b"a" * 10_000 + b"\r\n")
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    with_server(scenario)


def test_a_client_that_asked_first_is_told_to_connect_anew() -> None:
    """`Expect: 100-continue` and a refusal: whether the body follows, nobody can know."""

    async def scenario(port: int) -> None:
        asking = REFUSED.replace(b"\r\n\r\n", b"\r\nexpect: 100-continue\r\n\r\n")
        assert bodies(await exchange(port, asking)) == [b"no"]

    with_server(scenario)


def test_a_connection_at_rest_is_closed_whatever_it_did_before() -> None:
    """Also after a body that came late, and after stray line ends."""

    async def scenario(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REFUSED)
        await reader.readuntil(b"no")
        writer.write(b"a" * 100_000)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert bodies(await exchange(port, echo(1), b"\r\n\r\n")) == [b"/echo/1"]

    with_server(scenario, keep_alive=1)


# whatever is sent -----------------------------------------------------------------------------------------------------


def test_garbage_behind_several_requests_ends_the_connection_after_the_running_one() -> None:
    """And it does end: reading stands still, so nothing else would end it."""

    async def scenario(port: int) -> None:
        slow = HEAD.replace(b"GET /", b"GET /slow") + b"\r\n"
        assert bodies(await exchange(port, slow + echo(1) + b"\x00\x01 garbage\r\n\r\n", b"more garbage")) == [b"ok"]

    with_server(scenario)


def test_a_broken_body_is_told_at_once() -> None:
    """To a request that waits for it: 400, not the deadline of bodies. To one that was answered: nothing more."""
    broken = b"3\r\nabc\r\nXYZ\r\n"

    async def scenario(port: int) -> None:
        reading = CHUNKED.replace(b"/no", b"/")
        received = await exchange(port, reading, broken)
        assert received.startswith(b"HTTP/1.1 400 ")
        assert received.count(b"HTTP/1.1 ") == 1
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CHUNKED)
        await reader.readuntil(b"no")
        writer.write(broken)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    with_server(scenario)


def test_requests_sent_ahead_are_answered_in_order_but_not_without_end() -> None:
    """A hundred are; of a flood that is faster than the answers, the connection closes."""

    async def scenario(port: int) -> None:
        received = await exchange(port, *(echo(n) for n in range(100)), echo(100, last=True))
        assert bodies(received) == [b"/echo/%d" % n for n in range(101)]
        slow = HEAD.replace(b"GET /", b"GET /slow") + b"\r\n"
        with contextlib.suppress(ConnectionError):
            assert bodies(await exchange(port, slow + echo(1) * 4_000)) == [b"ok"]

    with_server(scenario)


def test_who_leaves_with_requests_sent_ahead_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """The answer to the running one has nowhere to go, and that is nobody's error."""

    async def scenario(port: int) -> None:
        slow = HEAD.replace(b"GET /", b"GET /slow") + b"\r\n"
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(slow + echo(1))
        await writer.drain()
        await exchange(port, echo(2, last=True))  # the first is running now
        writer.transport.abort()
        await exchange(port, slow.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))  # and now it is over

    with_server(scenario)
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize("wanted", [b"websocket", b"h2c"])
def test_an_upgrade_is_not_made_and_not_missed(wanted: bytes) -> None:
    """The request is answered as what it is, and so is the next."""
    upgrade = b"connection: upgrade\r\nupgrade: " + wanted + b"\r\nsec-websocket-version: 13\r\n"
    upgrade += b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

    async def scenario(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(echo(1).removesuffix(b"\r\n") + upgrade)
        await reader.readuntil(b"/echo/1")
        writer.write(echo(2, last=True))
        assert bodies(await reader.read()) == [b"/echo/2"]
        writer.close()
        await writer.wait_closed()

    with_server(scenario)
