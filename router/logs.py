"""Logs: one JSON line an event on stderr. They carry what is on the list here and nothing else: never a text, never a
key."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, BinaryIO, cast

import msgspec
import structlog

from cost.types import NANO_PER_USD
from router.outcome import Outcome


class RequestLine(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The line of a request; what is empty or 0 is left out. For one input as for many: counts, sums, and of times the
    longest."""

    event: str
    level: str
    timestamp: str
    id: str
    status: int
    total_ms: float
    tenant: str = ""
    task: str = ""
    problem: str = ""
    caller_id: str = ""
    inputs: int = 0
    source: dict[str, int] = {}
    degraded: dict[str, int] = {}
    errors: dict[str, int] = {}
    cost_usd: float = 0.0
    cache_ms: float = 0.0
    queue_ms: float = 0.0
    local_ms: float = 0.0
    frontier_ms: float = 0.0


def log_request(outcomes: Sequence[Outcome], **fields: Any) -> None:
    """The line of a request that was answered just now."""
    at_us = time.time_ns() // 1000
    if _lines is not None:
        _lines.later(partial(_rendered, at_us, outcomes, fields))
        return
    told = msgspec.to_builtins(_line(at_us, outcomes, fields))
    structlog.get_logger("crossover.request").info(
        told.pop("event"), **{name: value for name, value in told.items() if name not in ("level", "timestamp")}
    )


def _rendered(at_us: int, outcomes: Sequence[Outcome], fields: dict[str, Any]) -> bytes:
    """The straight way: structlog's processors took a tenth of the loop's time."""
    return _encode(_line(at_us, outcomes, fields)) + b"\n"


def _line(at_us: int, outcomes: Sequence[Outcome], fields: dict[str, Any]) -> RequestLine:
    line = RequestLine(event="request", level="info", timestamp=_iso(at_us), inputs=len(outcomes), **fields)
    for outcome in outcomes:
        _count(line.source, outcome.source)
        if outcome.degraded:
            _count(line.degraded, outcome.degraded)
        if outcome.error:
            _count(line.errors, outcome.error)
        line.cost_usd += outcome.cost_nano / NANO_PER_USD
        line.cache_ms = max(line.cache_ms, outcome.cache_us / 1000)
        line.queue_ms = max(line.queue_ms, outcome.queue_us / 1000)
        line.local_ms = max(line.local_ms, outcome.local_us / 1000)
        line.frontier_ms = max(line.frontier_ms, outcome.frontier_us / 1000)
    return line


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _iso(at_us: int) -> str:
    """UTC, in ISO 8601, to the microsecond."""
    seconds, rest = divmod(at_us, 1_000_000)
    return f"{_second(seconds)}.{rest:06d}Z"


@lru_cache(maxsize=2)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class Lines:
    """Lines for stderr, written together: a write gives up the GIL, and beside busy engine threads it takes 0.1 ms to
    get it back. What is collected goes out after 50 ms, or 512 lines, and at exit. Where processes share stderr, in
    pieces that a pipe takes whole (PIPE_BUF), cut between lines."""

    def __init__(self, *, shared: bool = False) -> None:
        self._shared = shared
        self._waiting: deque[bytes | Callable[[], bytes]] = deque()
        self._writing = threading.Lock()  # a model is loaded, and says so, on a thread of its own
        self._scheduled = False
        atexit.register(self._write)

    def write(self, line: bytes) -> None:
        self._waiting.append(line)

    def later(self, line: Callable[[], bytes]) -> None:
        """As `write`, then `flush`; the line is made when it goes out: made many at a time, they take half the time."""
        self._waiting.append(line)
        self.flush()

    def flush(self) -> None:
        """Called after every line."""
        if len(self._waiting) > 512:
            self._write()
        elif not self._scheduled:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # another thread, or no service
                self._write()
            else:
                self._scheduled = True
                loop.call_later(0.05, self._write)

    def _write(self) -> None:
        self._scheduled = False
        with self._writing:
            made = [self._waiting.popleft() for _ in range(len(self._waiting))]
            lines = b"".join([line if isinstance(line, bytes) else line() for line in made])
            with contextlib.suppress(OSError):  # nobody reads them any more
                while lines:
                    cut = lines.rfind(b"\n", 0, select.PIPE_BUF) + 1 if self._shared else 0
                    sys.stderr.buffer.write(lines[: cut or len(lines)])
                    sys.stderr.buffer.flush()
                    lines = lines[cut or len(lines) :]


_encode = msgspec.json.Encoder(enc_hook=str).encode
_lines: Lines | None = None  # where the lines of requests go as JSON


def configure_logging(level: str = "info", *, terminal: bool | None = None, shared: bool = False) -> None:
    """One JSON line an event on stderr (`shared` with other processes), or a readable one on a terminal. Library
    loggers are kept at WARNING: they would log request bodies (litestar's does by default) and URLs."""
    global _lines
    pretty = sys.stderr.isatty() if terminal is None else terminal
    lines = None if pretty else Lines(shared=shared)
    _lines = lines if level == "info" else None
    renderer: Any = structlog.dev.ConsoleRenderer() if pretty else _render
    factory: Any = (
        structlog.PrintLoggerFactory(sys.stderr) if pretty else structlog.BytesLoggerFactory(cast("BinaryIO", lines))
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s", force=True)
    for name in ("httpx", "httpx2", "anthropic", "openai", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _render(_logger: Any, _method: str, event: Mapping[str, Any]) -> bytes:
    return _encode(event)
