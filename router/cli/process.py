"""One process that serves: uvicorn with the service in it, until a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import uvicorn
import uvloop

from cost.types import LedgerError
from router.app import create_app
from router.cache.embedded import EmbeddedRedisError
from router.cli.worker import Failed
from router.config_file import Loaded
from router.http.protocol import BoundedProtocol
from router.http.server import Server
from router.service import Service
from router.siblings import ALONE, Place

#: For the supervisor: the model can't be loaded or has died; start me again.
EXIT_MODEL = 70

Beside = Callable[[Service, Server, asyncio.Event], Coroutine[Any, Any, None]]


def serve_here(loaded: Loaded, listener: socket.socket, beside: Beside, place: Place = ALONE) -> Failed | None:
    """Blocks; gives why it could not be opened or died, None where it was asked to end.

    `beside(service, server, opened)` runs meanwhile; `opened` is set once connections are accepted.
    """
    # Until it is open: a failure is told by us in one line, not as the server's traceback.
    server_log = logging.getLogger("uvicorn.error")
    server_log.setLevel(logging.CRITICAL)
    fatal: list[str] = []
    opened = asyncio.Event()

    def on_fatal(reason: str) -> None:
        fatal.append(reason)
        server.should_exit = True

    def on_open() -> None:
        server_log.setLevel(logging.ERROR)  # it warns of every malformed request
        opened.set()

    app = create_app(loaded, on_fatal=on_fatal, place=place)
    service: Service = app.state.service
    server = Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=BoundedProtocol,
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # nothing here asks who the client is
        ),
        settings=lambda: service.config.server,
        leave=service.leave,
        opened=on_open,
    )
    for number in (signal.SIGINT, signal.SIGTERM):  # before uvicorn's own handlers, and after
        signal.signal(number, server.handle_exit)

    async def main() -> None:
        company = asyncio.create_task(beside(service, server, opened))
        company.add_done_callback(lambda _: server.leave())
        try:
            await server.serve(sockets=[listener])
            if server.force_exit:
                # A second Ctrl-C: nobody is waited for, but the books and Redis are closed all the same.
                await server.lifespan.shutdown()
        finally:
            company.cancel()
            with suppress(asyncio.CancelledError):
                await company

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(main())
        except SystemExit:  # the server's, when the service could not be opened
            if not fatal:
                failure: BaseException = app.state.failure
                if not isinstance(failure, LedgerError | EmbeddedRedisError | OSError | ValueError):
                    raise failure from None  # a defect of ours keeps its traceback
                return Failed(str(failure), 2)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the interpreter would put back the default on its way out
    return Failed(fatal[0], EXIT_MODEL) if fatal else None
