"""Every engine that was tried for the local model, on the same texts: speed, fidelity, and what neighbours change.

    CROSSOVER_BENCH_DATA=DIR python bench/engines.py [--quick] [--only WORD]

Each engine (bench/candidates.py) lives in a process of its own, and they take turns over slices of the 3,080 banking77
test texts. What is timed is token ids to embeddings on all cores, in an order sorted by length; tokenizing and the head
cost all of them the same. Fidelity compares with torch fp32 under one head, the shipped one for fp32; the accuracy is
that of a head of the engine's own, fitted on its embeddings of 2,000 train texts.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import candidates
import harness
import numpy as np
from candidates import REFERENCE, SERVED, Candidate, Workshop
from engine_process import EngineProcess, Failed
from harness import ROOT, Bar
from rich.table import Table

import local_model
from local_model import encoder as encoders
from local_model import tokenize
from local_model.engines import Output, cores
from local_model.heads import Head, load_head
from local_model.training import fit_head
from router.paths import cache_dir

NAME = "engines"
TEST, TRAIN = "banking77/test.csv", "banking77/train.csv"
HEAD = Path(local_model.__file__).parent / "heads" / "banking77"
THRESHOLD = 0.8  # where accept decisions are compared
ROUNDS = 5
TRAIN_ROWS = 2_000
CALIBRATION = 256  # texts that fix the scales of statically quantized engines
COMPANY = 320  # texts that are run again in other company; divisible by every batch size
SAME = 1e-4  # a probability that moves by no more has not been changed by its neighbours
LOST = 1.0  # points of accuracy that an engine may lose to fp32 and still count as one that keeps its answers

Array = np.ndarray[Any, Any]


class Texts(NamedTuple):
    """Token ids. `gold` and `train_gold`: empty where the data sets are not at hand."""

    test: list[list[int]]
    gold: list[str]
    train: list[list[int]]
    train_gold: list[str]
    train_texts: list[str]
    calibration: list[list[int]]


class Seen(NamedTuple):
    """One engine's run."""

    candidate: Candidate
    ready: float  # seconds until it answered the first texts, imports included
    embeddings: Array  # (n, hidden) of the test texts
    train: Array | None  # of the train texts, if there are any
    company: Array  # of the first COMPANY test texts, beside other neighbours
    rates: list[float]
    cpu_ms: list[float]


def main() -> int:
    parser = argparse.ArgumentParser(description="Every engine that was tried, on the same texts.")
    parser.add_argument("--quick", action="store_true", help="A smoke test on few texts; its figures mean nothing.")
    parser.add_argument("--texts", type=int, help="So many test texts, and at most as many train texts, of all.")
    parser.add_argument("--only", default="", help="Only engines whose name holds this (and the two compared with).")
    asked = parser.parse_args()
    chosen = [each for each in candidates.CANDIDATES if asked.only in each.name or each.name in (SERVED, REFERENCE)]
    return compare(
        encoders.DEFAULT, load_head(HEAD, "torch-fp32", encoders.find()), chosen, quick=asked.quick, count=asked.texts
    )


def compare(source: str, head: Head, chosen: Sequence[Candidate], *, quick: bool, count: int | None = None) -> int:
    texts, not_run = read(source, quick, count)
    out = harness.console()
    with tempfile.TemporaryDirectory(prefix="crossover-bench-") as folder, ExitStack() as stack:
        cache = cache_dir() if quick else Path(folder) / "cache"  # a fresh one, to time the building
        shop = Workshop(source, Path(folder), cache, cores(), texts.calibration)
        started = time.monotonic()
        if any(each.from_graph for each in chosen):
            candidates.export_one(shop)
            candidates.export_padded(shop)
        exported = time.monotonic() - started
        running: dict[Candidate, tuple[EngineProcess, float]] = {}
        for each in chosen:
            if reason := absent(each):
                not_run[title(each)] = reason
                continue
            out.print(f"  starting {title(each)}")
            try:
                engine = stack.enter_context(EngineProcess(each, shop))
                running[each] = (engine, engine.start(sample(texts.test)))
            except Failed as error:
                not_run[title(each)] = str(error)
        seen = take_turns(running, texts, 2 if quick else ROUNDS, not_run, out.print)
    rows = describe(seen, texts, head)
    show(rows)
    notes = [
        f"{len(texts.test):,} texts, {len(seen)} engines in turn on {cores()} cores; the two exports that the other "
        f"onnx and the OpenVINO rows start from took {exported:.0f} s and are in none of their times to be ready",
        *(["a smoke test: the figures mean nothing"] if quick else []),
    ]
    return harness.finish(NAME, bars=bars(rows), rows=rows, not_run=not_run, notes=notes)


def read(source: str, quick: bool, wanted: int | None = None) -> tuple[Texts, dict[str, str]]:
    tokenizer = tokenize.load(encoders.find(source), cache_dir())

    def rows(path: Path, count: int | None, label: str) -> tuple[list[str], list[str]]:
        with path.open(encoding="utf-8", newline="") as file:
            found = [(row["text"], row[label]) for row in csv.DictReader(file)]
        if count is not None:  # a smoke test takes the first labels only: their heads are fitted at once
            found = found[:: 1 if quick else max(1, len(found) // count)][:count]
        return [text for text, _ in found], [label for _, label in found]

    def ids(texts: Sequence[str]) -> list[list[int]]:
        return [tokenizer.encode(text, truncate=True).ids for text in texts]

    data, why = harness.data_folder(TEST, TRAIN)
    if data is None:
        texts, _ = rows(ROOT / "examples" / "bank_support.csv", 64 if quick else wanted, "label")
        return Texts(ids(texts), [], [], [], [], ids(texts[:8])), {"accuracy with a head of its own": why}
    test, gold = rows(data / TEST, 64 if quick else wanted, "category")
    train, train_gold = rows(data / TRAIN, 200 if quick else min(wanted or TRAIN_ROWS, TRAIN_ROWS), "category")
    held, _ = rows(data / TRAIN, 8 if quick else CALIBRATION, "category")
    return Texts(ids(test), gold, ids(train), train_gold, train, ids(held)), {}


def absent(candidate: Candidate) -> str:
    missing = [name for name in candidate.needs if importlib.util.find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if candidate.compiles and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "no C++ compiler here"
    return ""


def title(candidate: Candidate) -> str:
    return f"{candidate.name}, {candidate.batch} a forward"


def sample(ids: list[list[int]]) -> list[list[int]]:
    """A few batches' worth of every length, to warm up with."""
    return sorted(ids, key=len)[:: max(1, len(ids) // 256)]


def take_turns(
    running: dict[Candidate, tuple[EngineProcess, float]],
    texts: Texts,
    rounds: int,
    not_run: dict[str, str],
    say: Any,
) -> list[Seen]:
    """Slices in turn, then other company, then the train texts. An engine that fails is out, with its reason."""
    order = np.random.default_rng(0).permutation(min(COMPANY, len(texts.test)))
    parts: dict[Candidate, list[Any]] = {each: [] for each in running}
    work: list[tuple[list[list[int]], bool]] = [
        ([texts.test[i] for i in slice_], True) for slice_ in np.array_split(np.arange(len(texts.test)), rounds)
    ]
    work.append(([texts.test[i] for i in order], False))
    work += [(texts.train, True)] if texts.train else []
    for number, (ids, by_length) in enumerate(work):
        say(f"  part {number + 1} of {len(work)}: {len(ids)} texts")
        for each in list(parts) if number % 2 else list(reversed(parts)):
            try:
                parts[each].append(running[each][0].run(ids, by_length=by_length))
            except Failed as error:
                not_run[title(each)] = str(error)
                del parts[each]
    found = []
    for each in running:
        if each not in parts:
            continue
        turns, company, train = parts[each][:rounds], parts[each][rounds], parts[each][rounds + 1 :]
        beside = np.empty_like(company.embeddings)
        beside[order] = company.embeddings
        rates = [len(turn.embeddings) / turn.seconds for turn in turns]
        cpu_ms = [turn.cpu_seconds / len(turn.embeddings) * 1000 for turn in turns]
        embeddings = np.concatenate([turn.embeddings for turn in turns])
        found.append(
            Seen(each, running[each][1], embeddings, train[0].embeddings if train else None, beside, rates, cpu_ms)
        )
    return found


def describe(seen: Sequence[Seen], texts: Texts, head: Head) -> list[dict[str, Any]]:
    reference = next((each for each in seen if each.candidate.name == REFERENCE), None)
    wanted = None if reference is None else head.probabilities(Output(reference.embeddings, None))
    served = next((each for each in seen if each.candidate.name == SERVED), None)
    rows = []
    for each in seen:
        mine = head.probabilities(Output(each.embeddings, None))
        beside = head.probabilities(Output(each.company, None))
        rows.append(
            {
                "engine": each.candidate.name,
                "texts_per_forward": each.candidate.batch,
                "texts_per_second": median(each.rates),
                "texts_per_second_spread": [min(each.rates), max(each.rates)],
                "cpu_ms_per_text": median(each.cpu_ms),
                "served_is_faster_by": None
                if served is None
                else median(ours / theirs for ours, theirs in zip(served.rates, each.rates, strict=True)),
                "against_fp32": None if wanted is None else moved(mine, wanted),
                "accuracy_own_head": own_accuracy(each, texts),
                "other_neighbours": moved(mine[: len(beside)], beside),
                "ready_seconds": each.ready,
            }
        )
    return rows


def moved(mine: Array, theirs: Array) -> dict[str, float]:
    """Shares of texts; `shift`: the largest difference of any probability."""
    accepted = [each.max(axis=1) >= THRESHOLD for each in (mine, theirs)]
    return {
        "label_changed": float((mine.argmax(axis=1) != theirs.argmax(axis=1)).mean()),
        "accept_flipped": float((accepted[0] != accepted[1]).mean()),
        "shift": float(np.abs(mine - theirs).max()),
    }


def own_accuracy(seen: Seen, texts: Texts) -> float | None:
    if seen.train is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few rows a label: a smoke test has no more
        fitted = fit_head(seen.train, texts.train_gold, texts.train_texts)
    predicted = (seen.embeddings @ fitted.weight.T + fitted.bias).argmax(axis=1)
    return float((np.array(fitted.labels)[predicted] == np.array(texts.gold)).mean())


def keeps_its_answers(row: dict[str, Any], fp32: float | None) -> bool:
    """Neighbours change nothing, and the head of its own is within LOST points of fp32's (if that was measured)."""
    lost = 0.0 if fp32 is None else (fp32 - row["accuracy_own_head"]) * 100
    return row["other_neighbours"]["shift"] <= SAME and lost <= LOST


def bars(rows: Sequence[dict[str, Any]]) -> list[Bar]:
    fp32 = next((row["accuracy_own_head"] for row in rows if row["engine"] == REFERENCE), None)
    ours = next((row for row in rows if row["engine"] == SERVED), None)
    others = [row for row in rows if row["engine"] != SERVED and keeps_its_answers(row, fp32)]
    best = max(others, key=lambda row: float(row["texts_per_second"]), default=None)
    speed = "texts/s of the served engine over the next that keeps its answers"
    if ours is None:
        return [Bar(speed, None, ">= 1", "x", None)]
    ratio = None if best is None else best["served_is_faster_by"]
    shift = ours["other_neighbours"]["shift"]
    return [
        Bar(
            speed + ("" if best is None else f" ({best['engine']}, {best['texts_per_forward']} a forward)"),
            ratio,
            ">= 1",
            "x",
            None if ratio is None else ratio >= 1,
        ),
        Bar("largest change of a served probability by other neighbours", shift, "= 0", "", shift == 0),
        Bar(
            "accuracy that the served engine loses to fp32, own heads",
            None if fp32 is None else (fp32 - ours["accuracy_own_head"]) * 100,
            f"<= {LOST:g}",
            "points",
            None if fp32 is None else (fp32 - ours["accuracy_own_head"]) * 100 <= LOST,
        ),
    ]


def show(rows: Sequence[dict[str, Any]]) -> None:
    columns = ("texts/s", "spread", "CPU ms", "label %", "flip %", "shift", "own %", "label %", "shift", "ready s")
    table = Table("engine, texts a forward", title_justify="left")
    table.title = (
        "CPU ms of a text; labels and accepts that differ from fp32's under its head, largest probability change;\n"
        "accuracy with a head of its own; labels and probabilities that other neighbours change"
    )
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: -row["texts_per_second"]):
        slow, fast = row["texts_per_second_spread"]
        fp32, beside, accuracy = row["against_fp32"], row["other_neighbours"], row["accuracy_own_head"]
        table.add_row(
            f"{row['engine']}, {row['texts_per_forward']}",
            f"{row['texts_per_second']:,.0f}",
            f"{slow:,.0f}-{fast:,.0f}",
            f"{row['cpu_ms_per_text']:.2f}",
            *(("-",) * 3 if fp32 is None else changes(fp32)),
            "-" if accuracy is None else f"{accuracy * 100:.2f}",
            f"{beside['label_changed'] * 100:.2f}",
            f"{beside['shift']:.1g}",
            f"{row['ready_seconds']:.0f}",
        )
    harness.console().print(table)


def changes(found: dict[str, float]) -> tuple[str, str, str]:
    return f"{found['label_changed'] * 100:.2f}", f"{found['accept_flipped'] * 100:.2f}", f"{found['shift']:.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
