"""At how many requests a day does a model of your own pay? The tables of docs/crossover.md.

    python bench/breakeven.py [--write]

Three lengths of text, three API tiers, four kinds of hardware, by the formulas of the crossover report
(`cost.crossover`) and the list prices that are shipped. The CPU's rate is the measured one in bench/results; what else
is assumed is said below the tables. `--write` puts them between the marks in docs/crossover.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from cost.crossover import DAYS, Operations, Traffic, crossing, operated
from cost.hardware import Hardware
from cost.prices import PriceTable
from cost.types import Usage
from router.config import Config
from router.config_file import load
from router.reporting import hardware

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "crossover.md"
BEGIN, END = "<!-- python bench/breakeven.py --write: begin -->", "<!-- end -->"
MEASURED = "2026-11-21-two-cores-epyc.json"  # of bench/results
MEASURED_TOKENS = 15  # mean of the texts that were sent there (banking77 test rows), by the encoder's tokenizer
READ = 256  # tokens that the shipped encoder reads of a text
ESCALATED, PEAK, UTILISATION = 0.10, 4.0, 0.65
CACHEABLE = 1024  # tokens of a prompt's prefix, where the price table names no least
MILLION = 1_000_000


class Shape(NamedTuple):
    """Tokens of one call."""

    name: str
    what: str
    prefix: int  # the same in each call: instructions, labels, examples
    text: int
    output: int


SHAPES = (
    Shape("short", "a sentence, a few labels", 150, 40, 6),
    Shape("medium", "a message, 77 labels with descriptions", 700, 60, 8),
    Shape("long", "an email, the labels and worked examples", 2500, 400, 12),
)
TIERS = {"gpt-6-luna": "small", "gpt-6.1-terra": "medium", "gpt-6.1-sol": "large"}
MACHINES = ("cpu-box", "l4", "h100", "endpoint")  # of examples/hardware.toml


class Calls(NamedTuple):
    """nano-USD a million calls. `cached` None: the prefix is too short for the provider's prompt cache."""

    single: int
    cached: int | None
    batch: int | None

    @property
    def best(self) -> int:
        """Of single calls, in steady traffic."""
        return min(self.single, self.cached or self.single)


class Cell(NamedTuple):
    """Requests a day from which the hybrid is always cheaper, without and with operations; None: never."""

    shape: Shape
    model: str
    machine: str
    bare: float | None
    operated: float | None


def main() -> int:
    parser = argparse.ArgumentParser(description="The tables of docs/crossover.md.")
    parser.add_argument("--write", action="store_true", help="Put them into the page.")
    text = "\n".join(lines())
    if parser.parse_args().write:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    else:
        print(text)
    return 0


def lines() -> Iterator[str]:
    """Of the page."""
    prices = PriceTable.load()
    machines = {machine.name: machine for machine in hardware(load_examples()) or ()}
    rate, where = measured()
    cells = table(prices, machines, rate)
    yield "### The short answer"
    yield ""
    yield from answers(cells)
    yield ""
    yield "### What a million calls cost"
    yield ""
    yield "| text | tokens: prompt + text + answer | model | single calls | prompt cached | batch |"
    yield "|---|---|---|---|---|---|"
    for shape in SHAPES:
        for model, tier in TIERS.items():
            calls = cost_of(prices, model, shape)
            tokens = f"{shape.prefix:,} + {shape.text} + {shape.output}"
            yield (
                f"| {shape.name} | {tokens} | {model} ({tier}) | {dollars(calls.single)} | {dollars(calls.cached)} |"
                f" {dollars(calls.batch)} |"
            )
    yield ""
    yield (
        f"List prices of {prices.as_of}. -: the prompt before the text is shorter than what the provider caches "
        f"({CACHEABLE:,} tokens)."
    )
    for shape in SHAPES:
        yield ""
        yield f"### Break-even, {shape.name} texts: requests a day ({shape.what})"
        yield ""
        yield "| instead of | " + " | ".join(MACHINES) + " |"
        yield "|---|" + "---|" * len(MACHINES)
        for model in TIERS:
            row = [cell for cell in cells if (cell.shape, cell.model) == (shape, model)]
            yield f"| {model} | " + " | ".join(f"{volume(c.bare)} / {volume(c.operated)}" for c in row) + " |"
    yield ""
    people = Operations()
    yield (
        f"In each cell: machines only / with operations ({dollars(people.nano)} of work a month, {people.min_replicas} "
        f"replicas where they are always on, {people.audited:.0%} of the answers bought again as an audit, "
        f"{people.labels} labels bought a month). From that many requests a day on the hybrid is always cheaper."
    )
    yield ""
    yield "### Does the rule of thumb hold?"
    yield ""
    yield from verdicts(cells)
    yield ""
    yield "### What stands behind the tables"
    yield ""
    yield (
        "- The same response cache stands before both sides and answers nothing here. Where it answers half of the "
        "texts, all volumes are about twice as high."
    )
    yield (
        f"- {ESCALATED:.0%} of the texts go to the API all the same. The API's price is that of single calls with the "
        "prompt cached where it can be."
    )
    yield (
        f"- Peak load is {PEAK:g} times the mean, and a replica is used up to {UTILISATION:.0%} then (assumed). Idle "
        "hours are paid."
    )
    yield (
        f"- cpu-box: **measured**, {rate:.0f} requests/s of {MEASURED_TOKENS} tokens on average ({where}). For longer "
        f"texts the rate falls as the tokens rise (assumed); the shipped encoder reads {READ} of them, so long "
        'texts stand for `over_length = "truncate"`. That makes '
        + ", ".join(f"{capacity(rate, shape):.0f}/s for {shape.name} texts" for shape in SHAPES)
        + "."
    )
    for name, machine in ((name, machines[name]) for name in MACHINES):
        more = "" if name == "cpu-box" else f", {machine.requests_per_second:,.0f} requests/s"
        if machine.billing == "autoscaled":
            more += f", autoscaled: {machine.cold_start_s:g} s of cold start, then {machine.idle_s:g} s of waiting"
        yield f"- {name}: ${machine.usd_per_hour:g} an hour{more} ({machine.basis})."


def answers(cells: list[Cell]) -> Iterator[str]:
    """In a few lines: from where on, by tier; what people cost; which machine comes first."""
    for model, tier in TIERS.items():
        bare, run = (_span(cells, model, field) for field in ("bare", "operated"))
        yield (
            f"- **Instead of a {tier} model ({model})** your own pays from {bare}, by the length of the texts; with "
            f"operations from {run}."
        )
    box = [cell.operated / cell.bare for cell in cells if cell.machine == "cpu-box" and cell.bare and cell.operated]
    yield (
        f"- **People cost more than a small machine**: operations move the break-even of the cpu-box "
        f"{min(box):.0f} to {max(box):.0f} times up."
    )
    winners = [
        _first(cells, shape, model, field)[1] for shape in SHAPES for model in TIERS for field in ("bare", "operated")
    ]
    told = [f"{name} {winners.count(name)}" for name in MACHINES]
    yield f"- **Which machine pays first**, in {len(winners)} rows: {', '.join(told)} times."


def _span(cells: list[Cell], model: str, field: str) -> str:
    first = [_first(cells, shape, model, field) for shape in SHAPES]
    low, high = (volume(pick(value for value, _ in first)) for pick in (min, max))
    return f"{low} to {high} requests a day ({', '.join(sorted({machine for _, machine in first}))})"


def _first(cells: list[Cell], shape: Shape, model: str, field: str) -> tuple[float, str]:
    """The lowest break-even of a row, and its machine."""
    row = [cell for cell in cells if (cell.shape, cell.model) == (shape, model)]
    return min((float("inf") if (a_day := getattr(c, field)) is None else a_day, c.machine) for c in row)


def verdicts(cells: list[Cell]) -> Iterator[str]:
    """For which rows the break-even is in the tens of thousands of requests a day."""
    yield '"From tens of thousands of requests a day on your own model pays": 10,000 to 99,999.'
    yield ""
    yield "| instead of | text | machines only: it holds on | with operations: it holds on |"
    yield "|---|---|---|---|"
    for model in TIERS:
        for shape in SHAPES:
            row = [cell for cell in cells if (cell.shape, cell.model) == (shape, model)]
            yield f"| {model} | {shape.name} | {_where(row, 'bare')} | {_where(row, 'operated')} |"
    yield ""
    for field, what in (("bare", "machines only"), ("operated", "with operations")):
        values = [getattr(cell, field) for cell in cells]
        sooner = sum(v is not None and v < 10_000 for v in values)
        holds = sum(_holds(v) for v in values)
        never = values.count(None)
        yield (
            f"- {what}: of {len(values)} cases it holds in {holds}; in {sooner} fewer requests are enough, in "
            f"{len(values) - holds - sooner - never} it takes more, in {never} it never pays."
        )


def _where(row: list[Cell], field: str) -> str:
    found = [cell.machine for cell in row if _holds(getattr(cell, field))]
    return ", ".join(found) or "none"


def _holds(a_day: float | None) -> bool:
    return a_day is not None and 10_000 <= a_day < 100_000


def table(prices: PriceTable, machines: dict[str, Hardware], rate: float) -> list[Cell]:
    found = []
    for shape in SHAPES:
        for model in TIERS:
            call_nano = cost_of(prices, model, shape).best / MILLION
            traffic = Traffic(0.0, ESCALATED, call_nano, peak_to_mean=PEAK, utilisation=UTILISATION)
            for name in MACHINES:
                machine = machines[name]
                if machine.requests_per_second <= 0:
                    machine = msgspec.structs.replace(machine, requests_per_second=capacity(rate, shape))
                volumes = [crossing(each, machine) for each in (traffic, operated(traffic, Operations()))]
                found.append(Cell(shape, model, name, *(None if v is None else v.last / DAYS for v in volumes)))
    return found


def cost_of(prices: PriceTable, model: str, shape: Shape) -> Calls:
    """A million calls: every token at the plain price, the prefix from the prompt cache, through the batch API."""
    price = prices.models[model]
    plain = Usage(input=shape.prefix + shape.text, output=shape.output)
    cached = Usage(input=shape.text, cache_read=shape.prefix, output=shape.output)
    reads = shape.prefix >= (price.prompt_cache_min_tokens or CACHEABLE)

    def million(usage: Usage, *, batch: bool = False) -> int | None:
        nano = prices.cost_nano(model, usage, batch=batch)
        return None if nano is None else nano * MILLION

    single = million(plain)
    assert single is not None, model
    return Calls(single, million(cached) if reads else None, million(plain, batch=True))


def capacity(rate: float, shape: Shape) -> float:
    """Texts a second on the CPU box: its measured rate, at that shape's length."""
    return rate * MEASURED_TOKENS / min(shape.text, READ)


def measured() -> tuple[float, str]:
    """Requests a second that the router answered at four fifths of its capacity, and where that is from."""
    result = json.loads((ROOT / "bench" / "results" / MEASURED).read_text(encoding="utf-8"))["arrivals"]
    (row,) = [r for r in result["rows"] if r["share_of_capacity"] == 0.8]
    on = result["machine"]
    what = f"p99 {row['p99_ms']:.0f} ms, on {on['cores']} cores of an {on['cpu']}, commit {on['commit']}"
    return row["answered_per_second"], f"{what}: `make bench-local`, `bench/results/{MEASURED}`, arrivals at 80 %"


def load_examples() -> Config:
    return load(ROOT / "examples" / "hardware.toml", {}, serving=False).config


def dollars(nano: int | None) -> str:
    if nano is None:
        return "-"
    usd = nano / 1e9
    return f"${usd:,.0f}" if usd >= 10 else f"${usd:.2f}"


def volume(a_day: float | None) -> str:
    """Two digits are all that such a figure has."""
    if a_day is None:
        return "never"
    value = float(f"{a_day:.2g}")
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value:,.0f}"


if __name__ == "__main__":
    raise SystemExit(main())
