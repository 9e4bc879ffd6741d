"""Made-up ledgers of any size, quickly: straight into the file, with the sums that they must show."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from cost.prices import PriceTable
from cost.schema import DAY_US, connect
from cost.types import Usage

START_US = 1_790_000_000_000_000  # 2026-09-21
MODEL = "gpt-6-luna"
CHUNK = 50_000
INPUTS = (
    "request_id, idx, at_us, tenant, task, source, model, label, confidence, answered_by, cache_tier, degraded, error,"
    " truncated, coalesced, tokens, text_digest, cost_nano, local_nano, saved_nano, total_us, cache_us, queue_us,"
    " local_us, frontier_us"
)
ATTEMPTS = (
    "request_id, idx, at_us, tenant, task, provider, model, state, estimate_nano, cost_nano, tokens, answered_model,"
    " input, cache_read, cache_write_5m, cache_write_1h, output, estimated, price_version, latency_us, settled_us, pid,"
    " pid_started_ms, reasoning, batch, reply_id"
)


class Sums(NamedTuple):
    """What was written, added up in integers."""

    inputs: int
    attempts: int
    input_nano: int
    attempt_nano: int


def write(path: Path, inputs: int, *, days: int = 60, calls_only: bool = False, seed: int = 6) -> Sums:
    """A ledger of `inputs` rows over `days`: 40 % hits, 45 % local, 14 % bought (an attempt each), 1 % errors; tasks,
    tenants, hours and lengths vary. `calls_only`: attempts alone, for each input."""
    total = Sums(0, 0, 0, 0)
    rows = made(inputs, days, random.Random(seed), calls_only=calls_only)
    with closing(connect(path, busy_ms=1000)) as db:
        db.execute("PRAGMA synchronous = OFF")
        triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:  # they keep sums a row at a time; here they are made at once
            db.execute(f"DROP TRIGGER {name}")
        while chunk := list(islice(rows, CHUNK)):
            answers = [row for row, _ in chunk if row is not None]
            calls = [call for _, call in chunk if call is not None]
            db.execute("BEGIN")
            db.executemany(f"INSERT INTO inputs ({INPUTS}) VALUES ({_marks(INPUTS)})", answers)
            db.executemany(f"INSERT INTO attempts ({ATTEMPTS}) VALUES ({_marks(ATTEMPTS)})", calls)
            db.execute("COMMIT")
            total = Sums(
                total.inputs + len(answers),
                total.attempts + len(calls),
                total.input_nano + sum(row[17] for row in answers),
                total.attempt_nano + sum(call[9] for call in calls),
            )
        db.execute(f"INSERT INTO spend SELECT at_us / {DAY_US}, sum(cost_nano) FROM attempts GROUP BY 1")
        for scope in ("task", "tenant"):
            db.execute(
                f"INSERT INTO spend_by SELECT at_us / {DAY_US}, '{scope}', {scope}, sum(cost_nano) FROM attempts"
                " GROUP BY 1, 3"
            )
        for _, text in triggers:
            db.execute(text)
        db.execute("INSERT INTO machines VALUES (?, 1, 2, 'cpu', 2, 'onnx-int8', 0.0816)", (START_US - 1,))
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return total


def _marks(columns: str) -> str:
    return ", ".join("?" * (columns.count(",") + 1))


def made(
    inputs: int, days: int, chance: random.Random, *, calls_only: bool
) -> Iterator[tuple[tuple[Any, ...] | None, tuple[Any, ...] | None]]:
    """(row of `inputs`, row of `attempts`), in the order of time; either may be None."""
    prices = PriceTable.load()
    step = days * DAY_US / inputs
    labels = [f"label_{n}" for n in range(77)]
    draw = chance.random
    for number in range(inputs):
        at = START_US + int(number * step)
        dice, name = draw(), f"req_{number:09d}"
        task, tenant = ("banking", "support", "mail")[int(draw() * 3)], f"tenant-{int(draw() * 5)}"
        tokens, total = 5 + int(draw() * 40), int(200 + draw() * 800)
        kind = "frontier" if calls_only or dice < 0.14 else "cache" if dice < 0.54 else "local"
        if dice > 0.99 and not calls_only:
            kind = "error"
        call = None
        cost = local = saved = cache_us = queue_us = local_us = frontier_us = 0
        by = None
        if kind == "frontier":
            usage = Usage(input=700 + 2 * tokens, output=5 + int(draw() * 6))
            cost = prices.cost_nano(MODEL, usage) or 0
            frontier_us = 300_000 + int(draw() * 400_000)
            call = (
                *(name, 0, at, tenant, task, "p", MODEL, "settled", 2 * cost, cost, tokens, MODEL),
                *(
                    usage.input,
                    0,
                    0,
                    0,
                    usage.output,
                    0,
                    prices.version,
                    frontier_us,
                    at + frontier_us,
                    1,
                    1,
                    0,
                    0,
                    name,
                ),
            )
        elif kind == "cache":
            by, cache_us = ("frontier", "local")[dice > 0.3], int(100 + draw() * 300)
            saved = 80_000 if by == "frontier" else 0
        elif kind == "local":
            local_us, queue_us, cache_us = int(2000 + draw() * 3000), int(draw() * 500), int(100 + draw() * 300)
            cost = local = local_us // 20
        row = (
            *(name, 0, at, tenant, task, kind, "m", labels[int(dice * 7e5) % 77] if kind != "error" else None),
            *(0.5 + dice / 2, by, "redis" if by else None, None, "over-length" if kind == "error" else None, 0, 0),
            *(tokens, b"12345678901234567890", cost, local, saved, total + local_us + frontier_us, cache_us, queue_us),
            *(local_us, frontier_us),
        )
        yield None if calls_only else row, call
