"""One tenant floods, another must not notice. A part of bench/overload.py; as a program it is the flood itself:

    python bench/flood.py URL KEY CONNECTIONS SECONDS

New texts in a closed loop, whatever it is answered, Retry-After ignored. It prints "flooding" once it has begun, and at
last a JSON object: how many replies of each status. Its priority is the lowest there is (nice 19): elsewhere it would
have processors of its own, here it gets what the server leaves.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import load
from arrivals import poisson
from harness import Bar
from load import Reply, percentile, took_ms
from rounds import Contestant, answered, middle, rounded

SECRET = "bench-key-of-a-flood"
KEY = f"""
[[auth.keys]]
tenant = "flooder"
sha256 = "{hashlib.sha256(SECRET.encode()).hexdigest()}"
"""
CONNECTIONS = 128
NEIGHBOURS, ALLOWED = 0.4, 0.1  # of the capacity: what the other tenant sends, what a limit lets the flooder send
SLOWER = 1.5


class Flooded(NamedTuple):
    """A round: the other tenant's latencies (ms, sorted) without and with the flood, and what the flood got."""

    alone_ms: list[float]
    beside_ms: list[float]
    failures: int  # of the other tenant, refusals too
    statuses: dict[str, int]


def rounds(who: Contestant, capacity: float, count: int, seconds: float) -> list[Flooded]:
    """The other tenant alone and beside the flood, in changing order."""
    made = []
    for number in range(count):
        times = poisson(NEIGHBOURS * capacity, seconds, random.Random(number))
        seen: dict[bool, list[Reply]] = {}
        statuses: dict[str, int] = {}
        for beside in (False, True) if number % 2 else (True, False):
            with ExitStack() as stack:
                if beside:
                    told = stack.enter_context(flood(who.url, seconds + 1.0))
                seen[beside], _ = load.arrive(who.url, who.requests, times)
            if beside:
                statuses = told
        good = {beside: [reply for reply in replies if fine(reply)] for beside, replies in seen.items()}
        failures = sum(len(replies) for replies in seen.values()) - sum(len(replies) for replies in good.values())
        made.append(Flooded(took_ms(good[False]), took_ms(good[True]), failures, statuses))
    return made


@contextmanager
def flood(url: str, seconds: float) -> Iterator[dict[str, int]]:
    """The flood goes on while the block runs; how many replies of each status it got is there afterwards."""
    command = [sys.executable, __file__, url, SECRET, str(CONNECTIONS), str(seconds)]
    statuses: dict[str, int] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            time.sleep(0.5)  # until it is in full swing
            yield statuses
            statuses |= json.loads(process.stdout.readline() or "{}")
        finally:
            process.kill()


def fine(reply: Reply) -> bool:
    return reply.status == 200 and answered(reply)


def neighbour(seen: Sequence[Flooded]) -> list[float]:
    """The other tenant's p99 beside the flood over that without, round by round."""
    return [percentile(r.beside_ms, 0.99) / percentile(r.alone_ms, 0.99) for r in seen]


def row(name: str, seen: Sequence[Flooded]) -> dict[str, Any]:
    statuses: Counter[str] = Counter()
    for one in seen:
        statuses.update(one.statuses)
    return {
        "part": "flood",
        "against_it": name,
        "p99_alone_ms": [rounded(percentile(r.alone_ms, 0.99)) for r in seen],
        "p99_beside_ms": [rounded(percentile(r.beside_ms, 0.99)) for r in seen],
        "p50_alone_ms": [rounded(percentile(r.alone_ms, 0.5)) for r in seen],
        "p50_beside_ms": [rounded(percentile(r.beside_ms, 0.5)) for r in seen],
        "flood_replies": dict(statuses),
        "failures": sum(r.failures for r in seen),
    }


def note(name: str, seen: Sequence[Flooded]) -> str:
    told, ratios = row(name, seen), neighbour(seen)
    return (
        f"flood, {name}: the other's p99 {told['p99_alone_ms']} ms without, {told['p99_beside_ms']} ms beside it "
        f"(ratio {min(ratios):.2f} - {max(ratios):.2f}); the flood's replies by status: {told['flood_replies']}"
    )


def bars(floods: Mapping[str, Sequence[Flooded]]) -> list[Bar]:
    made = []
    for name, seen in floods.items():
        ratio = middle(neighbour(seen))
        holds = None if ratio is None else ratio <= SLOWER
        made.append(Bar(f"flood, {name}: the other's p99 over that without", ratio, f"<= {SLOWER:g}", "x", holds))
    failures = sum(r.failures for seen in floods.values() for r in seen)
    made.append(Bar("flood: the other's requests without an answer", failures, "= 0", "", failures == 0))
    return made


def main(url: str, key: str, connections: int, seconds: float) -> None:
    os.nice(19)
    headers = {"Authorization": f"Bearer {key}"}
    requests = (load.request(url, {"input": f"where is my card {os.getpid()} {n}"}, headers) for n in itertools.count())
    print("flooding", flush=True)
    replies = load.send(url, requests, connections=connections, seconds=seconds)
    print(json.dumps(Counter(reply.status for reply in replies)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
