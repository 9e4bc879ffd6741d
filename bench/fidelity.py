"""What int8 costs in answers: the shipped head on the 3,080 banking77 test rows, by engine.

The engines are onnx int8, torch fp32 and, where there is a CUDA device, torch bf16.

    CROSSOVER_BENCH_DATA=DIR python bench/fidelity.py

Every text takes the served path below HTTP (admission, tokenizer, batcher, engine, head, calibration), 64 in flight.
The engines take turns in slices of the rows. Each has the head fitted on its own embeddings, as in service.
"""

from __future__ import annotations

import asyncio
import csv
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import harness
import numpy as np
from harness import Bar
from rich.table import Table

import local_model
from local_model.calibration import accuracy_interval, calibration_error
from local_model.engines import has_cuda
from local_model.model import LocalModel, ModelSettings, TaskSpec
from router.paths import cache_dir

NAME = "fidelity"
ROWS = "banking77/test.csv"
HEAD = Path(local_model.__file__).parent / "heads" / "banking77"
THRESHOLD = 0.8  # where accept decisions are compared
IN_FLIGHT = 64
QUEUE = 100_000  # tokens: whoever is slow is not to refuse
SLICES = 4
ALONE = 200  # texts asked again one at a time


class Served(NamedTuple):
    """One engine's answers: (rows, labels) probabilities in row order; texts/s and CPU ms a text of each slice."""

    probabilities: np.ndarray[Any, np.dtype[np.float32]]
    rates: list[float]
    cpu_ms: list[float]


def main() -> int:
    data, why = harness.data_folder(ROWS)
    if data is None:
        return harness.finish(NAME, bars=[], not_run={"banking77 test rows": why})
    with (data / ROWS).open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    return asyncio.run(compare([text for text, _ in rows], [label for _, label in rows]))


async def compare(texts: Sequence[str], gold: Sequence[str]) -> int:
    out = harness.console()
    settings = {
        "onnx": ModelSettings(engine="onnx", device="cpu", queue_tokens=QUEUE),
        "torch": ModelSettings(engine="torch", device="cpu", queue_tokens=QUEUE),
    }
    if has_cuda():
        settings["cuda"] = ModelSettings(engine="torch", device="cuda", queue_tokens=QUEUE)
    models = {name: open_model(each, out.print) for name, each in settings.items()}
    for model in models.values():
        model.start(asyncio.get_running_loop())
    try:
        parts: dict[str, list[Served]] = {name: [] for name in models}
        for slice_ in np.array_split(np.arange(len(texts)), SLICES):
            for name, model in models.items():
                parts[name].append(await served(model, [texts[i] for i in slice_], IN_FLIGHT))
        again = await served(models["onnx"], texts[:ALONE], 1)
    finally:
        for model in models.values():
            await asyncio.to_thread(model.close)

    labels = models["onnx"].task("banking").labels
    targets = np.array([labels.index(label) for label in gold])
    found = {name: join(each) for name, each in parts.items()}
    rows = [describe(models[name], result, targets) for name, result in found.items()]
    int8, fp32 = (found[name].probabilities for name in ("onnx", "torch"))
    agree = (int8.argmax(axis=1) == fp32.argmax(axis=1)).mean()
    flipped = ((int8.max(axis=1) >= THRESHOLD) != (fp32.max(axis=1) >= THRESHOLD)).mean()
    moved = int((again.probabilities != int8[:ALONE]).any(axis=1).sum())
    show(rows)
    out.print(f"int8 against fp32, own heads: same label {agree:.2%}, accept at {THRESHOLD} flipped {flipped:.2%}")

    accuracy, gap = rows[0]["accuracy"] * 100, (rows[1]["accuracy"] - rows[0]["accuracy"]) * 100
    bars = [
        Bar("accuracy on int8", accuracy, ">= 92", "%", accuracy >= 92),
        Bar("accuracy lost to int8 against fp32", gap, "<= 0.5", "points", gap <= 0.5),
        Bar(f"of {ALONE} texts, scores changed by company on int8", moved, "= 0", "texts", moved == 0),
    ]
    extra = {"label_agreement": float(agree), "accepts_flipped": float(flipped), "threshold": THRESHOLD}
    not_run = {} if "cuda" in models else {"torch bf16 on CUDA": "no CUDA device here"}
    return harness.finish(NAME, bars=bars, rows=[*rows, extra], not_run=not_run)


def open_model(settings: ModelSettings, progress: Callable[[str], None]) -> LocalModel:
    model = LocalModel.load(settings, [TaskSpec("banking", HEAD)], cache_dir=cache_dir(), progress=progress)
    model.warm()
    return model


async def served(model: LocalModel, texts: Sequence[str], in_flight: int) -> Served:
    results: list[Any] = [None] * len(texts)
    numbers = iter(range(len(texts)))

    async def client() -> None:
        for i in numbers:
            (future,) = model.submit("banking", [texts[i]], truncate=True, deadline=None)
            results[i] = (await future).probabilities

    started, cpu = time.perf_counter(), cpu_seconds()
    await asyncio.gather(*(client() for _ in range(in_flight)))
    seconds, used = time.perf_counter() - started, cpu_seconds() - cpu
    return Served(np.array(results), [len(texts) / seconds], [used / len(texts) * 1000])


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def join(parts: Sequence[Served]) -> Served:
    return Served(
        np.concatenate([part.probabilities for part in parts]),
        [rate for part in parts for rate in part.rates],
        [cpu for part in parts for cpu in part.cpu_ms],
    )


def describe(model: LocalModel, result: Served, targets: np.ndarray[Any, Any]) -> dict[str, Any]:
    right = result.probabilities.argmax(axis=1) == targets
    confidence = result.probabilities.max(axis=1)
    accepted = confidence >= THRESHOLD
    return {
        "engine": model.status()["encoders"][0]["kind"],
        "rows": len(targets),
        "accuracy": float(right.mean()),
        "accuracy_95": accuracy_interval(int(right.sum()), len(right)),
        "calibration_error": calibration_error(confidence, right),
        "accepted": float(accepted.mean()),
        "accuracy_of_accepted": float(right[accepted].mean()),
        "texts_per_second": median(result.rates),
        "texts_per_second_spread": [min(result.rates), max(result.rates)],
        "cpu_ms_per_text": median(result.cpu_ms),
    }


def show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("engine", title=f"{rows[0]['rows']:,} banking77 test rows", title_justify="left")
    for column in (
        "accuracy %",
        "95 % interval",
        "calibration error",
        f"accepted at {THRESHOLD} %",
        "right of these %",
        "texts/s (spread)",
        "CPU ms a text",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        low, high = row["accuracy_95"]
        slow, fast = row["texts_per_second_spread"]
        table.add_row(
            row["engine"],
            f"{row['accuracy'] * 100:.2f}",
            f"{low * 100:.1f} - {high * 100:.1f}",
            f"{row['calibration_error']:.4f}",
            f"{row['accepted'] * 100:.1f}",
            f"{row['accuracy_of_accepted'] * 100:.1f}",
            f"{row['texts_per_second']:,.0f} ({slow:,.0f}-{fast:,.0f})",
            f"{row['cpu_ms_per_text']:.2f}",
        )
    harness.console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
