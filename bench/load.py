"""A load generator on bare asyncio sockets: the same on every machine, and light enough to share the server's cores.

Closed loop (`measure`, `burst`): each connection (kept alive) sends its next request when it has its answer. So
latencies are what that many waiting callers see; they are not what a fixed arrival rate would see.

Open loop (`arrive`): each request is sent at its own time, whatever became of those before it, and its latency counts
from that time. A slow server meets a queue, as it would outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit


class Reply(NamedTuple):
    """`number`: of the request, from 0; `status` 0: the connection broke, or nothing came. Times: perf_counter."""

    number: int
    status: int
    body: bytes
    started: float
    ended: float


class Load(NamedTuple):
    """What one measurement saw. `answers` in the window of `seconds`; `served` counts the answers outside it too."""

    answers: int
    failures: int
    seconds: float
    served: int
    p50_ms: float
    p99_ms: float
    generator_cores: float  # what this generator itself used, in cores

    @property
    def per_second(self) -> float:
        return self.answers / self.seconds


def request(url: str, body: Any, headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a POST of `body` as JSON."""
    parts = urlsplit(url)
    data = json.dumps(body).encode()
    sent = {
        "Host": parts.netloc,
        "Content-Type": "application/json",
        "Content-Length": str(len(data)),
        **(headers or {}),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"POST {parts.path or '/'} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + data


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest of the sorted `values` that at least `share` (0 to 1) of them do not exceed."""
    if not values:
        return math.nan
    return values[max(0, math.ceil(share * len(values)) - 1)]


def took_ms(replies: Iterable[Reply]) -> list[float]:
    """Sorted."""
    return sorted((reply.ended - reply.started) * 1000 for reply in replies)


def measure(
    url: str,
    requests: Iterable[bytes],
    *,
    connections: int,
    seconds: float,
    warmup: float = 1.0,
    accept: Callable[[Reply], bool],
    patience: float = 60.0,
) -> Load:
    """Send `requests` round and round, for `warmup` uncounted seconds and then `seconds` counted ones."""
    used, begun = time.process_time(), time.perf_counter()
    replies = send(url, itertools.cycle(requests), connections=connections, seconds=warmup + seconds, patience=patience)
    cores = (time.process_time() - used) / (time.perf_counter() - begun)
    since = begun + warmup
    return summary(replies, accept, since, since + seconds, cores)


def burst(url: str, requests: Sequence[bytes], *, connections: int, accept: Callable[[Reply], bool]) -> Load:
    """Send `requests` once, all of them counted: for servers too slow for a window."""
    used, begun = time.process_time(), time.perf_counter()
    replies = send(url, requests, connections=connections, patience=120.0)
    ended = time.perf_counter()
    return summary(replies, accept, begun, ended, (time.process_time() - used) / (ended - begun))


def summary(
    replies: Sequence[Reply], accept: Callable[[Reply], bool], since: float, until: float, cores: float
) -> Load:
    """Rate and latencies of the replies that came in the window; failures and `served` of all."""
    good = [reply for reply in replies if reply.status == 200 and accept(reply)]
    counted = [reply for reply in good if since <= reply.ended <= until]
    took = took_ms(counted)
    return Load(
        answers=len(counted),
        failures=len(replies) - len(good),
        seconds=until - since,
        served=len(good),
        p50_ms=percentile(took, 0.50),
        p99_ms=percentile(took, 0.99),
        generator_cores=cores,
    )


def send(
    url: str, requests: Iterable[bytes], *, connections: int, seconds: float | None = None, patience: float = 60.0
) -> list[Reply]:
    """All replies, until `requests` end or `seconds` are over; then what is in flight is waited for (`patience`)."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_send(url, iter(requests), connections, seconds, patience))


async def _send(
    url: str, requests: Iterator[bytes], connections: int, seconds: float | None, patience: float
) -> list[Reply]:
    host, port = _address(url)
    loop = asyncio.get_running_loop()
    until = math.inf if seconds is None else time.perf_counter() + seconds
    numbered = enumerate(requests)
    replies: list[Reply] = []
    open_now: set[_Connection] = set()

    def free(connection: _Connection) -> None:
        taken = next(numbered, None) if time.perf_counter() < until else None
        if taken is None:
            connection.close()
        else:
            connection.ask(*taken, time.perf_counter())

    async def caller() -> None:
        over = False
        while not over:  # a broken connection is opened again
            _, protocol = await loop.create_connection(lambda: _Connection(free, replies.append), host, port)
            open_now.add(protocol)
            over = await protocol.over
            open_now.discard(protocol)

    limit = patience if seconds is None else seconds + patience
    callers = [asyncio.create_task(caller()) for _ in range(connections)]
    done, late = await asyncio.wait(callers, timeout=limit, return_when=asyncio.FIRST_EXCEPTION)
    for protocol in open_now:
        protocol.give_up()
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for task in done:
        task.result()  # raises what kept it from connecting
    return replies


def arrive(
    url: str, requests: Iterable[bytes], times: Sequence[float], *, patience: float = 30.0
) -> tuple[list[Reply], list[float]]:
    """Send the i-th request `times[i]` seconds from now (rising), on as many connections as that takes.

    Gives the replies, with `started` the time a request was due; and, sorted, the seconds it was sent after that: what
    this generator adds itself (its timers have steps of 1 ms). No reply `patience` seconds after the last: status 0.
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_arrive(url, requests, times, patience))


async def _arrive(
    url: str, requests: Iterable[bytes], times: Sequence[float], patience: float
) -> tuple[list[Reply], list[float]]:
    host, port = _address(url)
    loop = asyncio.get_running_loop()
    replies: list[Reply] = []
    late: list[float] = []
    open_now: set[_Connection] = set()
    idle: list[_Connection] = []  # the last used is taken first, as clients' pools do
    waiting: deque[tuple[int, bytes, float]] = deque()  # for the connection that is opened for each of them
    opening: set[asyncio.Task[None]] = set()
    complete = asyncio.Event()

    def deliver(reply: Reply) -> None:
        replies.append(reply)
        if len(replies) == len(times):
            complete.set()

    def free(connection: _Connection) -> None:
        if waiting:
            send(connection, *waiting.popleft())
        else:
            idle.append(connection)

    def send(connection: _Connection, number: int, data: bytes, due: float) -> None:
        late.append(time.perf_counter() - due)
        connection.ask(number, data, due)

    async def connect() -> None:
        try:
            _, protocol = await loop.create_connection(lambda: _Connection(free, deliver), host, port)
        except OSError:
            if waiting:
                number, _, due = waiting.popleft()
                deliver(Reply(number, 0, b"", due, time.perf_counter()))
            return
        open_now.add(protocol)
        await protocol.over
        open_now.discard(protocol)
        if protocol in idle:  # the server closed it
            idle.remove(protocol)

    begun = time.perf_counter()
    for number, (data, offset) in enumerate(zip(requests, times, strict=False)):
        due = begun + offset
        await asyncio.sleep(0)  # for the answers, when this is behind
        while (left := due - time.perf_counter()) > 0:  # noqa: ASYNC110 - it waits for a time
            await asyncio.sleep(max(left, 0.001))  # uvloop rounds to milliseconds, down as well
        while idle and idle[-1].over.done():
            idle.pop()
        if idle:
            send(idle.pop(), number, data, due)
        else:
            waiting.append((number, data, due))
            task = asyncio.create_task(connect())
            opening.add(task)
            task.add_done_callback(opening.discard)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(complete.wait(), patience)
    for protocol in list(open_now):
        protocol.give_up()
    replies += [Reply(number, 0, b"", due, time.perf_counter()) for number, _, due in waiting]
    for task in opening:
        task.cancel()
    await asyncio.gather(*opening, return_exceptions=True)
    return replies, sorted(late)


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80


class _Connection(asyncio.Protocol):
    """A kept connection. It says when it is `free` for a request (open, or answered) and delivers replies; `over`: it
    has ended, True if by `close`.
    """

    def __init__(self, free: Callable[[_Connection], None], deliver: Callable[[Reply], None]) -> None:
        self._free, self._deliver = free, deliver
        self._buffer = b""
        self._number: int | None = None  # of the request in flight
        self._started = 0.0
        self.over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def ask(self, number: int, data: bytes, started: float) -> None:
        self._number, self._started = number, started
        self._transport.write(data)

    def close(self) -> None:
        self.over.set_result(True)
        self._transport.close()

    def give_up(self) -> None:
        self._ended(0, b"")
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._free(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        try:
            status, length = parse_head(head)
        except ValueError:
            self._transport.abort()
            return
        if len(body) >= length:
            self._buffer = b""
            self._ended(status, body)
            self._free(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._ended(0, b"")
        if not self.over.done():
            self.over.set_result(False)

    def _ended(self, status: int, body: bytes) -> None:
        if self._number is not None:
            self._deliver(Reply(self._number, status, body, self._started, time.perf_counter()))
            self._number = None


def parse_head(head: bytes) -> tuple[int, int]:
    """(status, Content-Length) of a response. Raises `ValueError`: not HTTP, or of unknown length."""
    first, _, fields = head.partition(b"\r\n")
    version, status, *_ = first.split(b" ")
    if not version.startswith(b"HTTP/1."):
        raise ValueError("not HTTP/1")
    for line in fields.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(status), int(value)
    raise ValueError("no Content-Length")
