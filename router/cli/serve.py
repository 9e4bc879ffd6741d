"""`crossover serve`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
import structlog
from click.core import ParameterSource

from providers.addresses import is_loopback
from router import paths, runfile
from router.cache.embedded import EmbeddedRedis, EmbeddedRedisError
from router.cli.options import config_option, config_or_exit, stop
from router.config_file import ConfigError, Loaded, default_path, ledger_path, load, load_tree
from router.reload import ConfigFile, follow

if TYPE_CHECKING:
    from router.cli.worker import Failed
    from router.http.server import Server
    from router.service import Service


@click.command()
@config_option
@click.option("--host", help="Address to listen on. [default: server.host]")
@click.option("--port", type=click.IntRange(0, 65535), help="0: any free one. [default: server.port]")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes that share the port. [default: server.workers]")
@click.option("--model", help="A sequence-classification model, as hub id or folder: serves it without a config.")
@click.option("--revision", help="The hub revision of --model (a commit).")
@click.pass_context
def serve(
    context: click.Context,
    config: Path | None,
    host: str | None,
    port: int | None,
    workers: int | None,
    model: str | None,
    revision: str | None,
) -> None:
    """Run the service until SIGTERM or Ctrl-C; it follows its config file meanwhile."""
    if revision and not model:
        raise click.UsageError("--revision belongs to --model; in a config it is `revision` beside `model`")
    if model and context.get_parameter_source("config") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--model serves a model without a config: give one of --model and --config")
    options = {"host": host, "port": port, "workers": workers}
    given = {name: value for name, value in options.items() if value is not None}
    if model:
        sys.exit(run(config_or_exit(lambda: with_options(of_model(model, revision), given)), None))
    file = ConfigFile(path := config or default_path(), partial(read, path, given))
    sys.exit(run(config_or_exit(file.read), file))


def read(path: Path, given: dict[str, str | int]) -> Loaded:
    """The config with the command's options. Raises ConfigError."""
    return with_options(load(path), given)


def with_options(loaded: Loaded, given: dict[str, str | int]) -> Loaded:
    """Options override file and environment. Raises ConfigError."""
    server = msgspec.structs.replace(loaded.config.server, **given)
    if not loaded.config.auth.keys and not is_loopback(server.host):
        why = f"{server.host} can be reached from other machines, but no [[auth.keys]] are configured; add a key first"
        raise ConfigError([why])
    return msgspec.structs.replace(loaded, config=msgspec.structs.replace(loaded.config, server=server))


def of_model(model: str, revision: str | None) -> Loaded:
    """A config with one task, the model itself; the environment overrides it, and it is checked like any other."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", Path(model).name)[:64] or "model"
    task = {"model": model, **({"revision": revision} if revision else {})}
    return load_tree({"tasks": {name: task}}, Path("--model"))


def run(loaded: Loaded, file: ConfigFile | None) -> int:
    """Serve; gives the exit code."""
    from router.logs import configure_logging

    configure_logging()
    for note in loaded.notes:
        click.echo(f"note: {note}", err=True)
    listener = bind(loaded.config.server.host, loaded.config.server.port)
    return (alone if loaded.config.server.workers == 1 else together)(loaded, file, listener)


def alone(loaded: Loaded, file: ConfigFile | None, listener: socket.socket) -> int:
    """In this process. Heavy imports happen here, after the config was found to be right."""
    from router.cli.process import serve_here

    url = url_of(listener)

    async def beside(service: Service, server: Server, opened: asyncio.Event) -> None:
        hangup = on_hangup(lambda: server.handle_exit(signal.SIGINT, None))
        await opened.wait()
        redis_url = service.redis_url if loaded.config.cache.url == "embedded" else ""
        with announced(url, loaded, redis_url):
            await follow(file, hangup, service.reload, service.telemetry.config_was_refused)

    failed = serve_here(loaded, listener, beside)
    if failed is not None:
        stop(failed.why, failed.code)
    return 0


def together(loaded: Loaded, file: ConfigFile | None, listener: socket.socket) -> int:
    """In several processes, of which this one is the parent."""
    from router.cli.workers import Workers

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the loop has its own handler: leave through the stack
    url = url_of(listener)
    # It holds the port and never listens. Bound without this, so that a port which somebody else shares is refused.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    redis = None
    if loaded.config.cache.url == "embedded":
        redis = EmbeddedRedis(paths.state_dir(), loaded.config.cache.memory_mb)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="crossover-"))
        if redis is not None:
            stack.callback(redis.stop)
            try:
                redis.start()
            except EmbeddedRedisError as error:
                structlog.get_logger("crossover").warning("embedded_redis", error=str(error))
                redis.stop()  # each worker tries, and tells /ready
        redis_url = redis.url if redis is not None else ""

        async def main() -> Failed | None:
            workers = Workers(
                loaded,
                listener.getsockname()[1],
                folder,
                redis,
                started=lambda: stack.enter_context(announced(url, loaded, redis_url)),
            )
            return await workers.run(file, on_hangup(lambda: workers.leave(signal.SIGINT)))

        failed = asyncio.run(main())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # Redis is stopped in peace
    if failed is not None:
        stop(failed.why, failed.code)
    return 0


@contextlib.contextmanager
def announced(url: str, loaded: Loaded, redis_url: str) -> Iterator[None]:
    """Say where it listens, and leave the run file for as long."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(runfile.announce(url, redis_url, ledger_path(loaded), loaded.path))
        except OSError as error:
            click.echo(f"note: `crossover cache` and `report` won't find this service unaided: {error}", err=True)
        click.echo(f"listening on {url}", err=True)
        yield


def on_hangup(end: Callable[[], None]) -> asyncio.Event:
    """Set by SIGHUP, which asks for a reload; or says that the terminal was closed: then `end` is called."""
    asked = asyncio.Event()
    terminal = _terminal_is_there()

    def hangup() -> None:
        if terminal and not _terminal_is_there():
            end()
        else:
            asked.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup)
    return asked


def _terminal_is_there() -> bool:
    try:
        os.tcgetpgrp(0)
    except OSError:
        return False
    return True


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{'[' + host + ']' if ':' in host else host}:{port}"


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket to listen on, or an exit with what to do. `shared`: with other processes of this user that say so too;
    the kernel spreads the connections over those that listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        stop(f"can't listen on {host}:{port}: {os.strerror(error.errno or 0)}; choose another with --port")
    return listener
