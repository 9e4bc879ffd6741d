"""The frontier tier's own cost: what a hanging provider does to local answers, and where an escalation's time goes.

    python bench/frontier.py [--quick]

- Local answers while every provider hangs. Three services get the same open-loop arrivals in turn, in changing order:
  one whose two providers accept every call and never answer, one whose providers answer (median 300 ms), one without a
  provider. A fifth of the texts is uncertain and escalates. With a deadline of 3 s no call gets the 2 s after which a
  breaker counts it as a failure: breakers stay closed, and calls hang all the time. Compared is the p99 of the answers
  that need no frontier; a round goes there and back, so its ratio is of figures seconds apart, and its interval is
  Student's on the logarithms over the rounds. The promise is about the first two: the same service and traffic, before
  and after its providers begin to hang. The third shows what escalations cost local answers at all.
- The stages of an escalated request, one at a time, against a simulator without latency whose own time is measured.
- Calls a second of the simulator beside escalations a second of the service: whatever is measured, it is not the
  simulator.
- Labels that flip under attack (`crossover compare --attacks`): the local model, and a simulation that obeys orders.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import harness
import load
from arrivals import poisson
from frontier_attacks import attack, show_flips
from frontier_services import FIRST, KEYS, SECOND, SERVICE, calls, simulator
from frontier_stages import Stages, by_stage, show_stages
from harness import Bar, Server
from load import Reply, percentile, took_ms
from rich.table import Table
from rounds import HEADERS, as_router, middle, read_texts, rounded, timed, warm
from scipy.stats import t as student

NAME = "frontier"
HANGING, ANSWERING, ABSENT = "providers hang", "providers answer", "no provider"
THRESHOLD, LOAD, ESCALATED = 0.8, 0.4, 0.2
BOUND, FASTER = 1.25, 2.0
TEXTS = 1600  # whose confidence is looked up


class Lengths(NamedTuple):
    rounds: int
    seconds: float  # of arrivals, twice a round, a service
    alone: int  # escalated requests, one at a time
    closed: float  # seconds of a closed-loop measurement
    attacked: int  # texts


class Seen(NamedTuple):
    """One service in one round. Milliseconds from when a request was due."""

    local_ms: list[float]  # sorted: answers of the local model that stand
    replies: int
    refused: int  # 429: a stall of the machine filled the queue
    failed: int  # any other reply without a label
    calls: int  # that reached the simulator


def main() -> int:
    parser = argparse.ArgumentParser(description="What the frontier tier costs the requests, and itself.")
    parser.add_argument("--quick", action="store_true", help="A smoke test: two short rounds.")
    quick = parser.parse_args().quick
    lengths = Lengths(2, 1.0, 20, 0.5, 1) if quick else Lengths(20, 2.5, 300, 4.0, 5)
    texts, origin = read_texts()
    out = harness.console()
    with tempfile.TemporaryDirectory(prefix="co-bench-") as name:
        folder = Path(name)
        out.print(f"local answers while providers hang: {lengths.rounds} rounds")
        seen, per_second = hang(folder, texts, lengths)
        out.print("stages of an escalated request; simulator and service")
        stages, rates = escalate(folder, texts, lengths)
        out.print("labels under attack")
        flips = attack(folder, lengths.attacked)
    rows = [as_row(which, rounds) for which, rounds in seen.items()]
    show(rows)
    show_stages(stages)
    show_flips(flips)
    notes = [
        f"{per_second:.0f} requests/s, {LOAD:.0%} of the capacity; {ESCALATED:.0%} escalate; {origin}",
        f"p99 of local answers, geometric mean of the rounds' ratios: {told(seen, ANSWERING)}; {told(seen, ABSENT)}",
        f"every frontier here is SIMULATED; {rates['simulator_per_second']:.0f} calls/s of the simulator alone, "
        f"{rates['service_per_second']:.0f} escalations/s of the service with it, 16 connections",
        *(["a smoke test: the figures mean nothing"] if quick else []),
    ]
    made = bars(seen, rates, flips)
    more = [{"part": "stages", **row} for row in by_stage(stages)]
    more += [{"part": "flips", **{k: v for k, v in flip.items() if k != "kinds"}} for flip in flips]
    return harness.finish(NAME, bars=made, rows=[*rows, *more, {"part": "rates", **rates}], notes=notes)


# local answers while every provider hangs ----------------------------------------------------------------------------


def hang(folder: Path, texts: Sequence[str], lengths: Lengths) -> tuple[dict[str, list[Seen]], float]:
    """By service, what each round saw; and the arrivals a second."""
    seen: dict[str, list[Seen]] = {HANGING: [], ANSWERING: [], ABSENT: []}
    with ExitStack() as stack:
        stuck = stack.enter_context(simulator(folder, "stuck", "--latency-ms", "0", "--fault", "hang:1.0"))
        fine = stack.enter_context(simulator(folder, "fine", "--latency-ms", "300"))
        urls = {HANGING: stuck.url, ANSWERING: fine.url, ABSENT: ""}
        servers: dict[str, Server] = {}
        for which, url in urls.items():
            config = SERVICE.format(threshold=THRESHOLD) + ((FIRST + SECOND).format(url=url) if url else "")
            where = folder / which.replace(" ", "-")
            servers[which] = stack.enter_context(harness.router(where, config, **KEYS))
        sure, unsure = sorted_by_certainty(servers[ABSENT], texts)
        plain = as_router(servers[ABSENT], sure)
        for server in servers.values():
            warm(as_router(server, sure))
        per_second = LOAD * timed(plain, 64, lengths.closed).per_second
        numbers = itertools.count()
        for number in range(lengths.rounds):
            chance = random.Random(number)
            turns = [*itertools.islice(itertools.cycle(urls), number % 3, number % 3 + 3)]
            times = [poisson(per_second, lengths.seconds, chance) for _ in range(2)]
            asked = [mixed(sure, unsure, numbers, chance, len(each)) for each in times]
            replies: dict[str, list[Reply]] = {which: [] for which in turns}
            before = {which: calls(url) for which, url in urls.items()}
            for half, order in enumerate((turns, turns[::-1])):  # there and back: what drifts meets all three alike
                for which in order:
                    replies[which] += arrive(servers[which], asked[half], times[half])
            for which, url in urls.items():
                seen[which].append(as_seen(replies[which], calls(url) - before[which]))
    return seen, per_second


def sorted_by_certainty(server: Server, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those that the local model is well sure of, and those that it is not; in between a number behind a text might
    decide."""
    url = f"{server.url}/v1/classify"
    batches = [texts[at : at + 16] for at in range(0, min(len(texts), TEXTS), 16)]
    requests = [load.request(url, {"input": batch, "route": "local"}, HEADERS) for batch in batches]
    sure, unsure = [], []
    for reply in load.send(url, requests, connections=1):
        for text, result in zip(batches[reply.number], json.loads(reply.body)["results"], strict=True):
            if result.get("confidence", 0.0) > THRESHOLD + 0.1:
                sure.append(text)
            elif result.get("confidence", 1.0) < THRESHOLD - 0.2:
                unsure.append(text)
    return sorted(sure), sorted(unsure)


def mixed(
    sure: Sequence[str], unsure: Sequence[str], numbers: Iterator[int], chance: random.Random, count: int
) -> list[str]:
    """An uncertain text gets a number, or those in flight would share a call."""
    return [
        f"{chance.choice(unsure)} {next(numbers)}" if chance.random() < ESCALATED else chance.choice(sure)
        for _ in range(count)
    ]


def arrive(server: Server, texts: Iterable[str], times: Sequence[float]) -> list[Reply]:
    url = f"{server.url}/v1/classify"
    return load.arrive(url, [load.request(url, {"input": text}, HEADERS) for text in texts], times)[0]


def as_seen(replies: Sequence[Reply], made: int) -> Seen:
    local = [r for r in replies if b'"source":"local"' in r.body and b'"degraded":null' in r.body]
    refused = sum(reply.status == 429 for reply in replies)
    failed = sum(reply.status != 200 or b'"label":"' not in reply.body for reply in replies) - refused
    return Seen(took_ms(local), len(replies), refused, failed, made)


def ratios(seen: dict[str, list[Seen]], base: str) -> list[float]:
    """Of the p99s, a round each."""
    pairs = zip(seen[HANGING], seen[base], strict=True)
    return [percentile(one.local_ms, 0.99) / percentile(other.local_ms, 0.99) for one, other in pairs]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of ratios and its 95 % interval (Student's t on the logarithms)."""
    logs = [math.log(value) for value in values]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(mean), math.nan, math.nan
    half = student.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def told(seen: dict[str, list[Seen]], base: str) -> str:
    mean, low, high = interval(ratios(seen, base))
    return f"{HANGING} over {base}: {mean:.2f} ({low:.2f} - {high:.2f}; {len(seen[base])} rounds)"


# what an escalation takes --------------------------------------------------------------------------------------------


def escalate(folder: Path, texts: Sequence[str], lengths: Lengths) -> tuple[Stages, dict[str, float]]:
    """The stages of escalated requests alone; and the rates of simulator and service, in turn."""
    with ExitStack() as stack:
        fast = stack.enter_context(simulator(folder, "fast", "--latency-ms", "0"))
        config = SERVICE.format(threshold=1.0).replace('url = "off"', "memory_bytes = 0")
        config += SECOND.format(url=fast.url)
        where = folder / "escalating"
        server = stack.enter_context(harness.router(where, config, **KEYS))
        numbered = (f"{text} {number}" for number, text in enumerate(itertools.cycle(texts)))
        stages = Stages.measure(server, fast, where / "ledger.db", list(itertools.islice(numbered, lengths.alone)))
        url = f"{server.url}/v1/classify"
        requests = (load.request(url, {"input": text}, HEADERS) for text in numbered)
        service, alone = [], []
        for _ in range(2 if lengths.rounds < 3 else 3):
            alone.append(load.measure(*stages.bare, connections=16, seconds=lengths.closed, accept=lambda _: True))
            service.append(
                load.measure(
                    url,
                    requests,
                    connections=16,
                    seconds=lengths.closed,
                    accept=lambda reply: b'"source":"frontier"' in reply.body,
                )
            )
    pairs = zip(alone, service, strict=True)
    return stages, {
        "simulator_per_second": statistics.median(each.per_second for each in alone),
        "service_per_second": statistics.median(each.per_second for each in service),
        "ratio": middle([one.per_second / other.per_second for one, other in pairs if other.answers]) or math.nan,
        "not_escalated": sum(each.failures for each in service),
    }


# figures -------------------------------------------------------------------------------------------------------------


def as_row(which: str, rounds: Sequence[Seen]) -> dict[str, Any]:
    """Medians over the rounds; sums of counts."""
    tails = [percentile(each.local_ms, 0.99) for each in rounds]
    return {
        "part": "local answers",
        "service": which,
        "rounds": len(rounds),
        "local_p50_ms": rounded(statistics.median(percentile(each.local_ms, 0.5) for each in rounds)),
        "local_p99_ms": rounded(statistics.median(tails)),
        "local_p99_ms_spread": [rounded(min(tails)), rounded(max(tails))],
        "local_answers": sum(len(each.local_ms) for each in rounds),
        "replies": sum(each.replies for each in rounds),
        "refused": sum(each.refused for each in rounds),
        "failed": sum(each.failed for each in rounds),
        "calls_to_the_simulator": sum(each.calls for each in rounds),
    }


def show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("service", title="answers that need no frontier: medians of the rounds", title_justify="left")
    for column in ("p50 ms", "p99 ms", "its spread", "local answers", "other replies", "429", "paid calls made"):
        table.add_column(column, justify="right")
    for r in rows:
        low, high = r["local_p99_ms_spread"]
        others = r["replies"] - r["local_answers"]
        cells = (r["local_p50_ms"], r["local_p99_ms"], f"{low} - {high}", r["local_answers"], others, r["refused"])
        table.add_row(r["service"], *map(str, cells), str(r["calls_to_the_simulator"]))
    harness.console().print(table)


def bars(seen: dict[str, list[Seen]], rates: dict[str, float], flips: Sequence[dict[str, Any]]) -> list[Bar]:
    high = rounded(interval(ratios(seen, ANSWERING))[2])
    failed = sum(each.failed for rounds in seen.values() for each in rounds)
    outside = sum(flip["outside"] for flip in flips)
    ratio = rounded(rates["ratio"])
    return [
        Bar(
            f"p99 of local answers, {HANGING} over {ANSWERING}: upper 95 % bound of {len(seen[HANGING])} rounds",
            high,
            f"<= {BOUND:g}",
            "x",
            None if high is None else high <= BOUND,
        ),
        Bar("requests that failed, refusals (429) aside, all services", failed, "= 0", "", failed == 0),
        Bar(
            "calls a second of the simulator alone over escalations of the service",
            ratio,
            f">= {FASTER:g}",
            "x",
            None if ratio is None else ratio >= FASTER,
        ),
        Bar("replies under attack that named no label of the set and were no error", outside, "= 0", "", outside == 0),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
