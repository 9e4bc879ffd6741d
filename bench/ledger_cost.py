"""What keeping the books costs: server CPU of an answer with the ledger and without.

    python bench/ledger_cost.py [--quick]

Two routers, of which one keeps no rows (bench/unrecorded_server.py; there is no such setting), in turn, in changing
order, at 16 connections. Computed answers have a bar: the upper end of the 95 % interval of CPU with over CPU without.
Hits from memory are the cheapest answers there are, so a row weighs most there; they are shown beside it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import harness
import load
from harness import Bar
from hits import UNRECORDED_SERVER, is_hit
from rounds import (
    AUTH,
    CONFIG,
    TASK,
    Contestant,
    Round,
    answered,
    as_router,
    read_texts,
    rounded,
    row,
    show,
    timed,
    warm,
)
from scipy.stats import t as student

NAME = "ledger-cost"
WITH, WITHOUT = "with its ledger", "without"
COMPUTED, HITS = "computed", "hit from memory"
BOUND = 1.1
CONNECTIONS = 16
TEXTS = 500  # that are hits
#: CPU is asked about here: a pause of the machine shall not end a request.
CONFIGS = {COMPUTED: f"[server]\nlocal_deadline_ms = 10_000\n\n{CONFIG}", HITS: f"{AUTH}\n{TASK}"}


class Lengths(NamedTuple):
    pairs: int
    seconds: float


class Ratio(NamedTuple):
    """Geometric mean, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def main() -> int:
    parser = argparse.ArgumentParser(description="Server CPU of an answer, with the ledger and without.")
    parser.add_argument("--quick", action="store_true", help="A smoke test: two short pairs.")
    quick = parser.parse_args().quick
    texts, origin = read_texts()
    lengths = Lengths(2, 0.5) if quick else Lengths(20, 2.0)
    with tempfile.TemporaryDirectory(prefix="crossover-bench-") as name:
        seen = {kind: run(Path(name), kind, texts, lengths) for kind in CONFIGS}
    rows = [
        row(f"{kind}, {which}", CONNECTIONS, [pair[place] for pair in pairs])
        for kind, pairs in seen.items()
        for place, which in enumerate((WITH, WITHOUT))
    ]
    show(rows)
    notes = [
        *(told(kind, pairs) for kind, pairs in seen.items()),
        f"{lengths.pairs} pairs of {lengths.seconds:g} s each way; {origin}",
        *(["a smoke test: the figures mean nothing"] if quick else []),
    ]
    return harness.finish(NAME, bars=bars(seen), rows=rows, notes=notes)


def run(folder: Path, kind: str, texts: Sequence[str], lengths: Lengths) -> list[tuple[Round, Round]]:
    """(with, without) of each pair."""
    place = folder / kind.replace(" ", "-")
    with ExitStack() as stack:
        servers = [
            stack.enter_context(harness.router(place / "with", CONFIGS[kind])),
            stack.enter_context(harness.router(place / "without", CONFIGS[kind], program=[UNRECORDED_SERVER])),
        ]
        asked = texts if kind == COMPUTED else texts[:TEXTS]
        both = [as_router(server, asked, name=which) for server, which in zip(servers, (WITH, WITHOUT), strict=True)]
        for who in both:
            if kind == COMPUTED:
                warm(who)
            else:
                load.send(who.url, who.requests, connections=8)
        pairs = []
        for number in range(lengths.pairs):
            order = (0, 1) if number % 2 else (1, 0)
            found = {n: once(both[n], kind, lengths.seconds) for n in order}
            pairs.append((found[0], found[1]))
    return pairs


def once(who: Contestant, kind: str, seconds: float) -> Round:
    if kind == COMPUTED:
        return timed(who, CONNECTIONS, seconds, accept=answered)
    return timed(who, CONNECTIONS, seconds, accept=lambda reply: is_hit(reply.body, b"memory"))


def interval(values: Sequence[float]) -> Ratio:
    """Student's on the logarithms; NaN ends for fewer than two."""
    logs = [math.log(value) for value in values]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return Ratio(math.exp(mean), math.nan, math.nan)
    half = float(student.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def ratio(pairs: Sequence[tuple[Round, Round]]) -> Ratio:
    return interval([one.cpu_ms / other.cpu_ms for one, other in pairs])


def told(kind: str, pairs: Sequence[tuple[Round, Round]]) -> str:
    mean, low, high = ratio(pairs)
    more = statistics.median(1000 * (one.cpu_ms - other.cpu_ms) for one, other in pairs)
    return f"{kind}: CPU with over without {mean:.3f} ({low:.3f} - {high:.3f}); {more:.0f} us more an answer (median)"


def bars(seen: dict[str, list[tuple[Round, Round]]]) -> list[Bar]:
    high = ratio(seen[COMPUTED]).high
    known = None if math.isnan(high) else high <= BOUND
    failed = sum(each.load.failures for pairs in seen.values() for pair in pairs for each in pair)
    return [
        Bar("computed: CPU with over without, upper 95 % bound", rounded(high), f"<= {BOUND:g}", "x", known),
        Bar("requests without the answer that was asked for", failed, "= 0", "", failed == 0),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
