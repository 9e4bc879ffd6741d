"""uvicorn's HTTP protocol, with the bounds it lacks: how large a request's head may be, and how long it may take."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from router.http.errors import MEDIA_TYPE
from router.problems import ProblemError

HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 10.0


class BoundedProtocol(HttpToolsProtocol):
    """Request line and headers arrive within `HEAD_SECONDS` and `HEAD_BYTES` (and what one read of the socket adds), or
    the connection is answered and closed. What can't be parsed gets a problem too."""

    _head_is_complete = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_head()

    def on_message_begin(self) -> None:
        self._begin_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_is_complete = True
        self._stop_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        began_before = not self._head_is_complete
        super().data_received(data)
        if began_before and not self._head_is_complete:  # else the packet held the end of the request before
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(ProblemError("head-too-large", f"a request's head may have {HEAD_BYTES} bytes"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - its words are for developers
        self._refuse(ProblemError("bad-http", "this is not HTTP/1.1"))

    def _begin_head(self) -> None:
        self._head_is_complete = False
        self._head_bytes = 0
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(HEAD_SECONDS, self._head_is_late)

    def _head_is_late(self) -> None:
        if self._head_bytes == 0:  # a connection made ahead of need: there is nothing to answer
            self._stop_timer()
            self.transport.close()
            return
        self._refuse(ProblemError("slow-head", f"a request's head must arrive within {HEAD_SECONDS:g} s"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, error: ProblemError) -> None:
        self._stop_timer()
        transport = cast("Any", self.transport)
        if transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # What is wrong came behind a request that is being answered: that answer is the connection's last.
            self.pipeline.clear()
            self.flow.pause_reading()
            self.shutdown()
            return
        problem = error.problem()
        body = msgspec.json.encode(problem)
        head = [
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}",
            f"content-type: {MEDIA_TYPE}",
            f"content-length: {len(body)}",
            "connection: close",
        ]
        transport.write("\r\n".join([*head, "", ""]).encode() + body)
        transport.close()
