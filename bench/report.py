"""The report over a big ledger beside one bare aggregate on the same file; and whether sums drift.

    python bench/report.py [--quick]

A made-up ledger of three million inputs (bench/ledgers.py). In turn, each in a process of its own, on the file as the
system has cached it: the report as `crossover report` builds it, and one aggregate that has to look at every row, too
(GROUP BY source, day, with three sums). Compared are their seconds, imports not counted, within a round. Memory is that
of the process at its highest, beside the report over a tenth of the rows. Then ten million paid calls: totals and
repriced totals against integers that were added up as the rows were made.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import harness
import ledgers
from harness import Bar
from rounds import rounded

from cost import tally
from cost.prices import PriceTable
from cost.report import build
from cost.repricing import repriced
from cost.schema import DAY_US, connect_readonly

NAME = "report"
TIMES, MORE_MB = 3.0, 64.0
AGGREGATE = f"SELECT source, at_us / {DAY_US}, sum(cost_nano), sum(tokens), sum(total_us) FROM inputs GROUP BY 1, 2"


class Seen(NamedTuple):
    """One run in a process of its own."""

    seconds: float
    cpu_seconds: float
    resident_mb: float  # at its highest


def main() -> int:
    parser = argparse.ArgumentParser(description="The report over a big ledger beside one bare aggregate.")
    parser.add_argument("--quick", action="store_true", help="A smoke test: few rows, one round.")
    parser.add_argument("--run", nargs=2, metavar=("WHAT", "LEDGER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        what, ledger = given.run
        print(json.dumps(here(PARTS[what], Path(ledger))))
        return 0
    rows, rounds, calls = (30_000, 1, 20_000) if given.quick else (3_000_000, 5, 10_000_000)
    out = harness.console()
    with tempfile.TemporaryDirectory(prefix="crossover-bench-") as name:
        folder = Path(name)
        out.print(f"writing {rows:,} inputs, and a tenth of them")
        big, small = folder / "big.db", folder / "small.db"
        ledgers.write(big, rows)
        ledgers.write(small, rows // 10)
        seen = measure(big, rounds)
        little = child("report", small)
        size = big.stat().st_size
        big.unlink()
        out.print(f"writing {calls:,} paid calls")
        drift = drifted(folder / "calls.db", calls)
    ratio = statistics.median(report.seconds / bare.seconds for report, bare in seen)
    highest = max(report.resident_mb for report, _ in seen)
    notes = [
        f"{rows:,} inputs over 60 days, {size / 1e6:,.0f} MB; {rounds} rounds",
        f"report: {told([one for one, _ in seen])}; aggregate: {told([other for _, other in seen])}",
        f"memory of the report: {highest:.0f} MB, over a tenth of the rows {little.resident_mb:.0f} MB",
        f"{calls:,} calls: a sum of floats would be off by {drift['float_off_nano']:g} nano-dollars",
        *(["a smoke test: the figures mean nothing"] if given.quick else []),
    ]
    return harness.finish(NAME, bars=bars(ratio, highest - little.resident_mb, drift), rows=as_rows(seen), notes=notes)


def bars(ratio: float, more_mb: float, drift: dict[str, float]) -> list[Bar]:
    return [
        Bar("report over one bare aggregate of the same rows", rounded(ratio), f"<= {TIMES:g}", "x", ratio <= TIMES),
        Bar(
            "memory of the report, ten times the rows over one",
            rounded(more_mb),
            f"<= {MORE_MB:g}",
            "MB",
            more_mb <= MORE_MB,
        ),
        Bar("drift of the sums", drift["off_nano"], "= 0", "nano-USD", drift["off_nano"] == 0),
    ]


# a process for each ---------------------------------------------------------------------------------------------------


def measure(ledger: Path, rounds: int) -> list[tuple[Seen, Seen]]:
    """(report, aggregate) of each round, in changing order; a first one of both is not counted: the file is read in."""
    found = []
    for number in range(-1, rounds):
        order = ("report", "aggregate") if number % 2 else ("aggregate", "report")
        seen = {what: child(what, ledger) for what in order}
        if number >= 0:
            found.append((seen["report"], seen["aggregate"]))
    return found


def child(what: str, ledger: Path) -> Seen:
    command = [sys.executable, __file__, "--run", what, str(ledger)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr[-2000:]}")
    return Seen(*json.loads(done.stdout))


def here(work: Callable[[Path], Any], ledger: Path) -> Seen:
    begun, used = time.perf_counter(), time.process_time()
    work(ledger)
    took, cpu = time.perf_counter() - begun, time.process_time() - used
    unit = 1024 if sys.platform == "linux" else 1  # ru_maxrss is in KiB there, in bytes on a Mac
    return Seen(took, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def report(ledger: Path) -> None:
    build([ledger], volume_per_month=2_000_000)


def aggregate(ledger: Path) -> None:
    with closing(connect_readonly([ledger])) as db:
        db.execute(AGGREGATE).fetchall()


PARTS = {"report": report, "aggregate": aggregate}


def told(runs: list[Seen]) -> str:
    seconds = [run.seconds for run in runs]
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} - {max(seconds):.2f})"


def as_rows(seen: list[tuple[Seen, Seen]]) -> list[dict[str, Any]]:
    return [
        {"what": what, **{key: rounded(value) for key, value in run._asdict().items()}}
        for pair in seen
        for what, run in zip(("report", "aggregate"), pair, strict=True)
    ]


# drift ----------------------------------------------------------------------------------------------------------------


def drifted(ledger: Path, calls: int) -> dict[str, float]:
    """How far what the ledger sums to is from what was written; and a sum in floats, in nano-dollars."""
    wrote = ledgers.write(ledger, calls, calls_only=True)
    with closing(connect_readonly([ledger])) as db:
        settled = tally.spend(db, 0).settled_nano
        again = repriced(db, PriceTable.load(), 0)
        (kept,) = db.execute("SELECT sum(nano) FROM spend").fetchone()
        floats = sum(cost / 1e9 for (cost,) in db.execute("SELECT cost_nano FROM attempts"))
    sums = (settled, kept, sum(row.booked_nano for row in again), sum(row.nano or 0 for row in again))
    return {
        "off_nano": max(abs(total - wrote.attempt_nano) for total in sums),
        "float_off_nano": abs(floats * 1e9 - wrote.attempt_nano),
    }


if __name__ == "__main__":
    raise SystemExit(main())
