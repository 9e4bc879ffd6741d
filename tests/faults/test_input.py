"""Whatever arrives on the socket: an answer below 500 or a closed connection, and the next caller notices nothing."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import psutil

SEED = 20_261_121
REQUESTS = 10_000
WARM_UP = 2_000
AT_ONCE = 64
#: Seconds without a byte after which a connection has nothing more to say. Those are a few of a hundred.
SILENCE_S = 0.1
#: What caches and buffers may take while the other requests come.
GROWTH_BYTES = 32 * 1024 * 1024
LENGTH = re.compile(rb"(?<=content-length: )\d+")
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")

BODY = b'{"input": "I lost my card"}'
HEAD = b"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
VALID = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
BATCH = b'{"input": ["a", "", "\\u0000", "' + b"word " * 900 + b'"], "top_k": 3}'
SEEDS = [
    VALID,
    CHUNKED,
    HEAD + b"content-length: %d\r\n\r\n" % len(BATCH) + BATCH,
    b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /v1/status HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"HEAD /schema/openapi.json HTTP/1.0\r\n\r\n",
    b"OPTIONS /v1/classify HTTP/1.1\r\nhost: localhost\r\n\r\n",
]

Mutation = Callable[[random.Random, bytes], bytes]


def header(line: bytes) -> Mutation:
    """One line more, anywhere among the headers."""

    def add(rng: random.Random, request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        lines.insert(rng.randint(1, len(lines)), line)
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    return add


def noise(rng: random.Random, request: bytes) -> bytes:
    """Some bytes of it are others."""
    changed = bytearray(request)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def insertion(rng: random.Random, request: bytes) -> bytes:
    """Bytes with a meaning, where they have none."""
    at = rng.randrange(len(request))
    return (
        request[:at]
        + rng.choice([b"\x00", b"\r", b"\n", b"\r\n\r\n", b":", b" ", b"\xff", b"%00", b"{"])
        + request[at:]
    )


def truncation(rng: random.Random, request: bytes) -> bytes:
    return request[: rng.randrange(len(request))]


def pipelined(rng: random.Random, request: bytes) -> bytes:
    """A valid request, this one without an end or with another start, and garbage."""
    return VALID + request[rng.randrange(9) :] + rng.randbytes(rng.randint(0, 50)) + rng.choice(SEEDS)


MUTATIONS: list[Mutation] = [
    noise,
    noise,
    insertion,
    insertion,
    truncation,
    pipelined,
    pipelined,
    header(b"transfer-encoding: chunked"),  # beside a length
    header(b"transfer-encoding: identity, chunked"),
    header(b"transfer-encoding : chunked"),
    header(b"content-length: 5"),  # beside another
    header(b"content-length: 5, 5"),
    header(b"content-length: -1"),
    header(b"content-length: 99999999999999999999999"),
    lambda rng, request: LENGTH.sub(rng.choice([b"10000000000", b"0", b"20001", b"1", b"+27", b""]), request),
    header(b"content-length: 0x10"),
    header(b"x-folded: one\r\n two"),
    header(b"no colon"),
    header(b": no name"),
    header(b"x-nul: a\x00b"),
    header(b"x-control: a\x0bb\x7f"),
    header(b"x-bare: a\nx-lf: b"),
    header(b"x-request-id: \xff\xfe<script>"),
    header(b"x-deadline-ms: " + b"9" * 400),
    header(b"cache-control: " + b"no-cache," * 500),
    header(b"host: \xf0\x9f\x92\xa3"),
    header(b"authorization: Bearer " + b"x" * 5_000),
    header(b"expect: 100-continue"),
    header(b"expect: nonsense"),
    header(b"connection: upgrade\r\nupgrade: websocket"),
    header(b"content-encoding: gzip"),
    lambda rng, request: request.replace(b"1.1", rng.choice([b"0.9", b"2.0", b"1.01", b"9.9", b"", b"1.1 x"]), 1),
    lambda rng, request: request.replace(b"\r\n", b"\n"),
    lambda rng, request: request.replace(
        b" /", rng.choice([b" //", b" http://evil/", b" *", b" /%2e%2e/", b" \xff/"]), 1
    ),
    lambda rng, request: rng.choice([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n"]) + request,
    lambda rng, request: CHUNKED.replace(
        b"1b\r\n", rng.choice([b"-1\r\n", b"fffffffffffffffff\r\n", b"1b;x=\x00\r\n", b"\r\n"])
    ),
    lambda rng, request: rng.randbytes(rng.randint(1, 400)),
    lambda rng, request: request.replace(b"\r\n", b"\r\n" + b"x: y\r\n" * 10_000, 1) if rng.random() < 0.1 else b"\r\n",
    lambda rng, request: (
        request.replace(b"\r\n", b"\r\nx: " + b"y" * 100_000 + b"\r\n", 1) if rng.random() < 0.1 else b"G"
    ),
]


def malformed(number: int) -> bytes:
    """The same bytes for the same number."""
    rng = random.Random(SEED + number)
    request = rng.choice(SEEDS)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        request = rng.choice(MUTATIONS)(rng, request) or b"\r\n"
    return request


async def answers(port: int, sent: bytes) -> list[int]:
    """The statuses that come back, until the connection closes or has nothing more to say."""
    received = b""
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        while chunk := await asyncio.wait_for(reader.read(65_536), SILENCE_S):
            received += chunk
    except (ConnectionError, TimeoutError):
        pass
    finally:
        if writer is not None:
            writer.transport.abort()
    return [int(status) for status in STATUS.findall(received)]


def test_ten_thousand_malformed_requests_change_nothing(serve: Callable[..., Any], banking: str) -> None:
    """Mutations of valid requests, the same in every run: below 500 each, the process lives, its memory does not grow
    and no connection is left behind."""
    service = serve(banking + "[server]\nmax_body_bytes = 20000\n")
    process = psutil.Process(service.process.pid)
    port = int(service.url.rsplit(":", 1)[1])
    seen: dict[int, int] = {}

    async def send(numbers: Iterator[int]) -> None:
        for number in numbers:
            for status in await answers(port, malformed(number)):
                seen[status] = seen.get(status, 0) + 1
                assert status < 500, malformed(number)[:2_000]

    async def send_all(first: int, last: int) -> None:
        numbers = iter(range(first, last))
        await asyncio.gather(*(send(numbers) for _ in range(AT_ONCE)))

    connections = len(process.net_connections())
    asyncio.run(send_all(0, WARM_UP))
    before = process.memory_info().rss
    asyncio.run(send_all(WARM_UP, REQUESTS))

    assert service.answer("I lost my card")["label"] == "lost_or_stolen_card"
    service.wait_for(lambda: len(process.net_connections()) <= connections + 1)  # ours may be new
    assert process.memory_info().rss - before < GROWTH_BYTES
    assert {200, 400, 401, 404, 405, 413, 415, 422} <= set(seen), seen
    assert "Traceback" not in service.output
    assert '"event":"unexpected"' not in service.output
