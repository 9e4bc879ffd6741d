"""Open-loop arrivals: what callers see when they come at their own times, at and beyond what the service can do.

    python bench/arrivals.py [--quick]
    python bench/arrivals.py --curve NAME=TOML [NAME=TOML ...]

Each round measures the capacity (closed loop, 64 connections) and then sends single texts at 50, 80, 100 and 150 % of
it, in random (Poisson) gaps, each on a free connection or a new one. Latency counts from the time a request was due.
Goodput: answers (200, computed) a second of server CPU. A refusal is a 429; how long it took the server is what its
request log says (`total_ms`).

`--curve` measures configurations of `[model]` beside each other, at 64 connections and alone, to choose between latency
and rate: `--curve 'latency=optimize = "latency"' 'throughput=optimize = "throughput"'`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import harness
import load
from harness import Bar
from load import percentile
from rich.table import Table
from rounds import (
    CONFIG,
    Contestant,
    Rounds,
    answered,
    as_router,
    middle,
    parked,
    read_texts,
    rounded,
    row,
    show,
    timed,
    warm,
)

NAME = "arrivals"
SHARES = (0.5, 0.8, 1.0, 1.5)  # of the round's capacity
PATIENCE_MS = 5.0  # what a refusal may take


class Seen(NamedTuple):
    """One stretch of arrivals. Latencies in ms, sorted, from when each request was due."""

    asked_per_second: float
    seconds: float
    took_ms: list[float]  # of the answers
    refused_ms: list[float]  # of the 429s, as the server's log has them
    refusals: int
    failures: dict[int, int]  # by status, 429 aside; 0: no reply
    cpu_seconds: float
    late_ms: list[float]  # what the generator sent late

    @property
    def goodput(self) -> float:
        """Answers a second of server CPU."""
        return len(self.took_ms) / self.cpu_seconds if self.cpu_seconds else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Open-loop arrivals at 50, 80, 100 and 150 % of the capacity.")
    parser.add_argument("--quick", action="store_true", help="A smoke test: one round of a second each.")
    parser.add_argument("--curve", nargs="+", metavar="NAME=TOML", help="Compare keys of [model] instead.")
    asked = parser.parse_args()
    if asked.curve:
        variations = dict(each.split("=", 1) for each in asked.curve)
        return curve({name: toml.strip() for name, toml in variations.items()}, quick=asked.quick)
    texts, origin = read_texts()
    count, seconds = (1, 1.0) if asked.quick else (3, 10.0)
    with tempfile.TemporaryDirectory(prefix="crossover-bench-") as name:
        rounds = run(Path(name), texts, count, seconds)
    rows = [as_row(share, seen) for share, seen in rounds.items()]
    show_rows(rows)
    notes = [
        f"{len(texts)} different texts: {origin}; Poisson gaps, from bench/load.py, on the server's cores",
        *(["a smoke test: the figures mean nothing"] if asked.quick else []),
    ]
    return harness.finish(NAME, bars=bars(rounds), rows=rows, notes=notes)


def run(folder: Path, texts: Sequence[str], count: int, seconds: float) -> dict[float, list[Seen]]:
    """By share of the capacity: what each round saw."""
    out = harness.console()
    rounds: dict[float, list[Seen]] = {share: [] for share in SHARES}
    with ExitStack() as stack:
        server = stack.enter_context(harness.router(folder / "router", CONFIG))
        who = as_router(server, texts)
        log = folder / "router" / "router.log"
        warm(who)
        for number in range(count):
            capacity = timed(who, 64, seconds / 2).per_second
            out.print(f"  round {number + 1} of {count}: capacity {capacity:.0f}/s")
            for share in SHARES if number % 2 == 0 else SHARES[::-1]:
                rounds[share].append(arrivals(who, log, share * capacity, seconds, seed=number))
    return rounds


def arrivals(who: Contestant, log: Path, per_second: float, seconds: float, *, seed: int) -> Seen:
    times = poisson(per_second, seconds, random.Random(seed))
    read, before = log.stat().st_size, who.server.cpu_seconds()
    replies, late = load.arrive(who.url, itertools.cycle(who.requests), times)
    used = who.server.cpu_seconds() - before
    time.sleep(0.2)  # log lines are written together, 50 ms later
    good = [reply for reply in replies if reply.status == 200 and answered(reply)]
    failures: dict[int, int] = {}
    for reply in replies:
        if reply.status != 429 and not (reply.status == 200 and answered(reply)):
            failures[reply.status] = failures.get(reply.status, 0) + 1
    return Seen(
        asked_per_second=len(times) / seconds,
        seconds=max((reply.ended for reply in replies), default=0.0) - min((r.started for r in replies), default=0.0),
        took_ms=sorted((reply.ended - reply.started) * 1000 for reply in good),
        refused_ms=refusals(log, read),
        refusals=sum(reply.status == 429 for reply in replies),
        failures=failures,
        cpu_seconds=used,
        late_ms=[each * 1000 for each in late],
    )


def poisson(per_second: float, seconds: float, chance: random.Random) -> list[float]:
    """Times of arrivals from 0 to `seconds`, with independent exponential gaps."""
    times, at = [], chance.expovariate(per_second)
    while at < seconds:
        times.append(at)
        at += chance.expovariate(per_second)
    return times


def refusals(log: Path, since: int) -> list[float]:
    """`total_ms` of the 429s in the request log from byte `since` on, sorted."""
    with log.open("rb") as file:
        file.seek(since)
        return sorted(float(json.loads(line)["total_ms"]) for line in file if b'"status":429' in line)


def bars(rounds: Mapping[float, Sequence[Seen]]) -> list[Bar]:
    kept = [
        seen.goodput / max(rounds[share][number].goodput for share in rounds)
        for number, seen in enumerate(rounds[SHARES[-1]])
        if seen.took_ms
    ]
    goodput = middle(kept)
    refused = sorted(took for seen in itertools.chain(*rounds.values()) for took in seen.refused_ms)
    slowest = percentile(refused, 0.99) if refused else None
    counted = sum(seen.refusals for seen in itertools.chain(*rounds.values()))
    failures = sum(sum(seen.failures.values()) for seen in itertools.chain(*rounds.values()))
    lost = counted - len(refused)
    return [
        Bar(
            "goodput per server CPU second at 150 % over its peak",
            goodput,
            ">= 0.9",
            "x",
            None if goodput is None else goodput >= 0.9,
        ),
        Bar(
            f"refusals at the server, p99 of {len(refused)}",
            slowest,
            f"<= {PATIENCE_MS:g}",
            "ms",
            None if slowest is None else slowest <= PATIENCE_MS,
        ),
        Bar("refusals that the request log does not show", lost, "= 0", "", lost == 0),
        Bar("failures other than refusals", failures, "= 0", "", failures == 0),
    ]


def as_row(share: float, rounds: Sequence[Seen]) -> dict[str, Any]:
    """Medians over the rounds; refusals' slowest of all."""

    def mid(values: Sequence[float]) -> float | None:
        return rounded(statistics.median(values))

    refused = sorted(took for seen in rounds for took in seen.refused_ms)
    failures: dict[str, int] = {}
    for seen in rounds:
        for status, number in seen.failures.items():
            failures[str(status)] = failures.get(str(status), 0) + number
    goodputs = [seen.goodput for seen in rounds]
    return {
        "share_of_capacity": share,
        "rounds": len(rounds),
        "asked_per_second": mid([seen.asked_per_second for seen in rounds]),
        "answered_per_second": mid([len(seen.took_ms) / seen.seconds for seen in rounds]),
        **{
            f"{name}_ms": mid([percentile(seen.took_ms, rank) for seen in rounds])
            for name, rank in (("p50", 0.5), ("p99", 0.99), ("p99_9", 0.999))
        },
        "answers_per_server_cpu_second": mid(goodputs),
        "answers_per_server_cpu_second_spread": [rounded(min(goodputs)), rounded(max(goodputs))],
        "refused": sum(seen.refusals for seen in rounds),
        "refused_p50_ms": rounded(percentile(refused, 0.5)),
        "refused_p99_ms": rounded(percentile(refused, 0.99)),
        "refused_slowest_ms": rounded(percentile(refused, 1)),
        "failures": failures,
        "sent_late_p99_ms": mid([percentile(seen.late_ms, 0.99) for seen in rounds]),
    }


def show_rows(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("load", title="open loop: medians of the rounds, ms", title_justify="left")
    columns = {
        "asked/s": "asked_per_second",
        "served/s": "answered_per_second",
        "p50": "p50_ms",
        "p99": "p99_ms",
        "p99.9": "p99_9_ms",
        "per CPU s": "answers_per_server_cpu_second",
        "refused": "refused",
        "their p99": "refused_p99_ms",
        "slowest": "refused_slowest_ms",
        "sent late": "sent_late_p99_ms",
    }
    for column in (*columns, "failed"):
        table.add_column(column, justify="right")
    for r in rows:
        cells = ("-" if r[key] is None else f"{r[key]:g}" for key in columns.values())
        table.add_row(
            f"{r['share_of_capacity']:.0%}",
            *cells,
            ", ".join(f"{n} x {status}" for status, n in r["failures"].items()) or "0",
        )
    harness.console().print(table)


def curve(variations: Mapping[str, str], *, quick: bool = False) -> int:
    """Each variation (name: lines of `[model]`) as a router of its own: p50, p99 and rate at 64 connections and alone.

    Prints the table and writes bench/out/optimize.json.
    """
    texts, origin = read_texts()
    count, seconds = (1, 1.0) if quick else (3, 5.0)
    rounds: Rounds = {}
    with tempfile.TemporaryDirectory(prefix="crossover-bench-") as name, ExitStack() as stack:
        contestants = []
        for number, (variation, keys) in enumerate(variations.items()):
            config = f"{CONFIG}\n[model]\n{keys}\n"
            server = stack.enter_context(harness.router(Path(name) / str(number), config))
            contestants.append(as_router(server, texts, name=variation))
        for who in contestants:
            warm(who)
        for number in range(count):
            for connections in (1, 8, 64):
                for who in contestants if number % 2 else reversed(contestants):
                    with parked(other for other in contestants if other is not who):
                        rounds.setdefault((who.name, connections), []).append(timed(who, connections, seconds))
    rows = [row(name, n, seen, model=variations[name]) for (name, n), seen in sorted(rounds.items())]
    show(rows)
    failures = sum(r["failures"] for r in rows)
    made = [Bar("requests without a computed answer", failures, "= 0", "", failures == 0)]
    return harness.finish("optimize", bars=made, rows=rows, notes=[f"{len(texts)} different texts: {origin}"])


if __name__ == "__main__":
    raise SystemExit(main())
