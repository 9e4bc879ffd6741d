"""A stand-in for the frontier: speaks the Anthropic Messages and OpenAI Responses wire formats on a loopback socket.

It never hides what it is: its models are called "simulated/...", each reply carries `x-crossover-simulated: 1`. It
answers from a table (text -> label), else with the label that shares most words with the text, and orders faults on
demand. It keeps its own bill, so that a ledger can be checked against it. On asyncio streams and not on a web
framework, because half of the faults are about the socket.

    POST /v1/messages, /v1/responses    the two formats
    POST /_sim/faults {"next": [...]}   faults for the next calls, in order (`providers.simulated_faults.FAULTS`)
    GET  /_sim/bill, /_sim/calls        what it would charge; how often it was called
"""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
import math
import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from providers import simulated_wire as wire
from providers.simulated_faults import Fault, Http


class Simulator:
    """`async with Simulator(answers={...}) as sim:` listens at `sim.url` until the block ends.

    `latency_ms` is the median of a lognormal distribution, 0: none. `faults` are (fault, probability) pairs applied to
    every call; `fail_next` orders them one by one and goes first. `accuracy` is the share of answers that are not
    replaced by another label. With `record`, `requests` keeps the decoded bodies of the last 1,000 calls (tests only:
    they hold texts).
    """

    def __init__(
        self,
        answers: Mapping[str, str] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        latency_ms: float = 0.0,
        accuracy: float = 1.0,
        faults: Sequence[tuple[str, float]] = (),
        seed: int = 0,
        record: bool = False,
    ) -> None:
        self.answers = dict(answers or {})
        self.calls = 0  # requests to the two formats that arrived whole
        self.connections = 0  # sockets accepted
        self.gone = 0  # callers who hung up while they were made to wait
        self.requests: deque[dict[str, Any]] = deque(maxlen=1000)
        self.headers: deque[dict[str, str]] = deque(maxlen=1000)
        self.bill: dict[str, Counter[str]] = {}
        self._host, self._port, self._record = host, port, record
        self._latency = latency_ms / 1000
        self._accuracy = accuracy
        self._faults = [(Fault.parse(name), share) for name, share in faults]
        self._next: deque[Fault] = deque()
        self._seed = seed
        self._random = random.Random(seed)
        self._prefixes: dict[str, float] = {}  # prompt cache: prefix digest -> last use
        self._ids = itertools.count(1)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Condition()

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    def fail_next(self, names: Sequence[str]) -> None:
        """Order faults for the next calls; "ok" lets one through. Raises `ValueError` for an unknown one."""
        self._next.extend([Fault.parse(name) for name in names])

    async def wait_for(self, *, calls: int = 0, gone: int = 0) -> None:
        """Until that many calls have arrived, and that many hanging callers have hung up; `TimeoutError` after 10 s."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: self.calls >= calls and self.gone >= gone)

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
                method, path, headers, body = request
                if method == "POST" and path in wire.FORMATS:
                    if not await self._call(http, wire.FORMATS[path], headers, body):
                        break
                else:
                    await http.send(*self._control(method, path, body))
        except (ConnectionError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the caller hung up, or does not speak HTTP
        except asyncio.CancelledError:
            writer.transport.abort()  # shutting down; asyncio.streams logs a cancelled callback as an error
        finally:
            self._open.discard(task)
            writer.close()

    async def _call(self, http: Http, style: wire.Format, headers: Mapping[str, str], body: bytes) -> bool:
        """One call of a model. False: the connection is used up."""
        if self._record:
            self.requests.append(json.loads(body))
            self.headers.append(dict(headers))
        fault = self._next.popleft() if self._next else self._drawn_fault()
        async with self._changed:
            self.calls += 1
            self._changed.notify_all()
        if "authorization" not in headers and "x-api-key" not in headers:
            fault = Fault("401")
        if fault.status:
            self._count(style.name, "", refused=1)
            await http.send(fault.status, style.error(fault.status), fault.headers)
            return True
        try:
            asked = style.read(json.loads(body))
        except (KeyError, TypeError, ValueError) as error:
            self._count(style.name, "", refused=1)
            await http.send(400, style.error(400, f"the simulator can't read this request: {error!r}"))
            return True
        if self._latency:
            await asyncio.sleep(self._latency * math.exp(self._random.gauss(0.0, 0.4)))
        label = wire.choose(asked, self.answers, self._accuracy, self._seed)
        usage = wire.usage_of(asked, label, self._prefixes, asyncio.get_running_loop().time())
        reply = style.reply(f"sim_{next(self._ids):06d}", asked, fault.label(label, asked.labels), usage, fault.name)
        # What the provider computed it charges, whether or not the caller gets to see it.
        self._count(style.name, f"simulated/{asked.model}", calls=1, unseen=int(fault.hides_usage), **usage)
        keeps_open = await fault.deliver(http, reply)
        if fault.name in ("hang", "slow_drip"):
            async with self._changed:
                self.gone += 1
                self._changed.notify_all()
        return keeps_open

    def _drawn_fault(self) -> Fault:
        for fault, share in self._faults:
            if self._random.random() < share:
                return fault
        return Fault("ok")

    def _count(self, style: str, model: str, **amounts: int) -> None:
        self.bill.setdefault(f"{style} {model}".strip(), Counter()).update(amounts)

    def _control(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if (method, path) == ("GET", "/_sim/bill"):
            return 200, {"simulated": True, "bill": {name: dict(lines) for name, lines in self.bill.items()}}
        if (method, path) == ("GET", "/_sim/calls"):
            return 200, {"simulated": True, "calls": self.calls, "connections": self.connections}
        if (method, path) == ("POST", "/_sim/faults"):
            try:
                self.fail_next(json.loads(body)["next"])
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                return 400, {"error": f'send {{"next": ["429", ...]}}: {error}'}
            return 200, {"simulated": True, "ordered": len(self._next)}
        return 404, {"error": "this is crossover's simulator of a frontier API; it has no such path"}


def read_answers(path: Path) -> dict[str, str]:
    """A CSV with the columns text and label. Raises `ValueError` where they are missing, `OSError`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = {"text", "label"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(f"{path} has no column named {' and '.join(sorted(missing))}")
        return {row["text"].strip(): row["label"].strip() for row in rows}
