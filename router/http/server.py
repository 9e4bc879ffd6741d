"""uvicorn's server, leaving politely: first /ready turns red while requests are still answered, then it drains."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from router.config import Server as Settings

CLOSE = (b"connection", b"close")


class Server(uvicorn.Server):
    """SIGTERM: `leave()` is called, answers end their connections, and after `leave_s` nothing new is accepted; what is
    in flight has `drain_s`. SIGINT: that at once; a second one waits for nobody. `settings()` is the config of now."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        settings: Callable[[], Settings],
        leave: Callable[[], None],
        opened: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._settings = settings
        self._leave = leave
        self._opened = opened
        self._leaves_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        if sig == signal.SIGINT:
            self.force_exit = self.should_exit or self._leaves_at is not None
            self.should_exit = True
        else:
            self.leave()

    def leave(self) -> None:
        """What SIGTERM does. Called again, it changes nothing."""
        if not self.started:
            self.should_exit = True
        elif self._leaves_at is None:
            self._leaves_at = time.monotonic() + self._settings().leave_s
            self._leave()
            self.config.encoded_headers.append(CLOSE)
            self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._opened()

    async def on_tick(self, counter: int) -> bool:
        if self._leaves_at is not None and time.monotonic() >= self._leaves_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.timeout_graceful_shutdown = self._settings().drain_s
        await super().shutdown(sockets)
