"""The report on a terminal, readable at 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cost.caveats import span
from cost.crossover import DAYS
from cost.headline import rounded, usd
from cost.report import CrossoverLine, Report


def show(report: Report, console: Console) -> None:
    """Print it. Text is never taken for markup."""
    console.print(Padding(Text(report.headline, style="bold"), (1, 0)))
    for warning in report.warnings:
        console.print(Text(f"! {warning}", style="yellow"))
    if report.inputs == 0:
        return
    counts = f"{report.inputs:,} inputs in {report.requests:,} requests over {span(report.days)}"
    console.print(Text(counts, style="dim"))
    console.print(_sources(report))
    if report.groups:
        console.print(_groups(report))
    console.print(_money(report))
    if report.crossover:
        console.print(_crossover(report))
    console.print(Text("\nWhat this stands on", style="bold"))
    for line in report.assumptions:
        console.print(Padding(Text(f"- {line}", style="dim"), (0, 0, 0, 1)))


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", header_style="dim", no_wrap=i > 0)
    return table


def _sources(report: Report) -> Table:
    table = _table("Who answered, and how fast", "", "inputs", "share", "cost", "p50", "p95", "p99")
    for line in report.sources:
        latency = (ms(line.p50_us), ms(line.p95_us), ms(line.p99_us))
        table.add_row(line.source, f"{line.inputs:,}", f"{line.share:.1%}", usd(line.cost_nano), *latency)
    for stage in report.stages:
        latency = (ms(stage.p50_us), ms(stage.p95_us), ms(stage.p99_us))
        table.add_row(Text(f"  stage {stage.stage}", style="dim"), f"{stage.inputs:,}", "", "", *latency)
    for what, counts in (("degraded", report.degraded), ("error", report.errors)):
        for reason, count in counts.items():
            table.add_row(f"{what}: {reason}", f"{count:,}", f"{count / report.inputs:.1%}")
    return table


def _groups(report: Report) -> Table:
    table = _table(f"By {report.by}", "", "inputs", "cache", "local", "frontier", "degraded", "cost")
    for line in report.groups:
        numbers = (line.inputs, line.cache, line.local, line.frontier, line.degraded)
        table.add_row(line.name, *(f"{n:,}" for n in numbers), usd(line.cost_nano))
    return table


def money_lines(report: Report) -> list[tuple[str, str]]:
    """What was spent, and what it would have been: (what, dollars)."""
    spend = report.spend
    lines = [("settled with providers", usd(spend.settled_nano))]
    for text, nano in (
        ("  of it estimated: the provider gave no usage", spend.estimated_nano),
        ("uncertain, at its upper bound", spend.uncertain_nano),
        ("set aside for calls in flight", spend.reserved_nano),
        ("  of all this in batches, at the batch price", spend.batch_nano),
        ("  of all this SIMULATED: paid to nobody", spend.simulated_nano),
    ):
        if nano:
            lines.append((text, usd(nano)))
    lines.append(("the local model's device time", usd(spend.local_nano)))
    lines.append(("this router", usd(report.paid_and_local_nano)))
    api = report.api_only
    if api.nano is not None:
        lines.append((f"API-only with the same cache ({api.calls:,} calls)", usd(api.nano)))
    return lines


def _money(report: Report) -> Table:
    table = _table("What it cost", "", "")
    for text, amount in money_lines(report):
        bold = "bold" if text.startswith(("this router", "API-only")) else ""
        table.add_row(Text(text, style=bold), Text(amount, style=bold))
    return table


def crossover_columns(report: Report) -> tuple[str, ...]:
    """Headings of the crossover's table."""
    saving = ("saves a month",) if report.volume is not None else ()
    return ("own model on", "pays from a month", "a day", *saving, "with $500 of work")


def crossover_cells(line: CrossoverLine) -> tuple[str, ...]:
    """One machine's row."""
    saving = (usd(line.saving_nano),) if line.saving_nano is not None else ()
    with_ops = "never" if line.crossing_with_ops is None else rounded(line.crossing_with_ops.last)
    if line.crossing is None:
        return (line.hardware.name, "never", "never", *saving, with_ops)
    month = rounded(line.crossing.last)
    if line.crossing.first < 0.98 * line.crossing.last:
        month = f"{rounded(line.crossing.first)}, for good {month}"
    return (line.hardware.name, month, rounded(line.crossing.last / DAYS), *saving, with_ops)


def _crossover(report: Report) -> Table:
    at = "" if report.volume is None else f", at {rounded(report.volume)} requests a month ({report.volume_basis})"
    table = _table(f"Where your own model starts to pay{at}", *crossover_columns(report))
    for line in report.crossover:
        table.add_row(*crossover_cells(line))
    return table


def ms(us: int) -> str:
    """Microseconds as readable milliseconds."""
    value = us / 1000
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 1 else f"{value:.2f} ms"
