"""uvicorn's HTTP protocol, with the bounds it lacks: on a request's head, on what is still on its way when it has been
answered, on requests sent ahead; and with one answer for each request, in their order, whatever is sent."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Literal

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from router.http.errors import MEDIA_TYPE
from router.problems import ProblemError

HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 10.0
#: What may still come of a body that nobody reads any more: a client that sends before it reads shall see the answer.
UNREAD_BYTES = 16 * 1024 * 1024
UNREAD_SECONDS = 5.0
#: Requests that may wait on one connection for the answer to the one before.
AHEAD = 1000
#: In a scope's "extensions": the whole body has been received, so that reading it can't take long.
BODY_ARRIVED = "crossover.body_arrived"
_ARRIVED: dict[str, dict[object, object]] = {BODY_ARRIVED: {}}


class BoundedProtocol(HttpToolsProtocol):
    """Request line and headers arrive within `HEAD_SECONDS` and `HEAD_BYTES` (and what one read of the socket adds), or
    the connection is answered and closed. What can't be parsed gets a problem too. An answer that is given before the
    body came leaves the connection usable, if the rest of the body comes within bounds."""

    _inside: Literal["head", "body", ""] = "head"  # of which part of a request the parser has seen some, but not all
    _bytes = 0  # of a head, or of a body nobody reads
    _timer: asyncio.TimerHandle | None = None
    _running: Any = None  # the request that is being answered, or was last; `self.cycle` is the last one parsed

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer(HEAD_SECONDS)

    def on_message_begin(self) -> None:
        self._inside, self._bytes = "head", 0
        self._stop_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._inside = "body"
        self._stop_timer()

    def on_message_complete(self) -> None:
        self._inside = ""
        self._stop_timer()
        self.scope["extensions"] = _ARRIVED
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._inside == "body" and self.cycle.response_complete and not self.transport.is_closing():
            if self.expect_100_continue:  # nothing says whether the body will come: what comes next can't be told apart
                self.transport.close()
                return
            self._bytes = 0
            self._start_timer(UNREAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        before = self._inside
        super().data_received(data)
        if self.transport.is_closing():
            return
        if len(self.pipeline) > AHEAD:
            self._refuse(ProblemError("bad-http", f"at most {AHEAD} requests can be sent ahead"))
        elif self._inside == "head":
            if before == "head":  # else this packet held the end of the request before
                self._bytes += len(data)
                if self._bytes > HEAD_BYTES:
                    self._refuse(ProblemError("head-too-large", f"a request's head may have {HEAD_BYTES} bytes"))
                    return
            if self._timer is None:
                self._start_timer(HEAD_SECONDS)
        elif self.cycle is not None and self.cycle.response_complete:
            if self._inside == "body":
                self._bytes += len(data)
                if self._bytes > UNREAD_BYTES:
                    self.transport.close()
            elif self.timeout_keep_alive_task is None:  # uvicorn ended it when it saw these bytes
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        running = self._running
        if running is not None and not running.response_complete:  # uvicorn tells only the last one parsed
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - its words are for developers
        self._refuse(ProblemError("bad-http", "this is not HTTP/1.1"))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _should_upgrade_to_ws(self) -> bool:
        return False  # there is no websocket here, whatever library is installed

    def _unsupported_upgrade_warning(self) -> None:
        """Anybody could fill the log with it."""

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._too_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        if self._inside == "head" and self._bytes:
            self._refuse(ProblemError("slow-head", f"a request's head must arrive within {HEAD_SECONDS:g} s"))
        else:  # a connection made ahead of need, or the rest of an answered request: there is nothing to answer
            self.transport.close()

    def _refuse(self, error: ProblemError) -> None:
        """Answer what is being received, and close: once what came before has been answered."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        self.pipeline.clear()
        running = self._running
        broken = self._inside == "body" and running is self.cycle  # it is the running request's own body
        if running is not None and not running.response_complete:
            if not broken:  # its answer is the connection's last
                running.keep_alive = False
                self.flow.pause_reading()
                return
            begun = running.response_started
            running.disconnected = True  # whoever reads the body is told that it ended
            running.message_event.set()
        else:
            begun = broken
        if not begun:
            self.transport.write(_answer(error))
        self.transport.close()


def _answer(error: ProblemError) -> bytes:
    problem = error.problem()
    body = msgspec.json.encode(problem)
    head = [
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}",
        f"content-type: {MEDIA_TYPE}",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body
