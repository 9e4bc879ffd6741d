"""How large a ledger gets: bytes of an input, of a paid call and of an hour that was rolled up; what that costs.

    python -m bench.ledger_size [ROWS]

Writes ROWS inputs (100,000), one in five with a paid call, two seconds apart, as a service would; rolls them up; says
what the file took at each step. The figures of docs/ledger.md.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cost.ledger import Ledger
from cost.retention import compact
from cost.types import InputRow, Intent, Outcome, Usage

START_US = 1_780_000_000_000_000
TOGETHER = 500


def rows(count: int, dice: random.Random) -> Iterator[InputRow]:
    """Of one task and tenant; ids, digests and labels as long as real ones."""
    for i in range(count):
        source = dice.choice(("cache", "local", "local", "local", "frontier"))
        yield InputRow(
            f"req_{dice.getrandbits(96):024x}",
            0,
            START_US + i * 2_000_000,
            "support",
            "banking",
            source,  # type: ignore[arg-type]
            model="banking@3f2a9c11" if source != "frontier" else "claude-haiku-4-5-20251001",
            label=f"card_arrival_{dice.randrange(77)}",
            confidence=dice.random(),
            tokens=dice.randrange(5, 60),
            text_digest=dice.randbytes(16),
            cost_nano=0 if source == "cache" else 100,
            local_nano=0 if source == "cache" else 100,
            total_us=round(dice.lognormvariate(8, 1)),
            cache_us=300,
            queue_us=dice.randrange(500),
            local_us=round(dice.lognormvariate(7, 0.3)),
        )


async def write(path: Path, inputs: int, calls: int, dice: random.Random) -> None:
    ledger = Ledger.open(path, patience_s=600, room=10**9)
    waiting = list(rows(inputs, dice))
    for first in range(0, len(waiting), TOGETHER):
        await ledger.record(waiting[first : first + TOGETHER])

    async def call(i: int) -> None:
        key = (f"req_{dice.getrandbits(96):024x}", 0, START_US + i * 10_000_000, "support", "banking", "anthropic")
        attempt = await ledger.reserve(Intent(*key, "claude-haiku-4-5", 1_000_000, 20))
        usage = Usage(input=100, cache_read=650, output=8)
        told = {"latency_us": round(dice.lognormvariate(13, 0.5)), "reply_id": f"msg_{dice.getrandbits(96):024x}"}
        await ledger.settle(
            attempt, Outcome("settled", "claude-haiku-4-5-20251001", usage, 740_000, "2026-11-21", **told)
        )

    for first in range(0, calls, TOGETHER):
        await asyncio.gather(*map(call, range(first, min(calls, first + TOGETHER))))
    ledger.close()


def size(path: Path) -> int:
    """With free pages given back."""
    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("VACUUM")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return path.stat().st_size


def main(count: int) -> None:
    dice = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "l.db"
        asyncio.run(write(path, 0, 0, dice))
        empty = size(path)
        asyncio.run(write(path, count, 0, dice))
        written = path.stat().st_size
        inputs = size(path)
        asyncio.run(write(path, 0, count // 5, dice))
        both = size(path)
        cpu = time.process_time()
        compact(path, before_us=2**62, rest=lambda _: None, clock=lambda: START_US / 1e6 + count * 2 + 10 * 86_400)
        cpu = time.process_time() - cpu
        after = size(path)
        with sqlite3.connect(path) as db:
            (hours,) = db.execute("SELECT count(DISTINCT hour) FROM input_hours").fetchone()
            (lines,) = db.execute("SELECT count(*) FROM input_hours").fetchone()
        db.close()
    print(f"empty            {empty:>12,} bytes")
    print(f"an input         {(inputs - empty) / count:>12.0f} bytes ({count:,} of them)")
    print(f"  as it is written {(written - empty) / count:>10.0f} bytes, with the free space in its pages")
    print(f"a paid call      {(both - inputs) / (count // 5):>12.0f} bytes ({count // 5:,} of them)")
    print(f"an hour          {(after - empty) / hours:>12,.0f} bytes ({hours} hours, {lines / hours:.1f} lines each)")
    print(f"rolled up        {both / after:>12.0f} times smaller, {cpu * 1e6 / count:.0f} us of CPU an input")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
