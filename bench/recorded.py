"""A real frontier, replayed: what GPT-4 answered to 1,001 banking77 texts, behind the router at several thresholds.

    CROSSOVER_BENCH_DATA=DIR python bench/recorded.py [--quick]

DIR/recorded_gpt4/banking77.csv has text, gold id and GPT-4's id. The simulator answers with GPT-4's recorded label; the
service asks it over HTTP through the official SDK and pays by list price. The rows are test data for both: the shipped
head was not trained on them.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import harness
import load
from harness import Bar
from rich.table import Table

from cost.prices import PriceTable
from cost.schema import connect_readonly
from router.cache.keys import normalize

NAME = "recorded"
ROWS, NAMES = "recorded_gpt4/banking77.csv", "banking77/train.csv"
#: What the simulated model is priced as: GPT-4 itself is in no price list any more.
MODEL = "gpt-6-luna"
THRESHOLDS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
QUICK = (0.0, 0.8, 1.0)
CONFIG = """\
[tasks.banking]
head = "banking77"
instructions = "Messages that customers of an online bank send to its support."

[tasks.banking.policy]
threshold = {threshold}

[cache]
url = "off"

[providers.recorded]
kind = "openai"
model = "{model}"
base_url = "{url}/v1"

[budget]
usd_per_day = 1000.0
"""
IN_FLIGHT = 8
BUCKETS = ("input", "cache_read", "cache_write_5m", "output")


class Recorded(NamedTuple):
    text: str  # normalized, as the frontier is shown it
    gold: str
    gpt4: str


class Answer(NamedTuple):
    label: str
    source: str
    degraded: str | None


class Books(NamedTuple):
    """Of one run's ledger, nano-USD."""

    total: int
    frontier: int
    calls: int


def main() -> int:
    parser = argparse.ArgumentParser(description="Recorded GPT-4 answers behind the router.")
    parser.add_argument("--quick", action="store_true", help="A smoke test: 150 rows, three thresholds.")
    quick = parser.parse_args().quick
    data, why = harness.data_folder(ROWS, NAMES)
    if data is None:
        return harness.finish(NAME, bars=[], not_run={"recorded GPT-4 answers": why})
    rows = read_recorded(data / ROWS, data / NAMES)[: 150 if quick else None]
    thresholds = QUICK if quick else THRESHOLDS
    out = harness.console()
    out.print(f"{len(rows)} rows, {len(thresholds)} thresholds; each starts the service anew, without a cache")

    runs: dict[float, list[Answer]] = {}
    books: dict[float, Books] = {}
    with tempfile.TemporaryDirectory(prefix="crossover-bench-") as temporary:
        folder = Path(temporary)
        with simulator(folder, rows) as url:
            for threshold in thresholds:
                config = CONFIG.format(threshold=threshold, model=MODEL, url=url)
                where = folder / f"threshold-{threshold:g}"
                with harness.router(where, config, OPENAI_API_KEY="simulated") as server:
                    runs[threshold] = ask(f"{server.url}/v1/classify", rows)
                books[threshold] = read_books(where / "ledger.db")
                out.print(f"  threshold {threshold:<5g} {books[threshold].calls:5d} texts escalated")
            bill, billed_calls = read_bill(url)

    table = [contestant("local alone", rows, [a.label for a in runs[0.0]], runs[0.0], books[0.0])]
    table.append(contestant("GPT-4 alone (recorded)", rows, [row.gpt4 for row in rows], None, None))
    for threshold in thresholds[1:]:
        labels = [answer.label for answer in runs[threshold]]
        table.append(contestant(f"router, {threshold:g}", rows, labels, runs[threshold], books[threshold]))
    show(table)
    notes = [
        conclude(rows, runs),
        f"the frontier is simulated: GPT-4's recorded labels, priced as {MODEL} (list of {PriceTable.load().as_of}); "
        "tokens are the simulator's, four characters each",
        *(["a smoke test: the figures mean nothing"] if quick else []),
    ]
    return harness.finish(NAME, bars=bars(rows, runs, books, bill, billed_calls), rows=table, notes=notes)


def read_recorded(recorded: Path, named: Path) -> list[Recorded]:
    """Texts with gold and GPT-4's label by name. Ids become names through the gold labels: each row's text is looked
    up in `named` (columns text, category). Raises `ValueError`: a text not found, an id with two names or none."""
    with named.open(encoding="utf-8", newline="") as file:
        category = {normalize(row["text"]): row["category"] for row in csv.DictReader(file)}
    with recorded.open(encoding="utf-8", newline="") as file:
        rows = [(normalize(row["text"]), row["label"], row["gpt-label"]) for row in csv.DictReader(file)]
    names: dict[str, str] = {}
    for number, (text, gold, _) in enumerate(rows, 1):
        if text not in category:
            raise ValueError(f"{recorded}: the text of row {number} is not in {named}")
        if names.setdefault(gold, category[text]) != category[text]:
            raise ValueError(f"{recorded}: id {gold} is {names[gold]} and, in row {number}, {category[text]}")
    nameless = sorted({gpt4 for _, _, gpt4 in rows} - set(names))
    if nameless:
        raise ValueError(f"{recorded}: no row's gold label names id {', '.join(nameless)}")
    return [Recorded(text, names[gold], names[gpt4]) for text, gold, gpt4 in rows]


@contextmanager
def simulator(folder: Path, rows: Sequence[Recorded]) -> Iterator[str]:
    """The frontier that answers as recorded; gives its URL."""
    answers, log = folder / "answers.csv", folder / "simulator.log"
    with answers.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((row.text, row.gpt4) for row in rows)
    command = [sys.executable, "-m", "router", "simulate-frontier", "--answers", str(answers), "--latency-ms", "0"]
    with harness.child(command, log) as process:
        yield harness.wait_for(process, log, r'"url": "(http://[^"]+)"', "/_sim/calls").url


def ask(url: str, rows: Sequence[Recorded]) -> list[Answer]:
    """One request a row, over HTTP; answers in order. Raises `RuntimeError` if one fails."""
    requests = [load.request(url, {"input": row.text}) for row in rows]
    answers: dict[int, Answer] = {}
    for reply in load.send(url, requests, connections=IN_FLIGHT):
        if reply.status != 200:
            raise RuntimeError(f"request {reply.number + 1} of {len(rows)} got status {reply.status}")
        (result,) = json.loads(reply.body)["results"]
        answers[reply.number] = Answer(result["label"], result["source"], result["degraded"])
    return [answers[number] for number in range(len(rows))]


def read_books(ledger: Path) -> Books:
    db = connect_readonly([ledger])
    try:
        (total,) = db.execute("SELECT sum(cost_nano) FROM inputs").fetchone()
        frontier, calls = db.execute("SELECT coalesce(sum(cost_nano), 0), count(*) FROM attempts").fetchone()
    finally:
        db.close()
    return Books(total, frontier, calls)


def read_bill(url: str) -> tuple[int, int]:
    """What the simulator charged for all runs, priced by the table: nano-USD, and for how many calls."""
    with urllib.request.urlopen(f"{url}/_sim/bill", timeout=10) as response:
        lines = json.load(response)["bill"]
    prices, nano, calls = PriceTable.load(), 0, 0
    for name, line in lines.items():
        price = prices.price(name.split(" ")[-1])
        if price is None:
            raise RuntimeError(f"no price is known for {name}")
        # The list prices are whole nano-USD a token, so the sum is exact however the calls are grouped.
        nano += sum(line[bucket] * (getattr(price, bucket) or 0) for bucket in BUCKETS) // 1_000_000
        calls += line["calls"]
    return nano, calls


def contestant(
    name: str, rows: Sequence[Recorded], labels: Sequence[str], answers: Sequence[Answer] | None, books: Books | None
) -> dict[str, Any]:
    """A line of the table. `accuracy_95`: Wilson's interval; dollars: the ledger's, local device time included."""
    right = sum(row.gold == label for row, label in zip(rows, labels, strict=True))
    low, high = wilson(right, len(rows))
    escalated = 1.0 if answers is None else sum(a.source == "frontier" for a in answers) / len(rows)
    return {
        "name": name,
        "rows": len(rows),
        "accuracy": round(right / len(rows), 4),
        "accuracy_95": [round(low, 4), round(high, 4)],
        "escalated": round(escalated, 4),
        "usd_per_million": None if books is None else round(books.total / len(rows) / 1000, 4),
    }


def wilson(right: int, of: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927); 95 % by default."""
    share, square = right / of, z * z
    middle = (share + square / (2 * of)) / (1 + square / of)
    half = z / (1 + square / of) * math.sqrt(share * (1 - share) / of + square / (4 * of * of))
    return middle - half, middle + half


def paired_interval(better: int, worse: int, of: int, z: float) -> tuple[float, float, float]:
    """Difference of two accuracies on the same rows and its Wald interval: only rows where one is right and the
    other wrong count (`better`, `worse`)."""
    difference = (better - worse) / of
    half = z * math.sqrt(max(0.0, better + worse - (better - worse) ** 2 / of)) / of
    return difference, difference - half, difference + half


def conclude(rows: Sequence[Recorded], runs: Mapping[float, Sequence[Answer]]) -> str:
    """The finding, in one sentence."""

    thresholds = [threshold for threshold in runs if threshold > 0]
    # Several thresholds are looked at, so each interval is widened (Bonferroni): all of them hold with 95 %.
    z = NormalDist().inv_cdf(1 - 0.025 / len(thresholds))

    def against_local(threshold: float) -> tuple[float, float, float]:
        triples = list(zip(rows, runs[threshold], runs[0.0], strict=True))
        better = sum(row.gold == ours.label != local.label for row, ours, local in triples)
        worse = sum(row.gold == local.label != ours.label for row, ours, local in triples)
        return paired_interval(better, worse, len(rows), z)

    found = {threshold: against_local(threshold) for threshold in thresholds}
    best = max(found, key=lambda threshold: found[threshold][0])
    _, low, high = found[best]
    verdict = "helps" if low > 0 else "harms" if high < 0 else "changes nothing that can be told apart"
    return (
        f"Finding: against local alone, escalating at {best:g} (the best of {len(found)} thresholds) {verdict}: "
        f"{points(*found[best])}; escalating everything: {points(*found[max(found)])}."
    )


def points(share: float, low: float, high: float) -> str:
    return f"{share * 100:+.1f} points ({low * 100:+.1f} to {high * 100:+.1f} with 95 % confidence)"


def bars(
    rows: Sequence[Recorded],
    runs: Mapping[float, Sequence[Answer]],
    books: Mapping[float, Books],
    bill: int,
    billed_calls: int,
) -> list[Bar]:
    answers = [(row, answer) for run in runs.values() for row, answer in zip(rows, run, strict=True)]
    altered = sum(answer.source == "frontier" and answer.label != row.gpt4 for row, answer in answers)
    degraded = sum(answer.degraded is not None for _, answer in answers)
    spent = sum(one.frontier for one in books.values())
    calls = sum(one.calls for one in books.values())
    escalated = sum(answer.source == "frontier" for _, answer in answers)
    return [
        exactly("ledger's spend less the simulator's bill at list price", spent - bill, "nano-USD"),
        exactly("ledger's paid calls less the simulator's", calls - billed_calls, "calls"),
        exactly("escalated answers less paid calls", escalated - calls, "calls"),
        exactly("escalated answers that differ from the recorded one", altered, "answers"),
        exactly("degraded answers", degraded, "answers"),
    ]


def exactly(name: str, value: int, unit: str) -> Bar:
    return Bar(name, value, "= 0", unit, value == 0)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("answers from", title="right answers, share escalated, dollars", title_justify="left")
    for column in ("accuracy %", "95 % interval", "escalated %", "$ per 1M requests"):
        table.add_column(column, justify="right")
    for row in rows:
        low, high = row["accuracy_95"]
        usd = row["usd_per_million"]
        table.add_row(
            row["name"],
            f"{row['accuracy'] * 100:.1f}",
            f"{low * 100:.1f} - {high * 100:.1f}",
            f"{row['escalated'] * 100:.1f}",
            "-" if usd is None else f"{usd:,.2f}",
        )
    harness.console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
