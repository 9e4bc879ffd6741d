"""Interleaved rounds: who is measured, what one round of it saw, the row that its rounds become.

The machine drifts from minute to minute, less within one: what is compared takes turns, ratios are taken within a
round, and the median over the rounds is told with the lowest and the highest.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import harness
import load
from harness import ROOT, Server
from load import Load, Reply
from rich.table import Table

KEY = "bench-key-of-no-consequence"
REDIS = "redis-server"  # as the process is named
HEADERS = {"Authorization": f"Bearer {KEY}"}
#: As in production: key check, ledger, metrics and request log are on.
AUTH = f"""\
[[auth.keys]]
tenant = "bench"
sha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"
"""
TASK = """\
[tasks.banking]
head = "banking77"

[tasks.banking.policy]
escalate = "never"
"""
#: The cache is off: each answer is computed.
SERVICE = f'[cache]\nurl = "off"\n\n{AUTH}'
CONFIG = f"{SERVICE}\n{TASK}"


class Contestant(NamedTuple):
    """A running server and what it is sent."""

    name: str
    server: Server
    url: str
    requests: Iterable[bytes]  # endless ones are never repeated, others round and round
    texts: int = 1  # in each request
    precision: str = "int8"


class Round(NamedTuple):
    load: Load
    cpu_seconds: float  # of the server, for all `load.served` answers
    texts: int = 1  # in each of them
    redis_seconds: float = 0.0  # the part of `cpu_seconds` that a redis-server of its own used

    @property
    def per_second(self) -> float:
        """Texts answered a second."""
        return self.load.per_second * self.texts

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of server CPU a text."""
        return self.cpu_seconds * 1000 / max(1, self.load.served * self.texts)


Rounds = dict[tuple[str, int], list[Round]]  # by contestant and connections


def read_texts() -> tuple[list[str], str]:
    """Different texts in a fixed random order (the rows are sorted by label), and where they are from."""
    data, why = harness.data_folder("banking77/test.csv")
    path = data / "banking77" / "test.csv" if data else ROOT / "examples" / "bank_support.csv"
    with path.open(encoding="utf-8", newline="") as file:
        texts = list(dict.fromkeys(row["text"].strip() for row in csv.DictReader(file)))
    if not data:  # too few: identical texts in flight share one computation, which is not what is measured
        texts = [f"{text} {number}" for number in range(12) for text in texts]
    random.Random(77).shuffle(texts)
    return texts, "banking77 test rows" if data else f"examples/bank_support.csv, numbered ({why})"


def as_router(server: Server, texts: Sequence[str], *, name: str = "router", batch: int = 1) -> Contestant:
    """The router, sent one text a request, or lists of `batch`."""
    url = f"{server.url}/v1/classify"
    bodies: list[str] | list[Sequence[str]] = list(texts)
    if batch > 1:
        bodies = [texts[at : at + batch] for at in range(0, len(texts) - batch + 1, batch)]
    return Contestant(name, server, url, [load.request(url, {"input": body}, HEADERS) for body in bodies], batch)


def answered(reply: Reply, texts: int = 1) -> bool:
    """Each of its texts has a label, and one that was computed for this request."""
    return reply.body.count(b'"label":"') >= texts and b'"coalesced":true' not in reply.body


def timed(who: Contestant, connections: int, seconds: float, *, accept: Callable[[Reply], bool] | None = None) -> Round:
    """One closed-loop measurement; `accept` says which replies count (default: `answered`)."""
    before, redis = who.server.cpu_seconds(), who.server.cpu_seconds(REDIS)
    seen = load.measure(
        who.url,
        who.requests,
        connections=connections,
        seconds=seconds,
        accept=accept or (lambda reply: answered(reply, who.texts)),
    )
    used = who.server.cpu_seconds() - before
    return Round(seen, used, who.texts, who.server.cpu_seconds(REDIS) - redis)


def timed_burst(who: Contestant, connections: int, count: int) -> Round:
    before = who.server.cpu_seconds()
    seen = load.burst(who.url, list(islice(who.requests, count)), connections=connections, accept=answered)
    return Round(seen, who.server.cpu_seconds() - before)


def warm(who: Contestant, connections: int = 64) -> None:
    """Each worker thread's first forward is slow."""
    load.send(who.url, islice(who.requests, 2 * connections), connections=connections)


@contextlib.contextmanager
def parked(contestants: Iterable[Contestant]) -> Iterator[None]:
    """Stopped (SIGSTOP) while others are measured: some servers poll when they have nothing to do."""
    servers = [who.server for who in contestants]
    for server in servers:
        server.stop()
    try:
        yield
    finally:
        for server in servers:
            server.go_on()


def row(name: str, connections: int, rounds: Sequence[Round], **more: Any) -> dict[str, Any]:
    """Medians over the rounds; the spread is [lowest, highest]."""
    rates = [r.load.per_second for r in rounds]
    return {
        "server": name,
        **more,
        "connections": connections,
        "texts_per_request": rounds[0].texts,
        "rounds": len(rounds),
        "requests_per_second": rounded(statistics.median(rates)),
        "requests_per_second_spread": [rounded(min(rates)), rounded(max(rates))],
        "p50_ms": rounded(statistics.median(r.load.p50_ms for r in rounds)),
        "p99_ms": rounded(statistics.median(r.load.p99_ms for r in rounds)),
        "server_cpu_ms_per_text": rounded(statistics.median(r.cpu_ms for r in rounds)),
        "generator_cores": rounded(statistics.median(r.load.generator_cores for r in rounds)),
        "answers": sum(r.load.served for r in rounds),
        "failures": sum(r.load.failures for r in rounds),
    }


def rounded(value: float) -> float | None:
    """Four significant digits; None for what was not seen (JSON has no NaN)."""
    return None if value != value else float(f"{value:.4g}")


def show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("server", "conns", title="medians of the rounds (lowest - highest)", title_justify="left")
    for column in ("requests/s", "p50 ms", "p99 ms", "server CPU ms/text", "failed"):
        table.add_column(column, justify="right")
    for r in rows:
        low, high = r["requests_per_second_spread"]
        spread = f" ({low:g} - {high:g})" if r["rounds"] > 1 else ""
        measured = (r["p50_ms"], r["p99_ms"], r["server_cpu_ms_per_text"])
        table.add_row(
            f"{r['server']} ({r['precision']})" if "precision" in r else r["server"],
            str(r["connections"]),
            f"{r['requests_per_second']:g}{spread}",
            *("-" if value is None else f"{value:g}" for value in measured),
            f"{r['failures']} of {r['failures'] + r['answers']}",
        )
    harness.console().print(table)


def paired(mine: Sequence[Any], theirs: Sequence[Any], compare: Callable[[Any, Any], float]) -> list[float]:
    """`compare` of each pair of rounds, in their order."""
    return [compare(one, other) for one, other in zip(mine, theirs, strict=False)]


def middle(values: Sequence[float]) -> float | None:
    """The median; None of nothing, or where a value is missing."""
    return None if not values or any(value != value for value in values) else statistics.median(values)
