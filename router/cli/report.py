"""`crossover report`: reads the books, starts no service and no model."""

from __future__ import annotations

import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from router.cli.options import config_option, json_option, stop
from router.paths import state_dir

if TYPE_CHECKING:
    from cost.crossover import Hardware
    from cost.prices import PriceTable

_MULTIPLES = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}
_SPANS = {"m": 1 / 1440, "h": 1 / 24, "d": 1, "w": 7}


class Volume(click.ParamType[int]):
    """`2M`, `2M/month`, `70k/day`: requests a month."""

    name = "volume"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"([\d_.,]+)\s*([kmb]?)(?:/(month|day))?", str(value).strip().lower())
        try:
            assert found is not None
            number, multiple, per = found.groups()
            volume = float(number.replace(",", "").replace("_", "")) * _MULTIPLES[multiple]
        except (AssertionError, ValueError):
            self.fail(f"{value!r} is not a volume; write 2M, 2M/month or 70k/day", param, ctx)
        if volume < 1:
            self.fail("a volume is at least 1", param, ctx)
        return round(volume * 730 / 24) if per == "day" else round(volume)


class Since(click.ParamType[int]):
    """`7d`, `12h` or a UTC date: unix microseconds."""

    name = "since"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        if found := re.fullmatch(r"(\d+)([mhdw])", text):
            moment = datetime.now(UTC) - timedelta(days=int(found[1]) * _SPANS[found[2]])
            return int(moment.timestamp() * 1e6)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{value!r} is neither a span (30m, 12h, 7d, 2w) nor a date (2026-11-21)", param, ctx)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e6)


ledger_option = click.option(
    "--ledger",
    "ledgers",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Ledger file; several are read as one. [default: the running service's, else the one in the state folder]",
)


@click.command()
@click.option("--since", type=Since(), metavar="7d|DATE", help="Only from then on (a span, or a UTC date).")
@click.option("--by", type=click.Choice(["task", "tenant"]), help="A table of tasks or tenants.")
@click.option("--volume", type=Volume(), metavar="N", help="Requests to compute for: 2M, 2M/month, 70k/day.")
@json_option
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page that needs no network.")
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Write the chart.")
@ledger_option
@config_option
def report(
    since: int | None,
    by: Literal["task", "tenant"] | None,
    volume: int | None,
    as_json: bool,
    html: Path | None,
    png: Path | None,
    ledgers: tuple[Path, ...],
    config: Path | None,
) -> None:
    """Cost, latency, savings, and the volume at which your own model pays."""
    import msgspec

    from cost.report import build
    from cost.types import LedgerError

    hardware, prices = _configured(config)
    paths = list(ledgers) or [_ledger_path()]
    try:
        made = build(paths, since_us=since, by=by, volume_per_month=volume, hardware=hardware, prices=prices)
    except LedgerError as error:
        stop(str(error))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(made), indent=2).decode())
    else:
        from rich.console import Console

        from cost import terminal

        terminal.show(made, Console(width=None if sys.stdout.isatty() else 80, highlight=False))
    if png is not None:
        from cost import chart

        if made.traffic is None:
            click.echo(f"no chart written: {made.headline}", err=True)
        else:
            _write(png, chart.png(made))
    if html is not None:
        from cost.page import page

        _write(html, page(made).encode())


def _ledger_path() -> Path:
    """The running service's ledger, else the one the environment names, else the state folder's."""
    from router import runfile

    named = os.environ.get("CROSSOVER_LEDGER__PATH")
    if named:
        return Path(named).expanduser()
    running = runfile.running()
    return Path(running[0].ledger) if running else state_dir() / "ledger.db"


def _configured(config: Path | None) -> tuple[list[Hardware] | None, PriceTable | None]:
    """[hardware] and prices of the config named with --config; the defaults without one."""
    if config is None:
        return None, None
    from router import reporting
    from router.cli.options import load_or_exit

    loaded = load_or_exit(config, serving=False).config
    return reporting.hardware(loaded), reporting.price_table(loaded)


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        stop(f"{path} can't be written: {error.strerror}")
    click.echo(f"wrote {path}", err=True)
