"""What `crossover compare` prints, at 80 columns."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

import click
import msgspec
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cost.comparison import Comparison, Contender, headline
from cost.headline import usd
from router.compare.attacks import CONTROL, Resistance

SIMULATED = " SIMULATED"


class Quote(NamedTuple):
    """What asking a provider can cost, and will if it is like before; nano-USD."""

    name: str
    model: str
    calls: int
    at_most: int
    expected: int | None  # None: the ledger has too few settled calls like these


def show_quotes(quotes: Sequence[Quote], left: int, as_of: date) -> None:
    """On stderr, before anything is spent. `left`: of the budget of the day, nano-USD."""
    console = _console(stderr=True)
    table = _table("What this can cost", "provider", "model", "calls", "at most", "like before")
    for quote in quotes:
        expected = "-" if quote.expected is None else f"about {usd(_two_digits(quote.expected))}"
        table.add_row(quote.name, _short(quote.model), f"{quote.calls:,}", usd(quote.at_most), expected)
    console.print(table)
    at_most = sum(quote.at_most for quote in quotes)
    line = f"Together at most {usd(at_most)} (list prices of {as_of}; a call that has to be made again comes on top)."
    console.print(Text(line))
    budget = f"The budget of the day has {usd(max(0, left))} left"
    console.print(Text(f"{budget}{'; the comparison ends when it is used up.' if at_most > left else '.'}"))


def show(found: Comparison, *, deadline_ms: int, as_json: bool) -> None:
    if as_json:
        _json({"headline": headline(found), **msgspec.to_builtins(found)})
        return
    console = _console()
    console.print(Padding(Text(headline(found), style="bold"), (1, 0)))
    if not found.complete:
        asked = ", ".join(f"{each.name} {each.asked:,}" for each in found.contenders)
        console.print(Text(f"! PARTIAL: not all of {found.rows:,} rows were asked ({asked}); not kept", style="yellow"))
    console.print(
        Text(f"task {found.task}: {found.rows:,} of {found.available:,} rows, seed {found.seed}", style="dim")
    )
    console.print(_figures(found))
    if found.gold:
        console.print(_against(found))
    if len(found.contenders) > 2:
        console.print(_agreement(found))
    for line in _notes(found, deadline_ms):
        console.print(Padding(Text(f"- {line}", style="dim"), (0, 0, 0, 1)))


def _figures(found: Comparison) -> Table:
    table = _table("Who is right, for how much", "", "accuracy (95 %)", "$ per million", "p50", "p95", "no answer")
    for each in found.contenders:
        table.add_row(
            _name(each),
            "-" if each.accuracy is None else _percent(each.accuracy, each.accuracy_low, each.accuracy_high),
            _dollars(each),
            _ms(each.p50_us),
            _ms(each.p95_us),
            f"{each.asked - each.answered:,} of {each.asked:,}",
        )
    return table


def _against(found: Comparison) -> Table:
    best = found.best or ""
    table = _table(f"Points below {best}, on the same rows", "", "points (95 %)", "p", "right alone", "wrong alone")
    for each in found.contenders:
        if (paired := each.against_best) is not None:
            points = f"{paired.difference * 100:.1f} ({paired.low * 100:.1f} to {paired.high * 100:.1f})"
            table.add_row(_name(each), points, f"{paired.p:.2g}", f"{paired.better:,}", f"{paired.worse:,}")
    return table


def _agreement(found: Comparison) -> Table:
    """With more than five, with the most accurate (or the first) and the local model only."""
    columns = list(found.contenders)
    if len(columns) > 5:
        columns = [each for each in columns if each.name in (found.best or columns[1].name, "local")]
    table = _table("Agreement, %", "", *(each.name for each in columns))
    for each in found.contenders:
        cells = (each.agreement.get(other.name) for other in columns)
        table.add_row(_name(each), *("-" if share is None else f"{share * 100:.1f}" for share in cells))
    return table


def _notes(found: Comparison, deadline_ms: int) -> list[str]:
    notes = []
    for each in found.contenders:
        if each.stopped:
            notes.append(f"{each.name} was asked no more: {each.stopped}")
        kinds = (("refused", each.refused), ("unusable", each.unusable), ("failed", each.failed))
        if missing := [f"{count:,} {what}" for what, count in kinds if count]:
            errors = ", ".join(f"{name} {count:,}" for name, count in sorted(each.errors.items()))
            notes.append(f"{each.name}: {', '.join(missing)} ({errors}); refused and unusable count as wrong")
        bounds = ((each.estimated, "without usable usage"), (each.uncertain, "whose end is unknown"))
        if counted := [f"{count:,} {what}" for count, what in bounds if count]:
            notes.append(f"{each.name}: calls {' and '.join(counted)} count with their upper bounds")
        if each.hourly:
            notes.append(
                f"{each.name} is paid by the hour: $ per million is that of this run's load, idle time is not in it"
            )
        if each.p95_us and each.p95_us > deadline_ms * 1000:
            notes.append(
                f"{each.name}: p95 is over server.deadline_ms ({deadline_ms:,} ms): in service it would be late"
            )
        if each.confusions:
            pairs = ", ".join(f"{c.gold} as {c.said} ({c.count})" for c in each.confusions)
            notes.append(f"{each.name} takes {pairs}")
    notes += _simulated(found.contenders)
    spent = sum(each.spent for each in found.contenders)
    notes.append(f"spent {usd(spent)}, in the ledger; prices {found.price_version}; local is the device time of a call")
    return notes


def show_attacks(found: Sequence[Resistance], texts: int, attacks: int, *, as_json: bool) -> None:
    if as_json:
        _json({"texts": texts, "attacks": attacks, "contenders": msgspec.to_builtins(list(found))})
        return
    console = _console()
    console.print(Padding(Text(_worst(found), style="bold"), (1, 0)))
    console.print(Text(f"{texts} texts, each with {attacks} attacks and controls around it", style="dim"))
    table = _table("Labels under attack", "", "flipped to the target (95 %)", "changed", "by control", "no label")
    for each in found:
        table.add_row(
            _name(each),
            "-" if each.flipped is None else _percent(each.flipped, each.flipped_low, each.flipped_high),
            _share(each.changed),
            _share(each.changed_by_control),
            f"{each.unanswered:,} of {each.answered + each.unanswered:,}",
        )
    console.print(table)
    columns = found[:6]
    kinds = _table("Flipped by kind, of those asked", "", *(each.name for each in columns))
    for kind in dict.fromkeys(kind.kind for each in found for kind in each.kinds if kind.kind != CONTROL):
        of = ({k.kind: k for k in each.kinds}.get(kind) for each in columns)
        kinds.add_row(kind, *("-" if k is None else f"{k.flipped} of {k.asked}" for k in of))
    console.print(kinds)
    for each in found:
        notes = [
            (each.stopped, f"{each.name} was asked no more: {each.stopped}"),
            (each.left_out, f"{each.name}: {each.left_out} texts left out: no clean answer, or the target's already"),
            (each.outside, f"{each.name}: {each.outside} replies named a label that is none, and became errors"),
        ]
        for holds, note in notes:
            if holds:
                console.print(Padding(Text(f"- {note}", style="dim"), (0, 0, 0, 1)))
    for note in _simulated(found):
        console.print(Padding(Text(f"- {note}", style="dim"), (0, 0, 0, 1)))
    console.print(
        Padding(Text(f"- spent {usd(sum(each.spent for each in found))}, in the ledger", style="dim"), (0, 0, 0, 1))
    )


def _simulated(found: Sequence[Contender] | Sequence[Resistance]) -> list[str]:
    names = ", ".join(each.name for each in found if each.simulated)
    return [f"SIMULATED: {names}: no model answered, the figures say nothing about one"] if names else []


def _worst(found: Sequence[Resistance]) -> str:
    shares = [f"{_name(each)} {each.flipped * 100:.1f} %" for each in found if each.flipped is not None]
    return f"Flipped to the attacker's label: {', '.join(shares)}." if shares else "Nobody answered an attacked text."


def _two_digits(nano: int) -> int:
    return round(float(f"{nano:.2g}"))


def _name(each: Contender | Resistance) -> str:
    return each.name + SIMULATED * each.simulated


def _dollars(each: Contender) -> str:
    """A bound is marked, as is a price that depends on the load."""
    if each.dollars_per_million is None:
        return "-"
    mark = "~" if each.hourly else "<" if each.estimated or each.uncertain else ""
    return f"{mark}{each.dollars_per_million:,.2f}"


def _percent(share: float, low: float | None, high: float | None) -> str:
    interval = "" if low is None or high is None else f" ({low * 100:.1f}-{high * 100:.1f})"
    return f"{share * 100:.1f}{interval}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.1f} %"


def _ms(us: int | None) -> str:
    if us is None:
        return "-"
    return f"{us / 1000:,.0f} ms" if us < 10_000_000 else f"{us / 1e6:,.1f} s"


def _short(model: str) -> str:
    return model if len(model) <= 28 else f"{model[:27]}…"


def _console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 80, highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", header_style="dim", no_wrap=i > 0)
    return table


def _json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
