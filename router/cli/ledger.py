"""`crossover ledger`: the books of one request, and whether they add up."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from router.cli.options import books, json_option, ledger_option, reading_option, stop


@click.group()
def ledger() -> None:
    """The books: show a request, verify the file."""


@ledger.command()
@click.argument("request_id", metavar="ID")
@json_option
@ledger_option
@reading_option
def show(request_id: str, as_json: bool, ledgers: tuple[Path, ...], config: Path | None) -> None:
    """Every row and every paid call of the request ID. Exits 1 if there is none."""
    import msgspec

    from cost.schema import connect_readonly
    from cost.types import LedgerError

    try:
        db = connect_readonly(ledgers or [books(config).ledger])
    except LedgerError as error:
        stop(str(error))
    found = {}
    for table in ("inputs", "attempts"):
        rows = db.execute(f"SELECT * FROM {table} WHERE request_id = ? ORDER BY idx", (request_id,))  # noqa: S608
        columns = [column for column, *_ in rows.description]
        found[table] = [dict(zip(columns, map(_plain, row), strict=True)) for row in rows]
    db.close()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    elif any(found.values()):
        _print(found)
    if not any(found.values()):
        stop(f"the ledger has nothing of {request_id!r}", code=1)


@ledger.command()
@json_option
@ledger_option
@reading_option
def verify(as_json: bool, ledgers: tuple[Path, ...], config: Path | None) -> None:
    """Do the books add up? Works on a live file, changes nothing. Exits 1 if something is wrong."""
    import msgspec

    from cost.schema import connect_readonly
    from cost.types import LedgerError
    from cost.verify import verify as check

    wrong = False
    report = {}
    paths = ledgers or (books(config).ledger,)
    for path in paths:
        if not path.exists():  # said as by `report`
            try:
                connect_readonly([path]).close()
            except LedgerError as error:
                stop(str(error))
    for path in paths:
        findings = report[str(path)] = check(path)
        wrong |= any(finding.severity == "error" for finding in findings)
        if not as_json:
            for finding in findings:
                click.echo(f"{finding.severity}: {finding.check}: {finding.detail}")
            errors = sum(finding.severity == "error" for finding in findings)
            found = f"{errors} finding{'s' if errors > 1 else ''}"
            click.echo(f"{path}: {found if errors else 'the books add up'}")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    sys.exit(1 if wrong else 0)


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _shown(name: str, value: Any) -> str:
    """Money in dollars; a moment as it is stored (microseconds since 1970) and as a UTC time."""
    from cost.headline import usd

    if name in ("at_us", "settled_us"):
        return f"{value}  {datetime.fromtimestamp(value / 1e6, UTC).isoformat(timespec='milliseconds')}"
    return usd(value) if name.endswith("_nano") else str(value)


def _print(found: dict[str, list[dict[str, Any]]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for table, rows in found.items():
        for row in rows:
            title = f"input {row['idx']}" if table == "inputs" else f"  paid call {row['id']} for input {row['idx']}"
            console.print(Text(f"\n{title}", style="bold"))
            lines = Table(box=None, show_header=False, padding=(0, 2))
            for name, value in row.items():
                if value not in (None, "", 0) and name not in ("id", "idx", "request_id"):
                    lines.add_row(Text(name, style="dim"), Text(_shown(name, value)))
            console.print(lines)
