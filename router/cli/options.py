"""What several commands share: how they fail, which config they read, which service they mean."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import click

from router.config_file import ConfigError, Loaded, load

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="CROSSOVER_CONFIG",
    help="Config file. [default: ./crossover.toml, else the one shipped]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


def load_or_exit(path: Path | None, *, serving: bool = True) -> Loaded:
    """All problems on stderr and exit code 2. `serving` false: for commands that only read, which need no API keys."""
    try:
        return load(path, serving=serving)
    except ConfigError as error:
        count = len(error.problems)
        click.echo(f"{count} problem{'s' if count > 1 else ''} in the config:", err=True)
        for problem in error.problems:
            click.echo(f"  {problem}", err=True)
        sys.exit(2)


def stop(message: str, code: int = 2) -> NoReturn:
    click.echo(f"crossover: {message}", err=True)
    sys.exit(code)
