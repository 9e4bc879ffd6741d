"""`crossover serve`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
import structlog
from click.core import ParameterSource

from local_model.types import LoadError
from router.cli.options import config_option, config_or_exit, load_or_exit, starting, stop
from router.config_checks import is_loopback
from router.config_file import ConfigError, Loaded, load, load_tree
from router.problems import ProblemError

if TYPE_CHECKING:
    from router.service import Service

#: For the supervisor: the model can't be loaded or has died; start me again.
EXIT_MODEL = 70


@click.command()
@config_option
@click.option("--host", help="Address to listen on. [default: server.host]")
@click.option("--port", type=click.IntRange(0, 65535), help="0: any free one. [default: server.port]")
@click.option("--model", help="A sequence-classification model, as hub id or folder: serves it without a config.")
@click.option("--revision", help="The hub revision of --model (a commit).")
@click.pass_context
def serve(
    context: click.Context,
    config: Path | None,
    host: str | None,
    port: int | None,
    model: str | None,
    revision: str | None,
) -> None:
    """Run the service until SIGTERM or Ctrl-C."""
    if revision and not model:
        raise click.UsageError("--revision belongs to --model; in a config it is `revision` beside `model`")
    if model and context.get_parameter_source("config") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--model serves a model without a config: give one of --model and --config")
    loaded = of_model(model, revision) if model else load_or_exit(config)
    server = loaded.config.server
    server = msgspec.structs.replace(server, host=host or server.host, port=server.port if port is None else port)
    loaded = msgspec.structs.replace(loaded, config=msgspec.structs.replace(loaded.config, server=server))
    if not loaded.config.auth.keys and not is_loopback(server.host):
        stop(f"{server.host} can be reached from other machines, but no [[auth.keys]] are configured; add a key first")
    sys.exit(run(loaded))


def of_model(model: str, revision: str | None) -> Loaded:
    """A config with one task, the model itself; the environment overrides it, and it is checked like any other."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", Path(model).name)[:64] or "model"
    task = {"model": model, **({"revision": revision} if revision else {})}
    return config_or_exit(lambda: load_tree({"tasks": {name: task}}, Path("--model")))


def run(loaded: Loaded) -> int:
    """Serve; gives the exit code. Heavy imports happen here, after the config was found to be right."""
    import uvicorn

    from router import runfile
    from router.app import create_app
    from router.http.protocol import BoundedProtocol
    from router.telemetry import configure_logging

    configure_logging()
    # Until it is started: a failure is told by us in one line, not as the server's traceback.
    server_log = logging.getLogger("uvicorn.error")
    server_log.setLevel(logging.CRITICAL)
    for note in loaded.notes:
        click.echo(f"note: {note}", err=True)
    config = loaded.config.server
    listener = bind(config.host, config.port)
    host, port = listener.getsockname()[:2]
    url = f"http://{'[' + host + ']' if ':' in host else host}:{port}"
    fatal: list[str] = []
    server: uvicorn.Server

    def on_fatal(reason: str) -> None:
        fatal.append(reason)
        server.should_exit = True

    app = create_app(loaded, on_fatal=on_fatal)
    service = app.state.service
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=BoundedProtocol,
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # nothing here asks who the client is
            timeout_graceful_shutdown=config.drain_s,
        )
    )

    # Before and after uvicorn's own handlers: it raises every signal that it got once more for whoever was there first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))

    terminal = _terminal_is_there()

    async def main() -> None:
        started = asyncio.create_task(_announce_when_open())
        reloads: set[asyncio.Task[None]] = set()

        def reload() -> None:
            if terminal and not _terminal_is_there():
                server.should_exit = True
                return
            task = asyncio.create_task(_reload(service, loaded))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        try:
            await server.serve(sockets=[listener])
            if server.force_exit:
                # A second Ctrl-C: nobody is waited for, but the books and Redis are closed all the same.
                await server.lifespan.shutdown()
        finally:
            started.cancel()

    async def _announce_when_open() -> None:
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        server_log.setLevel(logging.WARNING)
        embedded = service.redis_url if loaded.config.cache.url == "embedded" else ""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(runfile.announce(url, embedded, service.ledger_path, loaded.path))
            except OSError as error:
                click.echo(f"note: `crossover cache` and `report` won't find this service unaided: {error}", err=True)
            click.echo(f"listening on {url}", err=True)
            await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=_uvloop()) as runner:
        try:
            runner.run(main())
        except SystemExit:  # the server's, when the service could not be opened
            with starting():
                raise app.state.failure from None
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the interpreter would put back the default on its way out
    if fatal:
        click.echo(f"crossover: {fatal[0]}", err=True)
        return EXIT_MODEL
    return 0


async def _reload(service: Service, first: Loaded) -> None:
    """SIGHUP: read the config again and swap tasks and model; whatever is wrong is told, and changes nothing."""
    log = structlog.get_logger("crossover")
    try:
        if not first.path.is_file():
            raise LoadError("this service was started with --model: there is no config to read again")
        await service.reload(await asyncio.to_thread(load, first.path))
    except Exception as error:  # noqa: BLE001 - whatever it is, what serves now serves on
        told = isinstance(error, ConfigError | LoadError | ProblemError)
        why = str(error) if told else f"{type(error).__name__}: {error}"
        log.error("reload_failed", error=why, kept="the old config and model serve on")  # noqa: TRY400


def _terminal_is_there() -> bool:
    """SIGHUP also says that the terminal was closed."""
    try:
        os.tcgetpgrp(0)
    except OSError:
        return False
    return True


def _uvloop() -> Any:
    import uvloop

    return uvloop.new_event_loop


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, or an exit with what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        stop(f"can't listen on {host}:{port}: {os.strerror(error.errno or 0)}; choose another with --port")
    return listener
