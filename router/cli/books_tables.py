"""What `crossover ledger` prints for people."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cost.reconcile import Reconciliation


def moment(us: int, to: str = "minutes") -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec=to)


def _shown(name: str, value: Any) -> str:
    """Money in dollars; a moment as it is stored (microseconds since 1970) and as a UTC time."""
    from cost.headline import usd

    if name in ("at_us", "settled_us"):
        return f"{value}  {moment(value, 'milliseconds')}"
    return usd(value) if name.endswith("_nano") else str(value)


def print_rows(found: dict[str, list[dict[str, Any]]]) -> None:
    """Of `crossover ledger show`."""
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


def print_reconciled(found: Reconciliation) -> None:
    """For each day and model what the provider says, and below it what the ledger has, where that is another figure."""
    from cost.headline import usd

    for line in found.lines:
        day = date.fromordinal(date(1970, 1, 1).toordinal() + line.day).isoformat()
        click.echo(f"{day}  {line.model}: {line.status}, {line.calls:,} calls")
        if line.status == "equal":
            continue
        for name, amount in (("prompt tokens", line.prompt), ("output tokens", line.output), ("cost", line.cost_nano)):
            if amount.billed is not None and amount.billed != amount.known:
                billed, known = (usd(n) if name == "cost" else f"{n:,}" for n in (amount.billed, amount.known))
                click.echo(f"            {name}: {billed} billed, {known} in the ledger")
        for reason, nano in sorted(line.why.items()):
            click.echo(f"            of the ledger's, {reason}: {usd(nano)}")
    if found.replies is not None:
        replies = found.replies
        click.echo(f"replies: {replies.equal} equal")
        for names, what in (
            (replies.different, "differ in tokens or dollars"),
            (replies.not_in_ledger, "are not in the ledger"),
            (replies.not_in_export, "are not in the export"),
        ):
            if names:
                click.echo(f"replies: {len(names)} {what}, such as {names[0]}")
    for model, calls in sorted(found.not_compared.items()):
        click.echo(f"not compared: {calls} calls of {model}, which no export has")
    click.echo("the ledger and the providers agree" if found.holds else "there are differences that nothing explains")
