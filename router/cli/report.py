"""`crossover report`: reads the books, starts no service and no model."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import click

from router.cli.options import books, json_option, ledger_option, reading_option, stop

_MULTIPLES = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}
_SPANS = {"m": 1 / 1440, "h": 1 / 24, "d": 1, "w": 7}


class Volume(click.ParamType[int]):
    """`2M`, `2M/month`, `70k/day`: requests a month."""

    name = "volume"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"([\d_.,]+(?:e\+?\d+)?)\s*([kmb]?)(?:/(month|day))?", str(value).strip().lower())
        try:
            assert found is not None
            number, multiple, per = found.groups()
            volume = float(number.replace(",", "").replace("_", "")) * _MULTIPLES[multiple]
        except (AssertionError, ValueError):
            self.fail(f"{value!r} is not a volume; write 2M, 2M/month or 70k/day", param, ctx)
        if not 1 <= volume <= 1e15:
            self.fail("a volume is at least 1, and at most 1e15", param, ctx)
        return round(volume * 730 / 24) if per == "day" else round(volume)


class Share(click.ParamType[float]):
    """`0.3` or `30%`: a share."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is not a share; write 0.3 or 30%", param, ctx)
        return share


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


@click.command()
@click.option("--since", type=Since(), metavar="7d|DATE", help="Only from then on (a span, or a UTC date).")
@click.option("--by", type=click.Choice(["task", "tenant"]), help="A table of tasks or tenants.")
@click.option("--volume", type=Volume(), metavar="N", help="Requests to compute for: 2M, 2M/month, 70k/day.")
@click.option("--threshold", type=Share(), metavar="X", help="What if: escalate below this confidence.")
@click.option("--hit", type=Share(), metavar="X", help="What if: the cache answers this share.")
@click.option(
    "--prices",
    "price_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="What if: the calls were priced by this table (cost/data has the form).",
)
@json_option
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page that needs no network.")
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Write the chart.")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), help="Write the chart.")
@ledger_option
@reading_option
def report(
    since: int | None,
    by: Literal["task", "tenant"] | None,
    volume: int | None,
    threshold: float | None,
    hit: float | None,
    price_file: Path | None,
    as_json: bool,
    html: Path | None,
    png: Path | None,
    svg: Path | None,
    ledgers: tuple[Path, ...],
    config: Path | None,
) -> None:
    """What to do about the bill: the options in dollars a month, cost, latency, and from where your own model pays."""
    import msgspec

    from cost.comparison import all_kept
    from cost.prices import PriceTable
    from cost.report import Supposed, build
    from cost.types import LedgerError
    from router import reporting

    found = books(config)
    configured = found.loaded.config
    try:
        table = reporting.price_table(configured)
        other = None if price_file is None else PriceTable.load(files=[price_file])
        made = build(
            list(ledgers) or [found.ledger],
            since_us=since,
            by=by,
            volume_per_month=volume,
            hardware=reporting.hardware(configured),
            prices=table,
            comparisons=all_kept(found.state_dir / "compare"),
            supposed=Supposed(threshold, hit, other),
        )
    except LedgerError as error:
        stop(str(error))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(made), indent=2).decode())
    else:
        from rich.console import Console

        from cost import terminal

        terminal.show(made, Console(width=None if sys.stdout.isatty() else 80, highlight=False))
    if made.traffic is not None and (png or svg):
        from cost import chart

        if png is not None:
            _write(png, chart.png(made))
        if svg is not None:
            _write(svg, chart.svg(made).encode())
    if html is not None:
        from cost.page import page

        _write(html, page(made, other or table).encode())
    if made.traffic is None and (png or svg):
        stop(f"no chart written: {made.headline}", 1)


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        stop(f"{path} can't be written: {error.strerror}")
    click.echo(f"wrote {path}", err=True)
