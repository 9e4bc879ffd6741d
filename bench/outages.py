"""What callers notice when the cache's Redis breaks: nothing failed, hardly anything slower, hits soon again.

    python bench/outages.py [--quick] [--memory BYTES]

Two services take turns, one with a Redis of the bench's own, the other with `cache.url = "off"` beside it; for slow
replies a third reaches Redis through bench/delaying_server.py. All get the same arrivals: open loop, Poisson, at 40 %
of what the service without a cache computes; four of five texts are from a set that the cache knows, the fifth is new.
`--memory` (default 0: every lookup asks Redis) is the services' `cache.memory_bytes`.

Each fault, in each round: a calm while, the fault, and its end, under load all the time. Compared are
- while the breaker is open: p99 over the p99 of the service without a cache;
- before (or all the time, where it stays closed; a second, where the fault is over at once): p99 less that of the
  service without a cache, at most `lookup_ms` more;
- from the fault's end to the time when the first request was due that was answered from the cache.
Both p99s are of one round, and the median of the rounds is taken: one stall of the machine decides the p99 of three
seconds. The printed range of the p99 without a cache says how quiet it was. When the breaker opened, and what else was
said, is read from the service's log.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import harness
import load
from arrivals import poisson
from harness import ROOT, Bar, Server
from load import Reply, percentile, took_ms
from private_redis import PrivateRedis
from rich.table import Table
from rounds import AUTH, CONFIG, HEADERS, TASK, as_router, middle, read_texts, rounded, timed, warm

NAME = "outages"
LOOKUP_MS = 10
KNOWN, NEW_SHARE, LOAD = 300, 0.2, 0.4
CALM_S, FAULT_S, AFTER_S, AT_ONCE_S = 0.4, 3.0, 2.4, 1.0
LOG_LINES, RECOVERY_S, SLOWER = 10, 2.0, 1.2
OPENED = "cache_unavailable"  # the breaker's event in the log
QUICK = ("killed", "replies after 20 ms", "read-only")


class Fault(NamedTuple):
    """`end` None: it is over when `begin` returns."""

    begin: Callable[[], Any]
    end: Callable[[], Any] | None = None
    slow: bool = False  # met by the service behind the delaying server


class Target(NamedTuple):
    """A service and its log."""

    server: Server
    log: Path


class Seen(NamedTuple):
    """One fault in one round. Latencies in ms, sorted, from when a request was due."""

    early_ms: list[float]  # since the fault, until the breaker opened
    open_ms: list[float]  # from then to the fault's end
    off_ms: list[float]  # the service without a cache
    failed: int  # requests without a label, in all
    opened_s: float | None  # after the fault; None: it stayed closed
    back_s: float | None  # from the fault's end to the first hit; None: none was seen
    log_lines: int  # beside those of requests


def main() -> int:
    parser = argparse.ArgumentParser(description="Faults of the cache's Redis under load.")
    parser.add_argument("--quick", action="store_true", help="A smoke test: three faults, one round.")
    parser.add_argument("--memory", type=int, default=0, metavar="BYTES", help="cache.memory_bytes. Default: 0")
    asked = parser.parse_args()
    texts, origin = read_texts()
    with tempfile.TemporaryDirectory(prefix="co-bench-") as name:
        seen, per_second = run(Path(name), texts, 1 if asked.quick else 3, asked.memory, quick=asked.quick)
    rows = [as_row(fault, rounds) for fault, rounds in seen.items()]
    show(rows)
    off = sorted(percentile(one.off_ms, 0.99) for rounds in seen.values() for one in rounds)
    notes = [
        f"{per_second:.0f} requests/s, {LOAD:.0%} of the capacity without a cache; {NEW_SHARE:.0%} of the texts are "
        f"new, the others of {KNOWN}: {origin}",
        f"p99 without a cache: {statistics.median(off):.1f} ms; its noise: {off[0]:.1f} - {off[-1]:.1f} in the windows",
        f"memory_bytes = {asked.memory}",
        *(["a smoke test: the figures mean nothing"] if asked.quick else []),
    ]
    return harness.finish(NAME, bars=bars(seen), rows=rows, notes=notes)


def run(
    folder: Path, texts: Sequence[str], count: int, memory: int, *, quick: bool
) -> tuple[dict[str, list[Seen]], float]:
    """By fault, what each round saw; and the requests a second."""
    out = harness.console()
    seen: dict[str, list[Seen]] = {}
    with ExitStack() as stack:
        redis = stack.enter_context(PrivateRedis(folder / "redis"))
        delay = folder / "delay"
        delay.write_text("0")
        front = folder / "front.sock"
        command = [sys.executable, str(ROOT / "bench" / "delaying_server.py"), front, redis.socket, delay]
        stack.enter_context(harness.child([str(part) for part in command], folder / "delaying.log"))

        def start(name: str, config: str) -> Target:
            server = stack.enter_context(harness.router(folder / name, config))
            warm(as_router(server, texts))
            return Target(server, folder / name / "router.log")

        def cached(url: str) -> str:
            return f'[cache]\nurl = "{url}"\nmemory_bytes = {memory}\nlookup_ms = {LOOKUP_MS}\n{AUTH}\n{TASK}'

        direct, behind = start("direct", cached(redis.url)), start("behind", cached(f"unix://{front}"))
        off = start("off", CONFIG)
        per_second = LOAD * timed(as_router(off.server, texts), 64, 1.0 if quick else 4.0).per_second
        out.print(f"{count} rounds at {per_second:.0f} requests/s")
        every = faults(redis, delay)
        chosen = {name: every[name] for name in QUICK} if quick else every
        known, numbers = texts[:KNOWN], itertools.count()
        for number in range(count):
            for name, fault in chosen.items():
                target = behind if fault.slow else direct
                schedule = poisson(per_second, CALM_S + FAULT_S + AFTER_S, random.Random(f"{number} {name}"))
                asked = list(itertools.islice(mixed(known, numbers, random.Random(number)), len(schedule)))
                fill(target.server, known)
                alone = [at for at in schedule if at < FAULT_S]
                if number % 2:
                    calm = stretch(off, asked, alone)
                one = trouble(target, fault, asked, schedule)
                if not number % 2:
                    calm = stretch(off, asked, alone)
                seen.setdefault(name, []).append(one._replace(off_ms=took_ms(calm), failed=one.failed + failures(calm)))
            out.print(f"  round {number + 1} of {count}")
    return seen, per_second


def faults(redis: PrivateRedis, delay: Path) -> dict[str, Fault]:
    slow = {
        f"replies after {ms} ms": Fault(
            lambda ms=ms: delay.write_text(str(ms)), lambda: delay.write_text("0"), slow=True
        )
        for ms in (5, 20, 100, 500)
    }
    return {
        "killed": Fault(redis.kill, redis.start),
        "stopped": Fault(redis.stop, redis.go_on),
        **slow,
        "full": Fault(redis.fill, redis.empty),
        "read-only": Fault(redis.lock, redis.unlock),
        "asks for a password": Fault(redis.ask_password, redis.forget_password),
        "corrupt": Fault(redis.spoil),
        "restarted": Fault(redis.restart),
    }


def mixed(known: Sequence[str], numbers: Iterator[int], chance: random.Random) -> Iterator[str]:
    """Texts that the cache knows, and among them new ones: never the same twice."""
    while True:
        text = chance.choice(known)
        yield f"{text} {next(numbers)}" if chance.random() < NEW_SHARE else text


def fill(server: Server, known: Sequence[str]) -> None:
    """Until every text that should be known is a hit. Raises `SystemExit`: the cache does not come back."""
    who = as_router(server, known)
    for _ in range(50):
        if all(hit(reply) for reply in load.send(who.url, who.requests, connections=4)):
            return
        time.sleep(0.1)
    raise SystemExit("the cache does not answer before the fault")


def hit(reply: Reply) -> bool:
    return reply.status == 200 and b'"source":"cache"' in reply.body


def stretch(target: Target, texts: Sequence[str], times: Sequence[float]) -> list[Reply]:
    url = f"{target.server.url}/v1/classify"
    replies, _ = load.arrive(url, (load.request(url, {"input": text}, HEADERS) for text in texts), times)
    return replies


def trouble(target: Target, fault: Fault, texts: Sequence[str], times: Sequence[float]) -> Seen:
    """One fault under load, from the calm before it to the time after it."""
    read = target.log.stat().st_size

    def script() -> tuple[float, float]:
        time.sleep(CALM_S)
        begun = time.perf_counter()
        fault.begin()
        if fault.end:
            time.sleep(max(0.0, begun + FAULT_S - time.perf_counter()))
            fault.end()
        return begun, time.perf_counter()

    with ThreadPoolExecutor(1) as aside:
        running = aside.submit(script)
        replies = stretch(target, texts, times)
        begun, ended = running.result()
    time.sleep(0.2)  # log lines are written together, 50 ms later
    return judge(replies, told(target.log, read), begun, ended)


def told(log: Path, since: int) -> list[dict[str, Any]]:
    """The log's events from byte `since` on, those of requests aside; a line that is no JSON is an event as well."""
    events: list[dict[str, Any]] = []
    with log.open("rb") as file:
        file.seek(since)
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": line.decode(errors="replace").strip()}
            if event.get("event") != "request":
                events.append(event)
    return events


def judge(replies: Sequence[Reply], events: Sequence[Mapping[str, Any]], begun: float, ended: float) -> Seen:
    """`begun` and `ended` of the fault, as the replies' times: perf_counter."""
    clock = time.time() - time.perf_counter()
    moments = [datetime.fromisoformat(e["timestamp"]).timestamp() - clock for e in events if e["event"] == OPENED]
    opened = min((at for at in moments if at >= begun), default=None)
    over = max(ended, begun + AT_ONCE_S)
    early_until = over if opened is None else opened
    back = min((reply.started for reply in replies if reply.started >= ended and hit(reply)), default=None)
    return Seen(
        early_ms=took_ms(reply for reply in replies if begun <= reply.started < early_until),
        open_ms=took_ms(reply for reply in replies if early_until <= reply.started < ended),
        off_ms=[],
        failed=failures(replies),
        opened_s=None if opened is None else opened - begun,
        back_s=None if back is None else back - ended,
        log_lines=len(events),
    )


def failures(replies: Sequence[Reply]) -> int:
    return sum(reply.status != 200 or b'"label":"' not in reply.body for reply in replies)


def slower(rounds: Iterable[Seen]) -> float | None:
    """While the breaker is open: p99 over that of the service without a cache; the median of the rounds."""
    ratios = [
        percentile(s.open_ms, 0.99) / percentile(s.off_ms, 0.99) for s in rounds if s.opened_s is not None and s.open_ms
    ]
    return statistics.median(ratios) if ratios else None


def more_ms(rounds: Sequence[Seen]) -> float | None:
    """Before: p99 less that of the service without a cache in the same round; the median of the rounds."""
    return middle([percentile(seen.early_ms, 0.99) - percentile(seen.off_ms, 0.99) for seen in rounds])


def as_row(fault: str, rounds: Sequence[Seen]) -> dict[str, Any]:
    def mid(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return rounded(statistics.median(known)) if known else None

    ratio, more = slower(rounds), more_ms(rounds)
    backs = [seen.back_s for seen in rounds]
    return {
        "fault": fault,
        "rounds": len(rounds),
        "requests": sum(len(s.early_ms) + len(s.open_ms) + len(s.off_ms) for s in rounds),
        "failed": sum(seen.failed for seen in rounds),
        "breaker_opened_s": mid(seen.opened_s for seen in rounds),
        "early_requests": sum(len(seen.early_ms) for seen in rounds),
        "early_p99_more_ms": None if more is None else rounded(more),
        "open_p99_ms": mid(percentile(seen.open_ms, 0.99) if seen.open_ms else None for seen in rounds),
        "off_p99_ms": mid(percentile(seen.off_ms, 0.99) for seen in rounds),
        "open_over_off_p99": None if ratio is None else rounded(ratio),
        "hits_back_s_slowest": None if None in backs else rounded(max(backs)),
        "log_lines_most": max(seen.log_lines for seen in rounds),
    }


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("fault", title="the cache's Redis breaks", title_justify="left")
    columns = {
        "breaker open after, s": "breaker_opened_s",
        "p99 before: ms more": "early_p99_more_ms",
        "open: p99 ms": "open_p99_ms",
        "cache off: p99 ms": "off_p99_ms",
        "ratio": "open_over_off_p99",
        "hits back, s": "hits_back_s_slowest",
        "log lines": "log_lines_most",
        "failed": "failed",
    }
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["fault"], *("-" if row[key] is None else f"{row[key]:g}" for key in columns.values()))
    harness.console().print(table)


def bars(seen: Mapping[str, Sequence[Seen]]) -> list[Bar]:
    """The worst of the faults stands for all: its name is in the bar's. A p99 of three seconds is noisy, so the one
    while the breaker is open is told for all faults together as well: then the service does the same for each."""

    def worst(what: str, values: Mapping[str, float | None], limit: float, unit: str) -> Bar:
        known = {fault: value for fault, value in values.items() if value is not None}
        if not known:
            return Bar(what, None, f"<= {limit:g}", unit, None)
        fault = max(known, key=lambda fault: known[fault])
        return Bar(f"{what}: {fault}", known[fault], f"<= {limit:g}", unit, known[fault] <= limit)

    failed = sum(one.failed for rounds in seen.values() for one in rounds)
    # Not back as long as anybody looked: that long, then, which is more than the limit.
    backs = {fault: max(AFTER_S if s.back_s is None else s.back_s for s in rounds) for fault, rounds in seen.items()}
    every = slower(itertools.chain(*seen.values()))
    holds = None if every is None else every <= SLOWER
    return [
        Bar("failed requests", failed, "= 0", "", failed == 0),
        Bar("breaker open: p99 over that with the cache off, all faults", every, f"<= {SLOWER:g}", "x", holds),
        worst("breaker open: p99 over that with the cache off", {f: slower(r) for f, r in seen.items()}, SLOWER, "x"),
        worst("before: p99 more than with the cache off", {f: more_ms(r) for f, r in seen.items()}, LOOKUP_MS, "ms"),
        worst("from the fault's end to hits", backs, RECOVERY_S, "s"),
        worst("log lines", {f: max(one.log_lines for one in r) for f, r in seen.items()}, LOG_LINES, ""),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
