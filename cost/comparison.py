"""What a comparison of classifiers on one sample found: pure numbers, no text. `crossover compare` makes and keeps it.

The question is which classifier is the cheapest adequate one: at most `within` points less accurate than the most
accurate, on the same rows.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from cost.schema import connect_readonly
from cost.types import LedgerError

#: What the request ids of a comparison's calls begin with: they are paid, and no traffic.
REQUESTS = "cmp_"
Z = 1.959964  # two-sided 95 %
#: Past calls that say what a call costs.
ENOUGH_CALLS = 20


class Paired(msgspec.Struct, frozen=True):
    """Against the most accurate, on the rows that both were judged on. Shares of rows, positive: worse than it."""

    rows: int
    better: int  # right where the most accurate was wrong
    worse: int  # wrong where the most accurate was right
    difference: float  # accuracy lost against the most accurate
    low: float
    high: float
    p: float  # McNemar's, exact

    @classmethod
    def of(cls, better: int, worse: int, rows: int) -> Paired:
        low, high = paired_interval(better, worse, rows)
        return cls(rows, better, worse, (worse - better) / rows, low, high, mcnemar(better, worse))


class Confusion(msgspec.Struct, frozen=True):
    gold: str
    said: str
    count: int


class Contender(msgspec.Struct, frozen=True):
    """One classifier on the sample. Money in nano-USD, times in microseconds."""

    name: str  # of the provider in the config, or "local"
    model: str
    answered_by: tuple[str, ...]  # the models that answered, as they named themselves
    simulated: bool
    asked: int
    answered: int
    refused: int = 0  # the model would not answer
    unusable: int = 0  # a reply that is no answer
    failed: int = 0  # no reply, for whatever reason
    errors: dict[str, int] = {}  # of the calls, by name; one that was made again after it is counted, too
    stopped: str | None = None  # why not all rows were asked
    judged: int = 0  # rows with a gold label and an answer, a refusal or an unusable reply
    right: int = 0
    accuracy: float | None = None  # what is no answer counts as wrong
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    against_best: Paired | None = None  # None: it is the best, or there is no gold
    agreement: dict[str, float] = {}  # with each other contender, on the rows that both answered
    confusions: tuple[Confusion, ...] = ()
    spent: int = 0
    nano_per_million: int | None = None  # dollars times 10^9 per million rows
    estimated: int = 0  # calls that count with an upper bound: no usable usage came back
    uncertain: int = 0  # calls of which nobody knows whether they were billed; the upper bound
    hourly: bool = False  # priced by the hour: the cost depends on how busy it is
    input_tokens: int = 0  # all of the prompt, cached ones included
    cached_tokens: int = 0
    output_tokens: int = 0
    p50_us: int | None = None
    p95_us: int | None = None

    @property
    def dollars_per_million(self) -> float | None:
        return None if self.nano_per_million is None else self.nano_per_million / 1e9


class Comparison(msgspec.Struct, frozen=True):
    """`best` and `cheapest` name contenders; None: there is no gold, or nobody was judged. `sure`: the whole 95 %
    interval of what the cheapest loses lies within."""

    task: str
    at: float  # unix time
    rows: int  # of the sample
    available: int  # rows of the file it was drawn from
    seed: int
    gold: bool
    within: float  # share of rows
    complete: bool  # every contender was asked every row
    price_version: str
    contenders: tuple[Contender, ...]
    best: str | None = None
    cheapest: str | None = None
    sure: bool = False
    rows_needed: int | None = None  # about so many rows would tell; None: no sample can, or this one does
    undecided: tuple[str, ...] = ()  # cheaper than the cheapest, and not shown to lose more than `within`
    version: Literal[1] = 1

    def named(self, name: str) -> Contender:
        return next(each for each in self.contenders if each.name == name)


def keep(path: Path, comparison: Comparison) -> None:
    """Replaces what was kept there. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(comparison), indent=2) + b"\n")
    draft.replace(path)


def kept(path: Path) -> Comparison | None:
    """What `keep` wrote; None where nothing is, or nothing that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Comparison)
    except (OSError, msgspec.MsgspecError):
        return None


def all_kept(folder: Path) -> dict[str, Comparison]:
    """By task, what can be read of what `keep` wrote to a folder; its files are named after the tasks."""
    found = (kept(path) for path in sorted(folder.glob("*.json")))
    return {comparison.task: comparison for comparison in found if comparison is not None}


def past_call_nano(ledger: Path, task: str, provider: str, model: str) -> int | None:
    """Mean nano-USD of this task's settled calls to this provider's model; None: too few were made."""
    try:
        db = connect_readonly([ledger])
    except LedgerError:
        return None
    try:
        count, mean = db.execute(
            "SELECT count(*), avg(cost_nano) FROM attempts WHERE state = 'settled' AND error IS NULL AND batch = 0"
            " AND task = ? AND provider = ? AND model = ?",
            (task, provider, model),
        ).fetchone()
    except sqlite3.Error:
        return None
    finally:
        db.close()
    return round(mean) if count >= ENOUGH_CALLS else None


# statistics ----------------------------------------------------------------------------------------------------------


def wilson(right: int, of: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson, JASA 22, 1927)."""
    share, square = right / of, Z * Z
    middle = (share + square / (2 * of)) / (1 + square / of)
    half = Z / (1 + square / of) * math.sqrt(share * (1 - share) / of + square / (4 * of * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p that two classifiers are equally accurate: the rows on which one alone is right are fair coins
    (McNemar, Psychometrika 12, 1947, with the binomial tail)."""
    discordant = better + worse
    tail = sum(math.comb(discordant, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / (1 << discordant))


def paired_interval(better: int, worse: int, of: int) -> tuple[float, float]:
    """95 % interval of `(worse - better) / of` on the same rows, a discordant row of each kind added (Bonett and Price,
    J. Educ. Behav. Stat. 37, 2012): without any discordant row it still has a width."""
    up, down = (worse + 1) / (of + 2), (better + 1) / (of + 2)
    half = Z * math.sqrt((up + down - (up - down) ** 2) / (of + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def percentile(values: Sequence[int], percent: int) -> int | None:
    """Nearest rank, of sorted values; None of none."""
    return values[max(0, -(-len(values) * percent // 100) - 1)] if values else None


def rows_needed(paired: Paired, within: float) -> int | None:
    """About how many rows bring the interval's end to `within`, were the shares to stay. None: they never would."""
    room = within - paired.difference
    if room <= 0:
        return None
    discordant = (paired.better + paired.worse + 2) / (paired.rows + 2)
    return math.ceil(Z * Z * discordant / room**2)


def most_accurate(contenders: Sequence[Contender]) -> Contender | None:
    """Of equals the cheapest. None: nobody was judged."""
    scored = [each for each in contenders if each.accuracy is not None]
    return max(scored, key=lambda each: (each.accuracy or 0.0, -(each.nano_per_million or 0)), default=None)


def judged(comparison: Comparison) -> Comparison:
    """With `best`, `cheapest`, `sure`, `rows_needed` filled in from the contenders' own figures.

    Adequate is who loses at most `within` on this sample; of those the cheapest with a known price is named.
    """
    best = most_accurate(comparison.contenders)
    if best is None:
        return comparison
    adequate = [
        each
        for each in comparison.contenders
        if each.nano_per_million is not None
        and (each is best or (each.against_best and each.against_best.difference <= comparison.within))
    ]
    if not adequate:
        return msgspec.structs.replace(comparison, best=best.name)
    cheapest = min(adequate, key=lambda each: (each.nano_per_million or 0, -(each.accuracy or 0.0)))
    paired = cheapest.against_best
    sure = paired is None or paired.high <= comparison.within
    return msgspec.structs.replace(
        comparison,
        best=best.name,
        cheapest=cheapest.name,
        sure=sure,
        rows_needed=None if sure or paired is None else rows_needed(paired, comparison.within),
        undecided=tuple(
            each.name
            for each in comparison.contenders
            if each.nano_per_million is not None
            and each.nano_per_million < (cheapest.nano_per_million or 0)
            and each.against_best is not None
            and each.against_best.low <= comparison.within
        ),
    )


def headline(comparison: Comparison) -> str:
    """The finding, in one sentence."""
    if not comparison.gold:
        return "No gold labels: agreement and cost only; nobody can say here who is right."
    if comparison.best is None:
        return "Nobody was judged: no row has both a gold label and a reply."
    best = comparison.named(comparison.best)
    if comparison.cheapest is None:
        return f"{_name(best)} is the most accurate; no price is known for whoever is within reach of it."
    return " ".join([*_cheapest(comparison, best), *_undecided(comparison)])


def _cheapest(comparison: Comparison, best: Contender) -> list[str]:
    cheapest = comparison.named(comparison.cheapest or "")
    usd = f"${cheapest.dollars_per_million or 0:,.2f} per million"
    paired = cheapest.against_best
    if paired is None:
        return [f"Cheapest adequate: {_name(cheapest)}: the most accurate itself, at {usd}."]
    lost = f"{abs(paired.difference) * 100:.1f} points {'below' if paired.difference >= 0 else 'above'} the best"
    said = f"Cheapest adequate: {_name(cheapest)}: {lost} ({_name(best)}), at {usd}."
    if comparison.sure:
        return [said, f"With 95 % confidence it loses at most {max(0.0, paired.high) * 100:.1f} points."]
    more = f"; about {comparison.rows_needed:,} rows would tell" if comparison.rows_needed else ""
    allowed = f"{comparison.within * 100:g} are allowed{more}"
    return [
        said,
        f"The sample is too small to be sure: it may lose up to {paired.high * 100:.1f} points, {allowed}.",
    ]


def _undecided(comparison: Comparison) -> list[str]:
    names = [_name(comparison.named(name)) for name in comparison.undecided]
    return [f"Cheaper, and not ruled out by so few rows: {', '.join(names)}."] if names else []


def _name(contender: Contender) -> str:
    return f"{contender.name} (SIMULATED)" if contender.simulated else contender.name
