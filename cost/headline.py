"""The report in one sentence: the answer somebody asked for, "no crossover" included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cost.crossover import DAYS, api_nano

if TYPE_CHECKING:
    from cost.report import CrossoverLine, Report


#: Below so many frontier calls the first sentence says that it is a guess.
FEW_CALLS = 20


def headline(report: Report) -> str:
    """Says what is cheaper, from which volume on, and by how much at the volume asked about."""
    if report.inputs == 0:
        return "The ledger has no requests yet, so there is nothing to report."
    if report.traffic is None:
        return _nothing_to_compare(report)
    told = " (Simulated frontier, real list prices.)" if report.simulated else ""
    if report.api_only.measured_calls < FEW_CALLS:
        count = report.api_only.measured_calls
        told += f" (From {count} frontier call{'' if count == 1 else 's'} only: a rough guess.)"
    reached = [line for line in report.crossover if line.crossing is not None]
    if not reached:
        machines = " or ".join(_on(line) for line in report.crossover)
        return f"No crossover: buying every answer is cheaper at any volume than your own model on {machines}.{told}"
    if report.volume is None:
        best = min(reached, key=_turn)
        return f"Your own model on {_on(best)} pays from {_from(best)} on.{told}"
    best = max(reached, key=lambda line: line.saving_nano or 0)
    saving, at = best.saving_nano or 0, f"At {rounded(report.volume)} requests a month"
    bought = usd(round(api_nano(report.traffic, report.volume)))
    if saving > 0:
        return (
            f"{at} your own model on {_on(best)} saves {usd(saving)} of the {bought} that buying every answer costs; "
            f"it pays from {_from(best)} on.{told}"
        )
    return (
        f"{at} buy the answers: that costs {bought}, {usd(-saving)} less than your own model on {_on(best)}, "
        f"which pays from {_from(best)} on.{told}"
    )


def usd(nano: int) -> str:
    """As many digits as say something: $1,234, $12.30, $0.0042, $0.000000160."""
    size, sign = abs(nano) / 1e9, "-" if nano < 0 else ""
    if size == 0:
        return "$0"
    if size >= 1000:
        return f"{sign}${size:,.0f}"
    if size >= 0.1:
        return f"{sign}${size:,.2f}"
    return f"{sign}${size:.4f}" if size >= 0.01 else f"{sign}${size:.9f}".rstrip("0")


def rounded(volume: float) -> str:
    """Three digits are all that such a figure has: 230,000 or 1.62 million."""
    value = float(f"{volume:.3g}")
    return f"{value / 1e6:,g} million" if value >= 1e6 else f"{value:,.0f}"


def _turn(line: CrossoverLine) -> int:
    assert line.crossing is not None
    return line.crossing.last


def _from(line: CrossoverLine) -> str:
    return f"{rounded(_turn(line))} requests a month ({rounded(_turn(line) / DAYS)} a day)"


def _on(line: CrossoverLine) -> str:
    name = line.hardware.name
    return f"{'an' if name[:1].lower() in 'aeiou' or name.startswith('L4') else 'a'} {name}"


def _nothing_to_compare(report: Report) -> str:
    if sum(report.errors.values()) == report.inputs:
        return "No crossover can be computed: every request failed, nothing was answered."
    if report.api_only.calls == 0:
        return "No crossover: the cache answered everything, so there was nothing to buy and nothing to compute."
    return "No crossover can be computed: no frontier call was settled, so what an answer costs to buy is unknown."
