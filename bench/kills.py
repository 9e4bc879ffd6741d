"""`kill -9` at random moments under mixed load: are the books whole?

    python bench/kills.py [--quick]

200 times a service is started on the same ledger, asked by eight callers at once for hits, local answers and paid ones,
and killed at a random moment; 20 of these times it has the real model, else one that only looks for keywords
(bench/keyword_server.py), because it starts faster. The frontier is the simulator, whose bill is the witness. After
each kill: every request that was answered has its row, every call that the simulator charged has its attempt (by the
reply's id, or one that is open: the reply was still to come), and `crossover ledger verify` finds no error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import harness
import httpx
from harness import ROOT, Bar

from cost.verify import verify
from providers.simulator import Simulator
from providers.simulator.bill import Item

NAME = "kills"
KEYWORDS, REAL = "keyword model", "real model"
CALLERS = 8
LONGEST_S = 1.5  # after each kind of answer was seen
KEYWORD_SERVER = str(ROOT / "bench" / "keyword_server.py")
CONFIG = """\
[tasks.banking]
head = "banking77"

[tasks.banking.policy]
threshold = 0.8

[budget]
usd_per_day = 100000.0

[providers.first]
kind = "anthropic"
model = "claude-haiku-5-5"
base_url = "{url}"
"""


class Killed(NamedTuple):
    """What one kill left behind."""

    model: str
    answered: int
    sources: Counter[str]
    charged: int  # calls on the simulator's bill
    open: int  # attempts without an outcome
    lost_rows: int  # answered requests without their row
    lost_calls: int  # charged calls without their attempt
    errors: int  # of `verify`


def main() -> int:
    parser = argparse.ArgumentParser(description="kill -9 at random moments under mixed load.")
    parser.add_argument("--quick", action="store_true", help="A smoke test: three kills, one with the real model.")
    quick = parser.parse_args().quick
    keywords, real = (2, 1) if quick else (180, 20)
    with tempfile.TemporaryDirectory(prefix="co-bench-") as name:
        found = asyncio.run(run(Path(name), [KEYWORDS] * keywords + [REAL] * real))
    answers = sum((each.sources for each in found), Counter[str]())
    notes = [
        f"{len(found)} kills, {sum(each.model == REAL for each in found)} with the real model; "
        f"{sum(each.answered for each in found):,} answered requests: "
        + ", ".join(f"{count:,} {source}" for source, count in answers.most_common()),
        f"{sum(each.charged for each in found):,} calls charged by the simulator (every frontier here is SIMULATED), "
        f"{sum(each.open for each in found)} attempts were open when the process died",
        *(["a smoke test: the figures mean nothing"] if quick else []),
    ]
    rows = [{**each._asdict(), "sources": dict(each.sources)} for each in found]
    return harness.finish(NAME, bars=bars(found), rows=rows, notes=notes)


def bars(found: Sequence[Killed]) -> list[Bar]:
    def none(name: str, value: int) -> Bar:
        return Bar(name, value, "= 0", "", value == 0)

    return [
        none("answered requests without their row", sum(each.lost_rows for each in found)),
        none("charged calls without their attempt", sum(each.lost_calls for each in found)),
        none("errors that `ledger verify` finds", sum(each.errors for each in found)),
        none("kills before hits, local and paid answers were seen", sum(len(each.sources) < 3 for each in found)),
    ]


async def run(folder: Path, models: Sequence[str]) -> list[Killed]:
    """One kill for each of `models`, all on one ledger."""
    out, chance, found = harness.console(), random.Random(9), []
    ledger = folder / "state" / "ledger.db"
    ledger.parent.mkdir()
    async with Simulator(latency="lognormal:20,0.5", seed=9) as sim:
        (folder / "crossover.toml").write_text(CONFIG.format(url=sim.url))
        for number, model in enumerate(models):
            charged = len(sim.items)
            answered = await one(folder, number, model, chance)
            killed = judge(ledger, model, answered, list(sim.items)[charged:])
            found.append(killed)
            if killed.lost_rows or killed.lost_calls or killed.errors or number % 20 == 19:
                out.print(f"  {number + 1} of {len(models)}: {killed}")
    return found


async def one(folder: Path, number: int, model: str, chance: random.Random) -> dict[str, str]:
    """Start, ask, kill; gives the id of each answered request, with its source."""
    program = ["-m", "router"] if model == REAL else [KEYWORD_SERVER]
    config = str(folder / "crossover.toml")
    command = [sys.executable, *program, "serve", "--config", config, "--port", "0"]
    log, keys = folder / f"router-{number}.log", {"ANTHROPIC_API_KEY": "simulated"}
    answered: dict[str, str] = {}
    with harness.child(command, log, CROSSOVER_STATE_DIR=str(folder / "state"), **keys) as process:
        server = await asyncio.to_thread(harness.wait_for, process, log, r"listening on (http://\S+)", "/ready")
        texts = mixed(chance, number)
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            all_seen = asyncio.Event()
            callers = [asyncio.create_task(ask(client, texts, answered, all_seen)) for _ in range(CALLERS)]
            with contextlib.suppress(TimeoutError):  # the bar tells
                await asyncio.wait_for(all_seen.wait(), 10)
            await asyncio.sleep(chance.uniform(0, LONGEST_S))
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait)
            await asyncio.gather(*callers)
    return answered


async def ask(
    client: httpx.AsyncClient, texts: Iterator[str], answered: dict[str, str], all_seen: asyncio.Event
) -> None:
    """Until nobody is there; `all_seen` is set when the cache, the local model and the frontier have answered."""
    with contextlib.suppress(httpx.TransportError):
        while True:
            reply = await client.post("/v1/classify", json={"input": next(texts)})
            if reply.status_code == 200:
                body = reply.json()
                answered[body["id"]] = body["results"][0]["source"]
                if {"cache", "local", "frontier"} <= set(answered.values()):
                    all_seen.set()


def mixed(chance: random.Random, number: int) -> Iterator[str]:
    """Repeats, texts that the model is sure of, and texts that it is not: the latter are paid."""
    while True:
        kind = chance.random()
        if kind < 0.4:
            yield f"where is my card {chance.randrange(20)}"
        elif kind < 0.7:
            yield f"I lost my card {number} {chance.getrandbits(40)}"
        else:
            yield f"hmm {number} {chance.getrandbits(40)}"


def judge(ledger: Path, model: str, answered: dict[str, str], charged: Sequence[Item]) -> Killed:
    """Of the ledger as the dead process left it. A call's attempt names its reply, or is still open."""
    with contextlib.closing(sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True)) as books:
        rows = {name for (name,) in books.execute("SELECT DISTINCT request_id FROM inputs")}
        attempts: list[tuple[Any, ...]] = books.execute("SELECT reply_id, state FROM attempts").fetchall()
    named = {reply for reply, _ in attempts}
    nameless = sum(item.reply_id not in named for item in charged)
    # Those of processes before became uncertain at the start of this one; they were judged then.
    waiting = sum(state == "reserved" for _, state in attempts)
    errors = [finding for finding in verify(ledger) if finding.severity == "error"]
    return Killed(
        model,
        len(answered),
        Counter(answered.values()),
        len(charged),
        waiting,
        sum(request not in rows for request in answered),
        max(0, nameless - waiting),
        len(errors),
    )


if __name__ == "__main__":
    raise SystemExit(main())
