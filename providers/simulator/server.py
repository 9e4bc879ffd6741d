"""A stand-in for the frontier: speaks four wire formats and the batch endpoints on a loopback socket.

It never hides what it is: its models are called "simulated/...", each reply carries `x-crossover-simulated: 1`. What it
says and how long it takes: `providers.simulator.model`; how it fails, on demand: `providers.simulator.faults`. It keeps
its own bill (`providers.simulator.bill`), so that a ledger can be checked against it.

    POST /v1/messages, /v1/responses, /v1/decisions, /v1/chat/completions
    POST /_sim/faults {"next": [...], "for": {TEXT: [...]}}   faults for the next calls, or for those about a text
    GET  /_sim/bill, /_sim/bill?items=1, /_sim/calls          what it would charge; how often it was called
    and the paths of providers.simulator.batches
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Self

import msgspec

from cost.prices import SIMULATED
from providers.simulator import wire
from providers.simulator.batches import Batches
from providers.simulator.bill import Bill, Item
from providers.simulator.faults import Fault
from providers.simulator.http import Http
from providers.simulator.model import Asked, Model, latency_around, latency_of

#: By what a chat server can be held to: how requests may constrain the reply.
_CONSTRAINTS = {"schema": ("schema", "json", ""), "json": ("json", ""), "none": ("",)}


class Simulator:
    """`async with Simulator(answers={...}) as sim:` listens at `sim.url` until the block ends.

    `answers`, `script`, `accuracy`, `gullible`: see `providers.simulator.model.Model`. `latency` is a distribution
    (`model.latency_of`); without it `latency_ms` is the median of a lognormal one, 0: none. `faults` are
    (fault, probability) pairs applied to every call; `fail_next` and `fail_for` order them one by one and go first.
    `structured`: what a chat request may ask for, a strict schema, any JSON, or nothing. With `record`, `requests`
    keeps the decoded bodies of the last 1,000 calls, and the bill's items their texts (tests only).
    """

    def __init__(
        self,
        answers: Mapping[str, str] | None = None,
        *,
        script: Sequence[str] = (),
        host: str = "127.0.0.1",
        port: int = 0,
        latency_ms: float = 0.0,
        latency: str | None = None,
        accuracy: float = 1.0,
        gullible: float = 0.0,
        structured: Literal["schema", "json", "none"] = "schema",
        faults: Sequence[tuple[str, float]] = (),
        seed: int = 0,
        record: bool = False,
    ) -> None:
        self.model = Model(answers or {}, script, accuracy, gullible, seed)
        self.calls = 0  # requests to the formats that arrived whole
        self.connections = 0  # sockets accepted
        self.gone = 0  # callers who hung up while they were made to wait
        self.requests: deque[Any] = deque(maxlen=1000)
        self.headers: deque[dict[str, str]] = deque(maxlen=1000)
        self.books = Bill()
        self._host, self._port, self._record = host, port, record
        self._latency = latency_of(latency) if latency is not None else latency_around(latency_ms)
        self._structured = structured
        self._faults = [(Fault.parse(name), share) for name, share in faults]
        self._next: deque[Fault] = deque()
        self._for: dict[str, deque[Fault]] = {}
        self._random = random.Random(seed)
        self._numbers = itertools.count(1)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Condition()
        self.batches = Batches(self)

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    @property
    def bill(self) -> dict[str, Counter[str]]:
        """Totals by format and model."""
        return self.books.lines

    @property
    def items(self) -> Sequence[Item]:
        return self.books.items

    def fail_next(self, names: Sequence[str]) -> None:
        """Order faults for the next calls; "ok" lets one through. Raises `ValueError` for an unknown one."""
        self._next.extend([Fault.parse(name) for name in names])

    def fail_for(self, text: str, names: Sequence[str]) -> None:
        """The same for the next calls about a text."""
        self._for.setdefault(text, deque()).extend([Fault.parse(name) for name in names])

    async def wait_for(self, *, calls: int = 0, gone: int = 0) -> None:
        """Until that many calls have arrived, and that many hanging callers have hung up; `TimeoutError` after 10 s."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: self.calls >= calls and self.gone >= gone)

    def answered(self, path: str, body: Any, *, batch: bool) -> tuple[int, dict[str, Any]]:
        """(status, reply) to a request that came without a socket of its own; with `batch`, the bill says so. Faults of
        the wire do nothing to it. Raises `KeyError` for a path that is none of the formats'."""
        style = wire.FORMATS[path]
        try:
            asked, fault = self._heard(style, body)
        except _RefusedError as refused:
            return refused.status, refused.reply
        item, reply = self._computed(style, asked, fault, batch=batch)
        if fault.tells:
            self.books.was_seen(item)
        return 200, reply

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connection, self._host, self._port, limit=1 << 22)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        http = Http(reader, writer)
        try:
            while (request := await http.read()) is not None:
                method, path, query, headers, body = request
                if method == "POST" and path in wire.FORMATS:
                    if not await self._call(http, wire.FORMATS[path], headers, body):
                        break
                elif (reply := await self.batches.handle(method, path, query, headers, body)) is not None:
                    await http.send(*reply)
                else:
                    await http.send(*self._control(method, path, query, body))
        except (ConnectionError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the caller hung up, or does not speak HTTP
        except asyncio.CancelledError:
            writer.transport.abort()  # shutting down; asyncio.streams logs a cancelled callback as an error
        finally:
            self._open.discard(task)
            writer.close()

    async def _call(self, http: Http, style: wire.Format, headers: Mapping[str, str], body: bytes) -> bool:
        """One call of a model. False: the connection is used up."""
        decoded = _decoded(body)
        if self._record:
            self.requests.append(decoded)
            self.headers.append(dict(headers))
        async with self._changed:
            self.calls += 1
            self._changed.notify_all()
        try:
            if "authorization" not in headers and "x-api-key" not in headers:
                raise self._refused(style, 401, "the simulator wants a key; any will do")
            asked, fault = self._heard(style, decoded)
        except _RefusedError as refused:
            await http.send(refused.status, refused.reply, refused.headers)
            return True
        if wait := self._latency(self._random):
            await asyncio.sleep(wait)
        item, reply = self._computed(style, asked, fault, batch=False)
        arrived, keeps_open = await fault.deliver(http, reply, {"x-request-id": item.reply_id})
        if arrived and fault.tells:
            self.books.was_seen(item)
        if fault.name in ("hang", "slow_drip"):
            async with self._changed:
                self.gone += 1
                self._changed.notify_all()
        return keeps_open

    def _heard(self, style: wire.Format, body: Any) -> tuple[Asked, Fault]:
        """What is asked, and the fault that was ordered for it. Raises `_RefusedError`."""
        try:
            asked = style.read(body)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise self._refused(style, 400, f"the simulator can't read this request: {error!r}") from None
        if ordered := self._for.get(asked.text):
            fault = ordered.popleft()
        else:
            fault = self._next.popleft() if self._next else self._drawn_fault()
        if fault.name == "no_schema" or asked.constrained not in _CONSTRAINTS[self._structured]:
            raise self._refused(style, 400, "this response_format is not supported", param="response_format")
        if fault.status:
            raise self._refused(style, fault.status, "ordered from the simulator", headers=fault.headers)
        return asked, fault

    def _computed(self, style: wire.Format, asked: Asked, fault: Fault, *, batch: bool) -> tuple[Item, dict[str, Any]]:
        """The reply. What the provider computed it charges, whether or not the caller gets to see it."""
        said = self.model.say(asked)
        usage = self.model.usage(asked, said, asyncio.get_running_loop().time())
        number = f"{style.id}_{next(self._numbers):06d}"
        text = asked.text if self._record else None
        item = Item(number, style.name, SIMULATED + asked.model, usage, batch, text=text)
        reply = style.reply(number, asked, fault.changed(said, asked.labels), fault.usage(usage))
        reply["usage"] = fault.report(reply["usage"])
        return self.books.charge(item), reply

    def _refused(
        self,
        style: wire.Format,
        status: int,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> _RefusedError:
        self.books.refuse(style.name)
        return _RefusedError(status, style.error(status, message, param), headers or {})

    def _drawn_fault(self) -> Fault:
        for fault, share in self._faults:
            if self._random.random() < share:
                return fault
        return Fault("ok")

    def _control(self, method: str, path: str, query: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if (method, path) == ("GET", "/_sim/bill"):
            return 200, self.books.told(items="items=1" in query)
        if (method, path) == ("GET", "/_sim/calls"):
            return 200, {"simulated": True, "calls": self.calls, "connections": self.connections}
        if (method, path) == ("POST", "/_sim/faults"):
            try:
                orders = msgspec.json.decode(body, type=_Orders)
                self.fail_next(orders.next)
                for text, names in orders.for_.items():
                    self.fail_for(text, names)
            except ValueError as error:
                return 400, {"error": f'send {{"next": ["429", ...]}} or {{"for": {{TEXT: ["429", ...]}}}}: {error}'}
            return 200, {"simulated": True, "ordered": len(self._next) + sum(map(len, self._for.values()))}
        return 404, {"error": "this is crossover's simulator of a frontier API; it has no such path"}


class _Orders(msgspec.Struct, forbid_unknown_fields=True):
    """Of faults."""

    next: list[str] = []
    for_: dict[str, list[str]] = msgspec.field(default={}, name="for")


class _RefusedError(Exception):
    """Answered with a status and not computed; it costs nothing."""

    def __init__(self, status: int, reply: dict[str, Any], headers: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status, self.reply, self.headers = status, reply, headers


def _decoded(body: bytes) -> Any:
    """None if it is no JSON."""
    for decode in (msgspec.json.decode, json.loads):  # the second knows lone surrogates
        with suppress(ValueError, RecursionError):
            return decode(body)
    return None
