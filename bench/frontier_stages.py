"""Where the time of an escalated request goes, one request at a time. A part of bench/frontier.py.

Of the service: what its answer says (`latency_ms`), what the ledger says of the paid call (`latency_us`: from the SDK's
call to its return), and what the caller saw. Beside them, measured on their own: the same call to the simulator from a
bare socket, and a reservation and a settlement in an empty ledger on the same disk.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import harness
import load
from harness import Server
from load import percentile
from rich.table import Table
from rounds import HEADERS, rounded

from cost.ledger import Ledger
from cost.schema import connect_readonly
from cost.types import Intent, Limits, Outcome, Usage
from providers.build import build
from providers.settings import Settings
from providers.types import Label, Question

MODEL = "gpt-6-luna"
#: In the order of a request; what the router itself adds is all but the call.
OWN = ("HTTP, front door", "cache", "queue", "local model", "budget, reserve, settle", "the input's row, the rest")
CALL, TOTAL = "the call: SDK, loopback, simulator", "what the caller waits for"
APART = ("simulator from a bare socket", "reserve, on its own", "settle, on its own")


class Stages(NamedTuple):
    """Milliseconds, a value a request, by stage."""

    ms: dict[str, list[float]]
    bare: tuple[str, list[bytes]]  # calls of the simulator: its URL, and requests as the SDK sends them
    failed: int  # requests that got no frontier answer

    @classmethod
    def measure(cls, service: Server, simulator: Server, ledger: Path, texts: Sequence[str]) -> Self:
        url = f"{service.url}/v1/classify"
        asked = [load.request(url, {"input": text}, HEADERS) for text in texts]
        load.send(url, asked[:5], connections=1)
        replies = load.send(
            url, [load.request(url, {"input": f"{text} again"}, HEADERS) for text in texts], connections=1
        )
        ms: dict[str, list[float]] = {}
        answers, failed = [], 0
        for reply in replies:
            answer = json.loads(reply.body)
            (result,) = answer["results"]
            if result.get("source") == "frontier":
                answers.append((answer["id"], result["latency_ms"], (reply.ended - reply.started) * 1000))
            else:
                failed += 1
        took = calls_of(ledger, [request_id for request_id, _, _ in answers])
        for request_id, said, waited in answers:
            call = took[request_id]
            inside = [said.get(stage, 0.0) for stage in ("cache", "queue", "local", "frontier")]
            parts = (waited - said["total"], *inside[:3], inside[3] - call, said["total"] - sum(inside))
            for stage, value in zip((*OWN, CALL, TOTAL), (*parts, call, waited), strict=True):
                ms.setdefault(stage, []).append(value)
        bare = bare_calls(simulator.url, service, texts)
        load.send(*bare, connections=1)
        ms[APART[0]] = [(r.ended - r.started) * 1000 for r in load.send(*bare, connections=1)]
        ms[APART[1]], ms[APART[2]] = asyncio.run(commits(len(texts)))
        return cls(ms, bare, failed)

    @property
    def own_share(self) -> float:
        """Of what the caller waits for: all but the call, means."""
        return 1 - statistics.fmean(self.ms[CALL]) / statistics.fmean(self.ms[TOTAL])


def calls_of(ledger: Path, request_ids: Sequence[str]) -> dict[str, float]:
    """Milliseconds that the paid call of a request took, by its id."""
    db = connect_readonly([ledger])
    try:
        found = dict(db.execute("SELECT request_id, sum(latency_us) FROM attempts GROUP BY 1").fetchall())
    finally:
        db.close()
    return {request_id: found[request_id] / 1000 for request_id in request_ids}


def bare_calls(url: str, service: Server, texts: Sequence[str]) -> tuple[str, list[bytes]]:
    """The bodies that the adapter sends, for the labels of the service's task."""
    body = load.request(f"{service.url}/v1/classify", {"input": texts[0], "route": "local", "top_k": 10}, HEADERS)
    (reply,) = load.send(f"{service.url}/v1/classify", [body], connections=1)
    (result,) = json.loads(reply.body)["results"]
    labels = [name for name, _ in result["scores"]]
    labels += [f"another_label_of_the_task_{number}" for number in range(77 - len(labels))]
    adapter = build("openai", name="bench", model=MODEL, api_key="simulated", settings=Settings(base_url=f"{url}/v1"))
    where = f"{url}/v1/responses"
    questions = (Question("banking", text, tuple(map(Label, labels))) for text in texts)
    headers = {"Authorization": "Bearer simulated"}
    made = [load.request(where, adapter.request(question), headers) for question in questions]
    asyncio.run(adapter.close())
    return where, made


async def commits(count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of reservations and settlements, one after the other."""
    reserve, settle = [], []
    with tempfile.TemporaryDirectory(prefix="co-bench-") as folder:
        ledger = Ledger.open(Path(folder) / "ledger.db")
        try:
            for number in range(count):
                at_us = int(time.time() * 1e6)
                intent = Intent("req", number, at_us, "bench", "banking", "p", MODEL, 1000, limits=Limits(10**12))
                begun = time.perf_counter()
                attempt = await ledger.reserve(intent)
                reserved = time.perf_counter()
                await ledger.settle(attempt, Outcome("settled", MODEL, Usage(10, output=2), 900))
                reserve.append((reserved - begun) * 1000)
                settle.append((time.perf_counter() - reserved) * 1000)
        finally:
            ledger.close()
    return reserve, settle


def by_stage(stages: Stages) -> list[dict[str, Any]]:
    found = []
    for stage, values in stages.ms.items():
        ordered = sorted(values)
        p50, p99 = (rounded(percentile(ordered, share)) for share in (0.5, 0.99))
        found.append({"stage": stage, "requests": len(ordered), "p50_ms": p50, "p99_ms": p99})
    return found


def show_stages(stages: Stages) -> None:
    title = f"an escalated request, one at a time, simulator without latency; own share {stages.own_share:.0%}"
    table = Table("stage", title=title, title_justify="left")
    for column in ("p50 ms", "p99 ms", "share of the mean %"):
        table.add_column(column, justify="right")
    total = statistics.fmean(stages.ms[TOTAL])
    for row in by_stage(stages):
        apart = row["stage"] in APART
        share = "" if apart else f"{statistics.fmean(stages.ms[row['stage']]) / total * 100:.0f}"
        name = f"({row['stage']})" if apart else row["stage"]
        table.add_row(name, f"{row['p50_ms']:g}", f"{row['p99_ms']:g}", share)
    harness.console().print(table)
