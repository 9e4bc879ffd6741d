"""The usual advice for serving a small classifier, measured one piece at a time.

    CROSSOVER_BENCH_DATA=DIR python bench/article.py [--quick]

Batching, a smaller model, quantization, a response cache, two workers, a GPU: each is served over HTTP by `crossover
serve`, and where the service would not do what the advice says, by the same service with its engine changed
(bench/swapped_server.py; marked so). All heads are fitted on the same 2,000 banking77 train rows, so that accuracies
compare; they are of the 3,080 test rows, sent one a request over 64 connections.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

import candidates
import harness
import load
from harness import ROOT, Bar, Server
from load import Load, Reply
from rich.table import Table

from local_model import encoder as encoders
from local_model.engines import cores, has_cuda
from local_model.learning import learn
from router.paths import cache_dir

NAME = "article"
TEST, TRAIN = "banking77/test.csv", "banking77/train.csv"
TRAIN_ROWS = 2_000
LAYERS = 3
HOT = 100  # texts that the cache's repeats are drawn from
CONNECTIONS = 64
CONFIG = """\
[model]
source = "{source}"
device = "{device}"
queue_tokens = 1_000_000
{engine}

[tasks.banking]
head = "{head}"

[tasks.banking.policy]
escalate = "never"

[cache]
url = "{cache}"

[server]
deadline_ms = 60_000
local_deadline_ms = 60_000
"""
TORCH, ONNX = 'engine = "torch"\nprecision = "fp32"', 'engine = "onnx"'
#: Batches as large as the engine takes them.
LARGE = '\noptimize = "throughput"'


class Setup(NamedTuple):
    """One piece of advice. `swap`: what bench/swapped_server.py changes; `servers`: processes with a thread each."""

    name: str
    engine: str
    swap: str = ""
    layers: int = 0  # 0: all of them
    cache: bool = False
    servers: int = 1
    device: str = "cpu"


PLAIN = Setup("fp32, one text a forward", TORCH, "1")
BATCHED = Setup("batching: fp32, up to 8 a forward", TORCH + LARGE)
SMALLER = Setup(f"smaller model: {LAYERS} layers, fp32, one a forward", TORCH, "1", LAYERS)
INT8 = Setup("quantization: int8, one a forward (the default)", ONNX)
INT8_BATCHED = Setup("quantization and batching: int8, up to 32 a forward", ONNX + LARGE, "padded-32")
INT8_SMALLER = Setup(f"quantization and smaller model: int8, {LAYERS} layers", ONNX, layers=LAYERS)
CACHED = Setup("cache: int8, half of the requests repeat an earlier one", ONNX, cache=True)
TWO = Setup("two workers: int8, a process and a thread each", ONNX, servers=2)
GPU = Setup("GPU: torch, bf16", 'engine = "torch"', device="cuda")
SETUPS = (PLAIN, BATCHED, SMALLER, INT8, INT8_BATCHED, INT8_SMALLER, CACHED, TWO, GPU)


class Rows(NamedTuple):
    texts: list[str]
    labels: list[str]


class Measured(NamedTuple):
    alone: list[Load]
    loaded: list[Load]
    cpu_ms: list[float]  # of the servers, an answer, under load
    labels: list[str | None]  # of the test texts


def main() -> int:
    parser = argparse.ArgumentParser(description="The usual advice, measured.")
    parser.add_argument("--quick", action="store_true", help="A smoke test; its figures mean nothing.")
    quick = parser.parse_args().quick
    test, train, not_run = read(quick)
    setups = [each for each in SETUPS if each is not GPU or has_cuda()]
    if GPU not in setups:
        not_run[GPU.name] = "no CUDA device here"
    out = harness.console()
    with tempfile.TemporaryDirectory(prefix="crossover-bench-") as folder, ExitStack() as stack:
        out.print(f"  fitting heads on {len(train.texts):,} rows")
        models = {layers: make_model(Path(folder), layers, train) for layers in (0, LAYERS)}
        candidates.export_padded(candidates.Workshop(encoders.DEFAULT, Path(folder), cache_dir(), cores(), ()))
        running = {}
        for number, setup in enumerate(setups):
            out.print(f"  starting {setup.name}")
            running[setup] = start(stack, Path(folder) / str(number), setup, *models[setup.layers])
        seen = take_turns(running, test, quick, out.print)
    gold = [] if "accuracy" in not_run else test.labels
    rows = [describe(setup, measured, gold) for setup, measured in seen.items()]
    show(rows)
    failures = sum(row["failures"] for row in rows)
    notes = [*findings(rows), *(["a smoke test: the figures mean nothing"] if quick else [])]
    bars = [Bar("requests without an answer", failures, "= 0", "", failures == 0)]
    rows = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
    return harness.finish(NAME, bars=bars, rows=rows, not_run=not_run, notes=notes)


def read(quick: bool) -> tuple[Rows, Rows, dict[str, str]]:
    """Test rows, train rows, and what can't be told. A smoke test takes the first rows, which are of two labels."""

    def rows(path: Path, count: int | None, label: str) -> Rows:
        with path.open(encoding="utf-8", newline="") as file:
            found = [(row["text"].strip(), row[label]) for row in csv.DictReader(file)]
        if count is not None:
            found = found[:: 1 if quick else max(1, len(found) // count)][:count]
        return Rows([text for text, _ in found], [label for _, label in found])

    data, why = harness.data_folder(TEST, TRAIN)
    if data is not None:
        test = rows(data / TEST, 64 if quick else None, "category")
        return test, rows(data / TRAIN, 200 if quick else TRAIN_ROWS, "category"), {}
    ours = rows(ROOT / "examples" / "bank_support.csv", None, "label")
    return ours, ours, {"accuracy": why}


def cut(source: Path, target: Path, layers: int) -> Path:
    """A BERT folder with the first `layers` layers only; the tokenizer and pooling files are copied."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    weights = load_file(target / "model.safetensors")
    kept = {
        name: weight
        for name, weight in weights.items()
        if ".layer." not in f".{name}" or int(name.split("layer.")[1].split(".")[0]) < layers
    }
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target


def make_model(folder: Path, layers: int, train: Rows) -> tuple[str, Path]:
    """(encoder, head folder): the default encoder, whole or cut, with a head fitted on `train`."""
    source = encoders.DEFAULT
    if layers:
        source = str(cut(encoders.find(source).path, folder / f"encoder-{layers}", layers))
    head = folder / f"head-{layers}"
    learn(
        "banking",
        train.texts,
        train.labels,
        encoder=encoders.find(source),
        folder=head,
        cache_dir=cache_dir() if not layers else folder / "cache",
        engine="all",
        device="cpu",
    )
    return source, head


def start(stack: ExitStack, folder: Path, setup: Setup, source: str, head: Path) -> list[Server]:
    """The setup's servers, warm; each has a folder, and so a ledger and a cache, of its own."""
    config = CONFIG.format(
        source=source,
        device=setup.device,
        engine=setup.engine + (f"\nthreads = {max(1, cores() // setup.servers)}" if setup.servers > 1 else ""),
        head=head,
        cache="embedded" if setup.cache else "off",
    )
    return [
        stack.enter_context(serve(folder / str(number), config, setup.swap, folder.parent))
        for number in range(setup.servers)
    ]


@contextmanager
def serve(folder: Path, config: str, swap: str, graphs: Path) -> Iterator[Server]:
    folder.mkdir(parents=True)
    file, log = folder / "crossover.toml", folder / "router.log"
    file.write_text(config)
    changed = [str(ROOT / "bench" / "swapped_server.py"), swap, str(graphs)] if swap else ["-m", "router"]
    command = [sys.executable, *changed, "serve", "--config", str(file), "--port", "0"]
    with harness.child(command, log, CROSSOVER_STATE_DIR=str(folder)) as process:
        yield harness.wait_for(process, log, r"listening on (http://\S+)", "/ready")


def traffic(texts: Sequence[str], numbers: Iterator[int], repeats: bool, seed: int = 0) -> Iterator[str]:
    """Texts without end, each made another by a number behind it; with `repeats` every second one (at random) is one
    of HOT texts instead, which come again and again.
    """
    draw = random.Random(seed)
    hot = [f"{text} again" for text in texts[:HOT]]
    for number in numbers:
        yield draw.choice(hot) if repeats and draw.random() < 0.5 else f"{texts[number % len(texts)]} {number}"


def take_turns(running: dict[Setup, list[Server]], test: Rows, quick: bool, say: Any) -> dict[Setup, Measured]:
    rounds, alone, loaded = (1, 1.0, 2.0) if quick else (3, 3.0, 6.0)
    found = {setup: Measured([], [], [], []) for setup in running}
    numbers = itertools.count(1000)
    for number in range(rounds):
        for setup in list(running) if number % 2 else list(reversed(running)):
            servers = running[setup]
            streams = [traffic(test.texts, numbers, setup.cache, number) for _ in servers]
            found[setup].alone.append(measure(servers[:1], streams[:1], 1, alone))
            before = sum(server.cpu_seconds() for server in servers)
            seen = measure(servers, streams, CONNECTIONS, loaded)
            used = sum(server.cpu_seconds() for server in servers) - before
            found[setup].loaded.append(seen)
            found[setup].cpu_ms.append(used * 1000 / max(1, seen.served))
            say(f"  {setup.name}: {seen.per_second:.0f}/s, p99 {seen.p99_ms:.0f} ms")
    for setup, servers in running.items():
        found[setup].labels.extend(answers(servers[0], test.texts))
    return found


def measure(servers: Sequence[Server], streams: Sequence[Iterator[str]], connections: int, seconds: float) -> Load:
    """A closed loop over `connections`, spread evenly over the servers, each with its own stream of texts.

    One second is not counted.
    """
    began, used = perf_counter(), process_time()

    def one(server: Server, texts: Iterator[str]) -> list[Reply]:
        url = f"{server.url}/v1/classify"
        requests = (load.request(url, {"input": text}) for text in texts)
        return load.send(url, requests, connections=max(1, connections // len(servers)), seconds=1 + seconds)

    with ThreadPoolExecutor(len(servers)) as pool:
        replies = [reply for part in pool.map(one, servers, streams) for reply in part]
    generator = (process_time() - used) / (perf_counter() - began)
    return load.summary(replies, answered, began + 1, began + 1 + seconds, generator)


def answered(reply: Reply) -> bool:
    return b'"label":"' in reply.body


def answers(server: Server, texts: Sequence[str]) -> list[str | None]:
    """Labels, in the order of the texts; None where none came."""
    url = f"{server.url}/v1/classify"
    found: list[str | None] = [None] * len(texts)
    requests = [load.request(url, {"input": text}) for text in texts]
    for reply in load.send(url, requests, connections=CONNECTIONS):
        if reply.status == 200 and answered(reply):
            found[reply.number] = json.loads(reply.body)["results"][0]["label"]
    return found


def describe(setup: Setup, seen: Measured, gold: Sequence[str]) -> dict[str, Any]:
    """Medians of the rounds."""
    rates = [each.per_second for each in seen.loaded]
    right = [mine == wanted for mine, wanted in zip(seen.labels, gold, strict=False)]
    return {
        "setup": setup.name,
        "engine_changed": bool(setup.swap),
        "alone_p50_ms": median(each.p50_ms for each in seen.alone),
        "p99_ms": median(each.p99_ms for each in seen.loaded),
        "texts_per_second": median(rates),
        "texts_per_second_spread": [min(rates), max(rates)],
        "server_cpu_ms": median(seen.cpu_ms),
        "accuracy": sum(right) / len(right) if right else None,
        "labels": seen.labels,
        "failures": sum(each.failures for each in (*seen.alone, *seen.loaded)) + seen.labels.count(None),
    }


def findings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What each piece of advice did here, against what it is added to."""
    by_name = {row["setup"]: row for row in rows}
    said = []
    for one, base in (
        (BATCHED, PLAIN),
        (SMALLER, PLAIN),
        (INT8, PLAIN),
        (INT8_BATCHED, INT8),
        (INT8_SMALLER, INT8),
        (CACHED, INT8),
        (TWO, INT8),
        (GPU, INT8),
    ):
        if one.name in by_name and base.name in by_name:
            mine, theirs = by_name[one.name], by_name[base.name]
            other = sum(a != b for a, b in zip(mine["labels"], theirs["labels"], strict=True)) / len(mine["labels"])
            lost = "" if mine["accuracy"] is None else f", {(mine['accuracy'] - theirs['accuracy']) * 100:+.1f} points"
            said.append(
                f"{one.name}: {mine['texts_per_second'] / theirs['texts_per_second']:.2f} x the rate and "
                f"{mine['p99_ms'] / theirs['p99_ms']:.2f} x the p99 of: {base.name}; "
                f"{other:.1%} of the labels are others{lost}"
            )
    return said


def show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("advice", title="* the service with its engine changed", title_justify="left")
    for column in ("alone p50 ms", "64 conns: p99 ms", "texts/s (spread)", "CPU ms/text", "accuracy %"):
        table.add_column(column, justify="right")
    for row in rows:
        low, high = row["texts_per_second_spread"]
        table.add_row(
            row["setup"] + " *" * row["engine_changed"],
            f"{row['alone_p50_ms']:.1f}",
            f"{row['p99_ms']:.0f}",
            f"{row['texts_per_second']:,.0f} ({low:,.0f}-{high:,.0f})",
            f"{row['server_cpu_ms']:.2f}",
            "-" if row["accuracy"] is None else f"{row['accuracy'] * 100:.1f}",
        )
    harness.console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
