"""Served against offline: how much of the hardware's speed is left behind HTTP.

    python bench/serving.py [--quick]

The denominator is the best offline loop (bench/offline.py says what it does) of 1, 8, 16, 32 texts per forward and
three layouts of threads, chosen in the same run: once by CPU seconds a text, once by texts a second. Then it takes
turns with the router: one text a request at 64 connections, 32 texts a request at 4, and one alone; and with the bare
forward of texts tokenized before, which the one alone is held against. The router runs as in production, cache off.

Last: what the hundredth head costs, one task against a hundred on one encoder.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import harness
import load
import offline
import psutil
from harness import Bar
from offline import Layout, Offline, Speed
from rich.table import Table
from rounds import (
    CONFIG,
    HEADERS,
    SERVICE,
    Contestant,
    Round,
    Rounds,
    as_router,
    middle,
    paired,
    parked,
    read_texts,
    rounded,
    row,
    show,
    timed,
    warm,
)

NAME = "serving"
SINGLE, BULK, HEADS = "one text a request", "32 texts a request", 100
BULK_CONNECTIONS = 4  # 128 texts in flight
ONE_TASK, MANY_TASKS = "1 task", f"{HEADS} tasks"
BARE = Layout(1, 1, 1)  # what the engine does for a lone text
#: (rounds, seconds a measurement, seconds a layout is tried, pairs of one task and many)
FULL, QUICK = (5, 6.0, 1.5, 6), (1, 1.0, 0.2, 1)

Speeds = dict[str, list[Speed]]  # by role: "cpu", "wall", "bare"


def main() -> int:
    parser = argparse.ArgumentParser(description="Served against offline.")
    parser.add_argument("--quick", action="store_true", help="A smoke test: one round of a second each.")
    quick = parser.parse_args().quick
    count, seconds, trial, pairs = QUICK if quick else FULL
    texts, origin = read_texts()
    with tempfile.TemporaryDirectory(prefix="crossover-bench-") as name:
        folder = Path(name)
        tried, chosen, speeds, served = serve_and_loop(folder, texts, count, seconds, trial)
        heads = many_heads(folder, texts, pairs, seconds * 0.75)
    offline_rows = [{"offline": str(layout), **as_row([speed])} for layout, speed in tried.items()]
    offline_rows += [{"offline": f"{chosen[role]} (best by {role})", **as_row(speeds[role])} for role in chosen]
    show_offline(offline_rows)
    rows = [row(name, n, seen) for (name, n), seen in (served | heads).items()]
    show(rows)
    bare = [speed.p50_ms for speed in speeds["bare"]]
    notes = [
        f"bare forward of a tokenized text: p50 {statistics.median(bare):.3f} ms ({min(bare):.3f} - {max(bare):.3f})",
        *(f"{line}" for line in ratio_notes(speeds, served, heads)),
        f"{len(texts)} different texts: {origin}",
        *(["a smoke test: the figures mean nothing"] if quick else []),
    ]
    made = bars(speeds, served, heads)
    return harness.finish(NAME, bars=made, rows=[*offline_rows, *rows], notes=notes)


def serve_and_loop(
    folder: Path, texts: Sequence[str], count: int, seconds: float, trial: float
) -> tuple[dict[Layout, Speed], dict[str, Layout], Speeds, Rounds]:
    """What each layout gave, the best by role, and the interleaved rounds of offline loops and router."""
    out = harness.console()
    out.print("exporting the batched graph for the offline loops, starting the router")
    served: Rounds = {}
    speeds: Speeds = {}
    with ExitStack() as stack:
        server = stack.enter_context(harness.router(folder / "router", CONFIG))
        single = as_router(server, texts, name=SINGLE)
        bulk = as_router(server, texts, name=BULK, batch=32)
        loops = stack.enter_context(Offline(folder))
        warm(single)
        warm(bulk, BULK_CONNECTIONS)
        tried = {layout: loops.run(layout, trial) for layout in layouts()}
        chosen = {
            "cpu": min(tried, key=lambda layout: tried[layout].cpu_ms),
            "wall": max(tried, key=lambda layout: tried[layout].per_second),
        }
        out.print(f"best offline by CPU: {chosen['cpu']}; by wall clock: {chosen['wall']}")

        def loop(role: str) -> None:
            layout = chosen.get(role, BARE)
            speeds.setdefault(role, []).append(loops.run(layout, seconds, bare=role == "bare"))

        def serve(who: Contestant, connections: int) -> None:
            served.setdefault((who.name, connections), []).append(timed(who, connections, seconds))

        turns: list[Any] = [
            lambda: loop("bare"),
            lambda: serve(single, 1),
            lambda: loop("cpu"),
            lambda: serve(single, 64),
            lambda: loop("wall"),
            lambda: serve(bulk, BULK_CONNECTIONS),
        ]
        for number in range(count):
            for turn in turns if number % 2 else reversed(turns):
                turn()
            out.print(
                f"  round {number + 1} of {count}: offline {speeds['wall'][-1].per_second:.0f} texts/s, "
                f"{speeds['cpu'][-1].cpu_ms:.3f} CPU ms; served {served[SINGLE, 64][-1].per_second:.0f} and "
                f"{served[BULK, BULK_CONNECTIONS][-1].per_second:.0f} texts/s, {served[SINGLE, 64][-1].cpu_ms:.3f} and "
                f"{served[BULK, BULK_CONNECTIONS][-1].cpu_ms:.3f} CPU ms"
            )
    return tried, chosen, speeds, served


def layouts() -> list[Layout]:
    """{1, 8, 16, 32 per forward} x {a run per core, one run on all cores, both}."""
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    threads = dict.fromkeys([(cores, 1), (1, cores), (cores, cores)])
    return [Layout(batch, runs, inside) for batch in (1, 8, 16, 32) for runs, inside in threads]


def many_heads(folder: Path, texts: Sequence[str], pairs: int, seconds: float) -> Rounds:
    """Pairs of short rounds: the same texts for one task, and spread over a hundred."""
    rounds: Rounds = {}
    with ExitStack() as stack:
        contestants = []
        for name, tasks in ((ONE_TASK, 1), (MANY_TASKS, HEADS)):
            place = folder / f"heads-{tasks}"
            server = stack.enter_context(harness.router(place, heads_config(folder, tasks)))
            url = f"{server.url}/v1/classify"
            requests = [
                load.request(url, {"task": f"t{number % tasks:02d}", "input": text}, HEADERS)
                for number, text in enumerate(texts)
            ]
            contestants.append(Contestant(name, server, url, requests))
        for who in contestants:
            warm(who)
        for number in range(pairs):
            for who in contestants if number % 2 else reversed(contestants):
                with parked(other for other in contestants if other is not who):
                    rounds.setdefault((who.name, 64), []).append(timed(who, 64, seconds))
    return rounds


def heads_config(folder: Path, tasks: int) -> str:
    """That many tasks, each with a copy of the shipped head."""
    parts = [SERVICE]
    for number in range(tasks):
        copy = folder / f"head-{tasks}-{number:02d}"
        shutil.copytree(offline.HEAD, copy)
        parts.append(f'[tasks.t{number:02d}]\nhead = "{copy}"\n[tasks.t{number:02d}.policy]\nescalate = "never"\n')
    return "\n".join(parts)


def bars(speeds: Speeds, served: Rounds, heads: Rounds) -> list[Bar]:
    made = []
    for name, connections, cpu_target, wall_target in ((SINGLE, 64, 0.85, 0.75), (BULK, BULK_CONNECTIONS, 0.95, 0.9)):
        seen = served[name, connections]
        cpu = middle(paired(speeds["cpu"], seen, lambda loop, server: loop.cpu_ms / server.cpu_ms))
        wall = middle(paired(seen, speeds["wall"], lambda server, loop: server.per_second / loop.per_second))
        made.append(at_least(f"offline's CPU seconds a text over served, {name}", cpu, cpu_target))
        made.append(at_least(f"texts/s served over offline, {name}", wall, wall_target))
    added = middle(added_ms(speeds, served))
    made.append(Bar("alone: p50 over the bare forward's", added, "<= 1", "ms", None if added is None else added <= 1))
    kept = middle(paired(heads[ONE_TASK, 64], heads[MANY_TASKS, 64], lambda one, many: one.cpu_ms / many.cpu_ms))
    made.append(at_least(f"CPU seconds an answer, 1 task over {HEADS}", kept, 0.98))
    failures = sum(seen.load.failures for rounds in (*served.values(), *heads.values()) for seen in rounds)
    made.append(Bar("requests without a computed answer", failures, "= 0", "", failures == 0))
    return made


def at_least(name: str, value: float | None, target: float) -> Bar:
    return Bar(name, value, f">= {target:g}", "x", None if value is None else value >= target)


def added_ms(speeds: Speeds, served: Rounds) -> list[float]:
    """What HTTP and the rest of the service add to a lone text's median, round by round."""
    return paired(served[SINGLE, 1], speeds["bare"], lambda server, loop: server.load.p50_ms - loop.p50_ms)


def ratio_notes(speeds: Speeds, served: Rounds, heads: Rounds) -> list[str]:
    """The spread behind the bars."""

    def spread(what: str, values: Sequence[float], unit: str = "") -> str:
        return f"{what}: {statistics.median(values):.3f}{unit} ({min(values):.3f} - {max(values):.3f})"

    def cpu(one: Speed | Round, other: Round) -> float:
        return one.cpu_ms / other.cpu_ms

    def rate(one: Round, other: Speed | Round) -> float:
        return one.per_second / other.per_second

    single, bulk = served[SINGLE, 64], served[BULK, BULK_CONNECTIONS]
    return [
        spread(f"CPU ratio, {SINGLE}", paired(speeds["cpu"], single, cpu)),
        spread(f"CPU ratio, {BULK}", paired(speeds["cpu"], bulk, cpu)),
        spread(f"wall ratio, {SINGLE}", paired(single, speeds["wall"], rate)),
        spread(f"wall ratio, {BULK}", paired(bulk, speeds["wall"], rate)),
        spread("alone over bare forward", added_ms(speeds, served), " ms"),
        spread(f"CPU, {ONE_TASK} over {MANY_TASKS}", paired(heads[ONE_TASK, 64], heads[MANY_TASKS, 64], cpu)),
        spread(f"requests/s, {MANY_TASKS} over {ONE_TASK}", paired(heads[MANY_TASKS, 64], heads[ONE_TASK, 64], rate)),
    ]


def as_row(speeds: Sequence[Speed]) -> dict[str, Any]:
    rates = [speed.per_second for speed in speeds]
    return {
        "rounds": len(speeds),
        "texts_per_second": rounded(statistics.median(rates)),
        "texts_per_second_spread": [rounded(min(rates)), rounded(max(rates))],
        "cpu_ms_per_text": rounded(statistics.median(speed.cpu_ms for speed in speeds)),
        "forward_p50_ms": rounded(statistics.median(speed.p50_ms for speed in speeds)),
    }


def show_offline(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("offline", title="offline: each layout tried once, the best in the rounds", title_justify="left")
    for column in ("texts/s", "CPU ms/text", "p50 of a forward, ms"):
        table.add_column(column, justify="right")
    for r in rows:
        low, high = r["texts_per_second_spread"]
        spread = f" ({low:g} - {high:g})" if r["rounds"] > 1 else ""
        table.add_row(
            r["offline"], f"{r['texts_per_second']:g}{spread}", f"{r['cpu_ms_per_text']:g}", f"{r['forward_p50_ms']:g}"
        )
    harness.console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
