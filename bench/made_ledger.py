"""A ledger of made-up traffic: days of cache hits, local answers and bought ones, for what reads ledgers."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec

from cost.ledger import Ledger
from cost.types import InputRow, Intent, Outcome, Usage

DAY_US = 86_400_000_000
FIRST_US = 1_792_670_400_000_000  # 2026-10-22 12:00 UTC
MODEL = "gpt-6-sol"
LABELS = [
    f"{what}_{how}"
    for what in ("card", "transfer", "top_up", "refund", "cash")
    for how in ("arrival", "limit", "declined", "fee", "pending")
]


def ledger(path: Path, *, days: int, a_day: int, seed: int = 3) -> Path:
    """About `a_day` inputs on each of `days` days; 22 % hits, 12 to 18 % of the rest bought, a few degraded first."""
    asyncio.run(_write(path, days, a_day, random.Random(seed)))
    return path


async def _write(path: Path, days: int, a_day: int, dice: random.Random) -> None:
    books = Ledger.open(path)
    for day in range(days):
        rows = []
        for i in range(int(a_day * (0.7 + 0.6 * dice.random()))):
            name, at = f"req_{day}_{i}", FIRST_US + day * DAY_US + int(dice.random() * DAY_US)
            row = _answered(name, at, dice)
            if row.source == "frontier":
                row = await _bought(books, row)
            rows.append(row)
        await books.record(rows)
    books.close()


def _answered(name: str, at_us: int, dice: random.Random) -> InputRow:
    cache_us = int(dice.lognormvariate(5.7, 0.4))
    row: dict[str, Any] = {
        "index": 0,
        "at_us": at_us,
        "tenant": dice.choice(["acme", "globex", "initech"]),
        "task": "banking",
        "label": LABELS[int(len(LABELS) * dice.random() ** 2)],
        "tokens": dice.randint(8, 60),
        "cache_us": cache_us,
    }
    if dice.random() < 0.22:
        return InputRow(name, source="cache", answered_by="local", total_us=cache_us + 90, **row)
    local_us, queue_us = int(dice.lognormvariate(7.5, 0.3)), int(dice.lognormvariate(5, 1))
    row |= {"local_us": local_us, "queue_us": queue_us, "local_nano": local_us // 70}
    # Texts come back, so some are degraded once and bought another time.
    text = dice.randrange(4000)
    sure = random.Random(text).random() ** 0.2
    row["text_digest"] = text.to_bytes(16, "big")
    total = cache_us + queue_us + local_us + 120
    if sure >= 0.6 and dice.random() > 0.05:
        return InputRow(name, source="local", confidence=sure, cost_nano=local_us // 70, total_us=total, **row)
    if sure < 0.6 and dice.random() < 0.2:
        row |= {"degraded": "provider_unavailable", "confidence": sure}
        row["label"] = LABELS[text % len(LABELS) if dice.random() < sure else 0]
        return InputRow(name, source="local", cost_nano=local_us // 70, total_us=total, **row)
    wait = int(dice.lognormvariate(13, 0.5))
    row["label"] = LABELS[text % len(LABELS)]
    return InputRow(name, source="frontier", frontier_us=wait, total_us=total + wait, **row)


async def _bought(books: Ledger, row: InputRow) -> InputRow:
    usage = Usage(input=int(700 + 1.3 * row.tokens), output=8)
    cost = usage.input * 2000 + usage.output * 10_000
    attempt = await books.reserve(
        Intent(
            row.request_id,
            index=0,
            at_us=row.at_us,
            tenant=row.tenant,
            task=row.task,
            provider="made-up",
            model=MODEL,
            estimate_nano=2 * cost,
            tokens=row.tokens,
        )
    )
    await books.settle(attempt, Outcome("settled", MODEL, usage, cost, "2026-11-21", latency_us=row.frontier_us))
    return msgspec.structs.replace(row, cost_nano=cost + row.local_nano)
