"""What several commands share: how they fail, which config they read, which service they mean."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

import click

from router import paths, runfile
from router.config_file import ConfigError, Loaded, ledger_path, load
from router.runfile import RunFile

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="CROSSOVER_CONFIG",
    help="Config file. [default: ./crossover.toml, else the one shipped]",
)
reading_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="CROSSOVER_CONFIG",
    help="Config file. [default: the running service's, else ./crossover.toml, else the one shipped]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
ledger_option = click.option(
    "--ledger",
    "ledgers",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Ledger file; several are read as one. [default: the running service's, else the config's]",
)


class Books(NamedTuple):
    """What a command that only reads is about."""

    loaded: Loaded
    ledger: Path
    state_dir: Path
    service: RunFile | None  # the running one, if it is meant


def books(config: Path | None) -> Books:
    """Of `--config` if it is given, else of the running service, else of the default config."""
    service = next(iter(runfile.running()), None) if config is None else None
    if service is None:
        loaded = load_or_exit(config, serving=False)
        return Books(loaded, ledger_path(loaded), paths.state_dir(), None)
    # A service of `--model` has no file: the default config stands in for it.
    loaded = load_or_exit(Path(service.config) if Path(service.config).exists() else None, serving=False)
    ledger = ledger_path(loaded) if ("ledger", "path") in loaded.overridden else Path(service.ledger)
    return Books(loaded, ledger, Path(service.state_dir), service)


def load_or_exit(path: Path | None, *, serving: bool = True) -> Loaded:
    """All problems on stderr and exit code 2. `serving` false: for commands that only read, which need no API keys."""
    return config_or_exit(lambda: load(path, serving=serving))


def config_or_exit(read: Callable[[], Loaded]) -> Loaded:
    try:
        return read()
    except ConfigError as error:
        count = len(error.problems)
        click.echo(f"{count} problem{'s' if count > 1 else ''} in the config:", err=True)
        for problem in error.problems:
            click.echo(f"  {problem}", err=True)
        sys.exit(2)


def this_command() -> str:
    """How this command was called, for commands that a person copies."""
    called = Path(sys.argv[0])
    on_path = shutil.which("crossover")
    if called.name != "crossover" or (on_path and Path(on_path).resolve() == called.resolve()):
        return "crossover"
    return shlex.quote(str(called))


@contextmanager
def starting() -> Iterator[None]:
    """Around the start of a service: a ledger, a Redis or a provider that can't be opened is one line and exit code 2.

    What is none of these is a defect of ours, and keeps its traceback.
    """
    from cost.types import LedgerError
    from router.cache.embedded import EmbeddedRedisError

    try:
        yield
    except (LedgerError, EmbeddedRedisError, OSError, ValueError) as error:
        stop(str(error))


def stop(message: str, code: int = 2) -> NoReturn:
    click.echo(f"crossover: {message}", err=True)
    sys.exit(code)
