"""Half an hour of texts of random length: does the service's memory stay flat?

    python bench/soak.py [--minutes 30]

Poisson arrivals at half of the measured capacity, texts of 1 to 400 words (the model reads 256 tokens; the longest are
truncated), one in twenty requests with 2 to 32 of them. Between stretches of ten seconds the resident memory of the
server is read. The first half is warm-up: allocators and the engine's arenas grow to the largest text they meet. Over
the second half the least-squares slope is taken; flat means that it is below 5 MB an hour.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import load
from arrivals import poisson
from harness import Bar
from rounds import CONFIG, HEADERS, answered, as_router, read_texts, rounded, timed

NAME = "soak"
FLAT_MB_AN_HOUR = 5.0
LONGEST = 400  # words
STRETCH = 10.0  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description="Texts of random length at moderate load, memory watched.")
    parser.add_argument("--minutes", type=float, default=30.0)
    minutes = parser.parse_args().minutes
    texts, _ = read_texts()
    with tempfile.TemporaryDirectory(prefix="crossover-bench-") as folder:
        rows, failures = run(Path(folder), texts, minutes * 60)
    half = rows[len(rows) // 2 :]
    hours = [r["at_s"] / 3600 for r in half]
    memory, ledger = (slope(hours, [r[key] for r in half]) for key in ("resident_mb", "ledger_mb"))
    answers = sum(r["answers"] for r in rows)
    notes = [
        f"{answers:,} requests in {minutes:g} minutes; {half[0]['resident_mb']:.1f} MB at half time, "
        f"{half[-1]['resident_mb']:.1f} MB at the end, {max(r['resident_mb'] for r in rows):.1f} MB at most",
        f"the ledger has {rows[-1]['ledger_mb']:.1f} MB and grows by {ledger:.1f} MB an hour, "
        f"{rows[-1]['ledger_mb'] * 1e6 / max(1, sum(r['texts'] for r in rows)):.0f} bytes a text",
    ]
    flat = None if len(half) < 3 or math.isnan(memory) else memory < FLAT_MB_AN_HOUR
    bars = [
        Bar("resident memory, slope over the second half", rounded(memory), f"< {FLAT_MB_AN_HOUR:g}", "MB/hour", flat),
        Bar("requests without an answer", failures, "= 0", "", failures == 0),
    ]
    return harness.finish(NAME, bars=bars, rows=rows, notes=notes)


def run(folder: Path, words_from: Sequence[str], seconds: float) -> tuple[list[dict[str, Any]], int]:
    """A row a stretch; and how many requests failed (refused ones too: half the capacity is no overload)."""
    out = harness.console()
    chance = random.Random(77)
    words = [word for text in words_from for word in text.split()]
    # Memory is asked about here: a pause of the machine shall not end a request.
    config = "[server]\nlocal_deadline_ms = 10000\n" + CONFIG.replace(
        "[tasks.banking]\n", '[tasks.banking]\nover_length = "truncate"\n'
    )
    rows: list[dict[str, Any]] = []
    failures = 0
    with harness.router(folder / "router", config) as server:
        sample = as_router(server, [some_text(words, chance) for _ in range(500)])
        per_second = timed(sample, 16, min(STRETCH, seconds / 4)).load.per_second / 2
        mean = sum(size * weight for size, weight in sizes().items())
        out.print(
            f"{per_second:.0f} texts/s, half of the capacity for these texts, in {per_second / mean:.0f} requests"
        )
        begun = time.monotonic()
        while (at := time.monotonic() - begun) < seconds or not rows:
            stretch = min(STRETCH, max(1.0, seconds - at))
            times = poisson(per_second / mean, stretch, chance)
            counts = chance.choices(list(sizes()), list(sizes().values()), k=len(times))
            requests = [some_request(sample.url, words, count, chance) for count in counts]
            replies, _ = load.arrive(sample.url, requests, times)
            failed = [r for r in replies if r.status != 200 or not answered(r, counts[r.number])]
            failures += len(failed)
            if failed:
                out.print(f"  failed: {sorted({reply.status for reply in failed})}, {len(failed)} of {len(replies)}")
            rows.append(
                {
                    "at_s": round(time.monotonic() - begun, 1),
                    "answers": len(replies) - len(failed),
                    "texts": sum(counts),
                    "resident_mb": server.resident_bytes() / 1e6,
                    "ledger_mb": sum(file.stat().st_size for file in (folder / "router").glob("ledger.db*")) / 1e6,
                }
            )
            if len(rows) % 6 == 1:
                last = rows[-1]
                out.print(f"  {last['at_s'] / 60:5.1f} min  {last['resident_mb']:8.1f} MB  {last['answers']} answers")
    return rows, failures


def sizes() -> dict[int, float]:
    """Texts in a request, and how often."""
    return {1: 0.95, 2: 0.02, 8: 0.02, 32: 0.01}


def some_request(url: str, words: Sequence[str], texts: int, chance: random.Random) -> bytes:
    made = [some_text(words, chance) for _ in range(texts)]
    return load.request(url, {"input": made if texts > 1 else made[0]}, HEADERS)


def some_text(words: Sequence[str], chance: random.Random) -> str:
    """Log-uniform in length: as many of 1 to 20 words as of 20 to 400. A number keeps it from being another's twin."""
    length = round(math.exp(chance.uniform(0, math.log(LONGEST))))
    return f"{' '.join(chance.choices(words, k=length))} {chance.getrandbits(40)}"


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Least squares; NaN of fewer than two different xs."""
    if len(set(xs)) < 2:
        return math.nan
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
    return above / sum((a - x) ** 2 for a in xs)


if __name__ == "__main__":
    raise SystemExit(main())
