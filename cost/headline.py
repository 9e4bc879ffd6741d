"""The report in a sentence or two: the answer somebody asked for, "don't self-host" and "no crossover" included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cost.crossover import DAYS, Crossing
from cost.options import advice

if TYPE_CHECKING:
    from cost.report import Report


#: Below so many frontier calls the first sentence says that it is a guess.
FEW_CALLS = 20


def headline(report: Report) -> str:
    """Says what is cheapest at the volume asked about, what it costs and what buying every answer does."""
    if report.inputs == 0:
        return "The ledger has no requests yet, so there is nothing to report."
    if report.traffic is None:
        return _nothing_to_compare(report)
    told = " (Simulated frontier, real list prices.)" if report.simulated else ""
    if report.api_only.measured_calls < FEW_CALLS:
        count = report.api_only.measured_calls
        told += f" (From {count} frontier call{'' if count == 1 else 's'} only: a rough guess.)"
    best, example = report.options[0], "" if report.volume else " (an example: name yours with --volume)"
    now = next(option for option in report.options if option.name == "as now")
    cost = f"{usd(best.monthly_nano)} a month"
    if best.monthly_with_ops_nano != best.monthly_nano:
        cost += f", {usd(best.monthly_with_ops_nano)} with operations"
    instead = "" if best is now else f"; buying every answer as now costs {usd(now.monthly_nano)}"
    at = f"At {rounded(report.ranked_at)} requests a month{example}"
    return f"{at}: {advice(report.options)} That is {cost}{instead}.{told}"


def turning(turns: Sequence[tuple[str, Crossing | None]]) -> str:
    """From where each machine's model pays, in a sentence."""
    reached = sorted((turn.last, name) for name, turn in turns if turn is not None)
    never = [_on(name) for name, turn in turns if turn is None]
    if not reached:
        return (
            f"No crossover: buying every answer is cheaper at any volume than your own model on {' or '.join(never)}."
        )
    pays = "; ".join(
        f"{'from' if i else 'pays from'} {rounded(last)} requests a month ({rounded(last / DAYS)} a day) on {_on(name)}"
        for i, (last, name) in enumerate(reached)
    )
    return f"Your own model {pays}{'; never on ' + ' or '.join(never) if never else ''}."


def usd(nano: int) -> str:
    """As many digits as say something: $1,234, $12.30, $0.0042, $0.000012."""
    size, sign = abs(nano) / 1e9, "-" if nano < 0 else ""
    if size == 0:
        return "$0"
    if size >= 1000:
        return f"{sign}${size:,.0f}"
    if size >= 0.1:
        return f"{sign}${size:,.2f}"
    if size >= 0.01:
        return f"{sign}${size:.4f}"
    digits = 2 - math.floor(math.log10(size))
    return f"{sign}${size:.{digits}f}".rstrip("0")


def rounded(volume: float) -> str:
    """Three digits are all that such a figure has: 230,000 or 1.62 million."""
    value = float(f"{volume:.3g}")
    return f"{value / 1e6:,g} million" if value >= 1e6 else f"{value:,.0f}"


def _on(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' or name.startswith(('L4', 'H1', 'H2')) else 'a'} {name}"


def _nothing_to_compare(report: Report) -> str:
    if report.history is not None and sum(report.history.errors.values()) == report.inputs:
        return "No crossover can be computed: every request failed, nothing was answered."
    if report.api_only.calls == 0:
        return "No crossover: the cache answered everything, so there was nothing to buy and nothing to compute."
    return "No crossover can be computed: no frontier call was settled, so what an answer costs to buy is unknown."
