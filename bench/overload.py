"""More than the service can do: three times as much, and one tenant that floods the others.

    python bench/overload.py [--quick]

The router runs as in production (API keys, ledger, metrics, a Redis), and no text comes twice, so that all of them are
misses. Its caches are small enough to be full before memory is compared.

Overload: arrivals (open loop, Poisson) at three times the capacity for a minute, and at half of it right after. Goodput
is answers (200, computed) a second of server CPU; it is held against that at the capacity, before and after. Normal
again: half seconds whose p50 is at most 1.5 times the p50 at half of the capacity before.

Flood: a tenant sends what 128 connections take (bench/flood.py), another 40 % of the capacity, in open loop; its p99 is
held against that without the flood, round by round. Once with no limit but fairness, once with `auth.limits` for who
floods.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import flood
import harness
import load
from arrivals import Seen, arrivals, poisson
from flood import fine
from harness import Bar, Server
from load import Reply, percentile, took_ms
from rounds import AUTH, HEADERS, REDIS, TASK, Contestant, middle, read_texts, rounded, timed, warm

NAME = "overload"
CACHE = "[cache]\nmemory_mb = 8\nmemory_bytes = 1_000_000\n"
TIMES, HALF = 3.0, 0.5  # of the capacity
SETTLING_S = 5.0  # of the overload: not compared
NORMAL, WINDOW_S = 1.5, 0.5
KEPT, FLAT_MB, RECOVERY_S = 0.8, 5.0, 2.0


class Lengths(NamedTuple):
    """Seconds."""

    capacity: float
    half: float
    once: float
    overload: float
    flood: float
    rounds: int


FULL, QUICK = Lengths(4.0, 8.0, 15.0, 60.0, 5.0, 5), Lengths(1.0, 3.0, 2.0, 8.0, 2.0, 1)


class Sample(NamedTuple):
    at: float  # perf_counter
    cpu_seconds: float  # of the server so far
    resident_mb: float  # without its Redis


class Overload(NamedTuple):
    capacity: float
    half: Seen
    before: Seen
    after: Seen
    replies: list[Reply]  # of the overload and the time after it
    samples: list[Sample]
    begun: float
    ended: float  # of the overload
    late_ms: list[float]


def main() -> int:
    parser = argparse.ArgumentParser(description="Three times the capacity, and a tenant that floods.")
    parser.add_argument("--quick", action="store_true", help="A smoke test of some seconds each.")
    quick = parser.parse_args().quick
    lengths = QUICK if quick else FULL
    texts, origin = read_texts()
    with tempfile.TemporaryDirectory(prefix="co-bench-") as name:
        folder = Path(name)
        with service(folder / "router", f"{CACHE}{AUTH}{flood.KEY}{TASK}", texts) as who:
            seen = overload(who, folder / "router" / "router.log", lengths)
            floods = {"fairness alone": flood.rounds(who, seen.capacity, lengths.rounds, lengths.flood)}
        limit = f"[auth.limits.flooder]\nrate = {seen.capacity * flood.ALLOWED:.1f}\n"
        with service(folder / "limited", f"{CACHE}{AUTH}{flood.KEY}{limit}{TASK}", texts) as who:
            floods["and a limit of its rate"] = flood.rounds(who, seen.capacity, lengths.rounds, lengths.flood)
    rows = [*overload_rows(seen), *(flood.row(name, rounds) for name, rounds in floods.items())]
    notes = [
        *overload_notes(seen),
        *(flood.note(name, rounds) for name, rounds in floods.items()),
        f"texts: {origin}; each with a number of its own",
        *(["a smoke test: the figures mean nothing"] if quick else []),
    ]
    return harness.finish(NAME, bars=[*overload_bars(seen), *flood.bars(floods)], rows=rows, notes=notes)


@contextmanager
def service(folder: Path, config: str, texts: Sequence[str]) -> Iterator[Contestant]:
    """A warm router, and requests for it that never repeat a text."""
    with harness.router(folder, config) as server:
        url = f"{server.url}/v1/classify"
        new = (f"{text} {number}" for number, text in enumerate(itertools.cycle(texts)))
        who = Contestant("router", server, url, (load.request(url, {"input": text}, HEADERS) for text in new))
        warm(who)
        yield who


def overload(who: Contestant, log: Path, lengths: Lengths) -> Overload:
    out = harness.console()
    capacity = timed(who, 64, lengths.capacity).per_second
    out.print(f"capacity: {capacity:.0f} texts/s; now half of it, and as much")
    half = arrivals(who, log, HALF * capacity, lengths.half, seed=1)
    before = arrivals(who, log, capacity, lengths.once, seed=2)
    out.print(f"now {TIMES:g} times as much, {lengths.overload:g} s")
    schedule = poisson(TIMES * capacity, lengths.overload, random.Random(3))
    calm = poisson(HALF * capacity, lengths.half, random.Random(4))
    begun = time.perf_counter()
    with watched(who.server) as samples:
        replies, late = load.arrive(who.url, who.requests, [*schedule, *(lengths.overload + at for at in calm)])
    after = arrivals(who, log, capacity, lengths.once, seed=5)
    ended = begun + lengths.overload
    return Overload(capacity, half, before, after, replies, samples, begun, ended, [each * 1000 for each in late])


@contextmanager
def watched(server: Server) -> Iterator[list[Sample]]:
    """A sample of the server every half second, while the block runs."""
    samples: list[Sample] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            resident = server.resident_bytes(without=REDIS) / 1e6
            samples.append(Sample(time.perf_counter(), server.cpu_seconds(), resident))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def goodput(seen: Overload) -> float:
    """Answers a second of server CPU during the overload, after it has settled."""
    inside = [s for s in seen.samples if seen.begun + settling(seen) <= s.at <= seen.ended]
    if len(inside) < 2 or inside[-1].cpu_seconds == inside[0].cpu_seconds:
        return float("nan")
    first, last = inside[0], inside[-1]
    answers = sum(fine(reply) and first.at < reply.ended <= last.at for reply in seen.replies)
    return answers / (last.cpu_seconds - first.cpu_seconds)


def settling(seen: Overload) -> float:
    return min(SETTLING_S, (seen.ended - seen.begun) / 4)


def growth_mb(seen: Overload) -> float:
    """Resident memory over the last fifth of the overload less that over the first, each a median."""
    since = seen.begun + settling(seen)
    fifth = (seen.ended - since) / 5
    first = [s.resident_mb for s in seen.samples if since <= s.at < since + fifth]
    last = [s.resident_mb for s in seen.samples if seen.ended - fifth < s.at <= seen.ended]
    return statistics.median(last) - statistics.median(first) if first and last else float("nan")


def normal_after(seen: Overload) -> float | None:
    """Seconds after the overload from which every half second's p50 is normal; None: nobody looked."""
    limit = NORMAL * percentile(seen.half.took_ms, 0.5)
    windows: dict[int, list[Reply]] = {}
    for reply in seen.replies:
        if reply.started >= seen.ended:
            windows.setdefault(int((reply.started - seen.ended) / WINDOW_S), []).append(reply)
    p50 = {number: percentile(took_ms(filter(fine, replies)), 0.5) for number, replies in windows.items()}
    slow = [number for number, ms in p50.items() if not ms <= limit]  # NaN too: nobody was answered
    return WINDOW_S * (max(slow, default=-1) + 1) if windows else None


def overload_bars(seen: Overload) -> list[Bar]:
    once = (seen.before.goodput + seen.after.goodput) / 2
    kept = middle([goodput(seen) / once]) if once else None
    grown, back = rounded(growth_mb(seen)), normal_after(seen)
    failed = sum(reply.status not in (200, 429) for reply in seen.replies)
    return [
        Bar(
            f"goodput per server CPU second at {TIMES:g} times the capacity over that at the capacity",
            kept,
            f">= {KEPT:g}",
            "x",
            None if kept is None else kept >= KEPT,
        ),
        Bar(
            "resident memory, end of the overload less its beginning",
            grown,
            f"<= {FLAT_MB:g}",
            "MB",
            None if grown is None else grown <= FLAT_MB,
        ),
        Bar(
            "p50 normal after the overload",
            back,
            f"<= {RECOVERY_S:g}",
            "s",
            None if back is None else back <= RECOVERY_S,
        ),
        Bar("replies that are neither 200 nor 429", failed, "= 0", "", failed == 0),
    ]


def overload_rows(seen: Overload) -> list[dict[str, Any]]:
    samples = [
        {"at_s": round(s.at - seen.begun, 1), "cpu_s": round(s.cpu_seconds, 2), "resident_mb": round(s.resident_mb, 1)}
        for s in seen.samples[::10]
    ]
    good = took_ms([reply for reply in seen.replies if reply.started < seen.ended and fine(reply)])
    return [
        {
            "part": "overload",
            "capacity_per_second": rounded(seen.capacity),
            "goodput_before": rounded(seen.before.goodput),
            "goodput_overload": rounded(goodput(seen)),
            "goodput_after": rounded(seen.after.goodput),
            "replies": dict(Counter(str(reply.status) for reply in seen.replies if reply.started < seen.ended)),
            "overload_p50_ms": rounded(percentile(good, 0.5)),
            "overload_p99_ms": rounded(percentile(good, 0.99)),
            "normal_p50_ms": rounded(percentile(seen.half.took_ms, 0.5)),
            "sent_late_p50_ms": rounded(percentile(seen.late_ms, 0.5)),
            "sent_late_p99_ms": rounded(percentile(seen.late_ms, 0.99)),
            "samples": samples,
        }
    ]


def overload_notes(seen: Overload) -> list[str]:
    (row,) = overload_rows(seen)
    return [
        f"answers per server CPU second: {row['goodput_before']} at the capacity before, {row['goodput_overload']} "
        f"at {TIMES:g} times, {row['goodput_after']} after",
        f"overload: replies by status {row['replies']}; answers p50 {row['overload_p50_ms']} ms, "
        f"p99 {row['overload_p99_ms']} ms; normal p50 {row['normal_p50_ms']} ms",
        f"sent late by the generator: p50 {row['sent_late_p50_ms']} ms, p99 {row['sent_late_p99_ms']} ms",
        f"resident memory at the end {seen.samples[-1].resident_mb:.0f} MB, redis-server aside",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
