"""The report on a terminal, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cost.caveats import span
from cost.crossover import DAYS
from cost.headline import rounded, turning, usd
from cost.history import History, Share
from cost.options import Option
from cost.report import CrossoverLine, Report
from cost.whatif import Step


def show(report: Report, console: Console) -> None:
    """Print it. Text is never taken for markup."""
    console.print(Padding(Text(report.headline, style="bold"), (1, 0, 0, 0)))
    if report.options:
        console.print(_options(report))
        console.print(Padding(Text(turning_of(report)), (1, 0)))
    else:
        console.print()
    for warning in (*supposed(report), *report.warnings):
        console.print(Text(f"! {warning}", style="yellow"))
    if report.inputs == 0:
        return
    counts = f"{report.inputs:,} inputs in {report.requests:,} requests over {span(report.days)}"
    console.print(Text(counts, style="dim"))
    if report.history is not None:
        console.print(_sources(report, report.history))
    if report.shares:
        console.print(_shares(report))
    console.print(_money(report))
    if report.crossover:
        console.print(_crossover(report))
    if any(step.now for step in report.thresholds):
        console.print(_thresholds(report))
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


def turning_of(report: Report) -> str:
    """From where each machine's model pays."""
    return turning([(line.hardware.name, line.crossing) for line in report.crossover])


OPTION_COLUMNS = ("cheapest first", "a month", "with operations", "good enough?")
_ADEQUATE = {"measured": "measured", "assumed": "ASSUMED", "by definition": "same answers"}


def option_cells(option: Option) -> tuple[str, ...]:
    """One option: what, dollars a month without and with operations, whether its answers are good enough."""
    adequate = "NO: measured" if option.ruled_out else _ADEQUATE[option.adequate]
    return (option_name(option), usd(option.monthly_nano), usd(option.monthly_with_ops_nano), adequate)


def option_name(option: Option) -> str:
    """With the machine or the model it is about."""
    what = {"as now": "buy every answer, as now", "cheaper tier": "cheaper tier"}.get(option.name, option.name)
    about = option.hardware or (option.model if option.name in ("cheaper tier", "as now") else None)
    return f"{what} ({about})" if about else what


def why(option: Option) -> str:
    """Its basis, and whether its answers are good enough."""
    adequate = {
        "measured": "RULED OUT: " if option.ruled_out else "",
        "assumed": "ASSUMED good enough: ",
        "by definition": "",
    }[option.adequate]
    return adequate + option.basis


def _options(report: Report) -> Table:
    table = _table(f"At {rounded(report.ranked_at)} requests a month", *OPTION_COLUMNS)
    for i, option in enumerate(report.options):
        style = "bold" if i == 0 else "strike dim" if option.ruled_out else ""
        table.add_row(*option_cells(option), style=style)
    return table


def _sources(report: Report, history: History) -> Table:
    table = _table("Who answered, and how fast", "", "inputs", "share", "cost", "p50", "p95", "p99")
    for line in history.sources:
        latency = (ms(line.p50_us), ms(line.p95_us), ms(line.p99_us))
        table.add_row(line.source, f"{line.inputs:,}", f"{line.share:.1%}", usd(line.cost_nano), *latency)
    for stage in history.stages:
        latency = (ms(stage.p50_us), ms(stage.p95_us), ms(stage.p99_us))
        table.add_row(Text(f"  stage {stage.stage}", style="dim"), f"{stage.inputs:,}", "", "", *latency)
    for what, counts in (("degraded", history.degraded), ("error", history.errors)):
        for reason, count in counts.items():
            table.add_row(f"{what}: {reason}", f"{count:,}", f"{count / report.inputs:.1%}")
    return table


SHARE_COLUMNS = ("", "inputs", "cache", "local", "frontier", "paid", "local time", "of it all")


def share_cells(share: Share, report: Report) -> tuple[str, ...]:
    """One task's or tenant's row; the last cell is its part of the whole bill."""
    counts = (f"{n:,}" for n in (share.inputs, share.cache, share.local, share.frontier))
    whole = report.paid_and_local_nano
    part = f"{share.total_nano / whole:.1%}" if whole else "-"
    return (share.name, *counts, usd(share.paid_nano), usd(share.local_nano), part)


def _shares(report: Report) -> Table:
    table = _table(f"Whose bill it is, by {report.by}", *SHARE_COLUMNS)
    for share in report.shares:
        table.add_row(*share_cells(share, report))
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
    return ("own model on", "pays from a month", "a day", *saving, "with operations")


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


STEP_COLUMNS = ("threshold", "escalated", "a month", "frontier agrees")
QUALITY = (
    "How often the frontier agrees is of the texts that a threshold would answer locally beyond today's, where both "
    "have answered one; - where none was."
)


def supposed(report: Report) -> list[str]:
    """What was put in the place of what was measured, for the top of a report."""
    return [f"WHAT IF: {', '.join(report.supposed)}."] if report.supposed else []


def shown(steps: Sequence[Step]) -> list[Step]:
    """Today's threshold, and some around it that differ."""
    marks = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
    found: list[Step] = []
    for step in steps:
        same = found and (found[-1].escalated_low, found[-1].escalated_high) == (
            step.escalated_low,
            step.escalated_high,
        )
        if step.now or (not same and any(abs(step.threshold - mark) < 1e-9 for mark in marks)):
            found.append(step)
    return found


def step_cells(step: Step) -> tuple[str, ...]:
    """One threshold: escalated share and dollars a month, as ranges where only bounds are known."""
    share, cost = f"{step.escalated_high:.1%}", usd(step.monthly_high_nano)
    if step.escalated_low < step.escalated_high:
        share, cost = f"{step.escalated_low:.1%} to {share}", f"{usd(step.monthly_low_nano)} to {cost}"
    agreed = "-" if step.agreement is None else f"{step.agreement:.1%} of {step.judged:,}"
    return (f"{step.threshold:g}{' now' if step.now else ''}", share, cost, agreed)


def _thresholds(report: Report) -> Table:
    at = f"{report.threshold_on}, {rounded(report.ranked_at)} requests a month"
    table = _table(f"Cost and quality by threshold ({at})", *STEP_COLUMNS)
    for step in shown(report.thresholds):
        table.add_row(*step_cells(step), style="bold" if step.now else "")
    return table


def ms(us: int) -> str:
    """Microseconds as readable milliseconds; "-" for none."""
    if us == 0:
        return "-"
    value = us / 1000
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 1 else f"{value:.2f} ms"
