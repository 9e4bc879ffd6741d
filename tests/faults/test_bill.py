"""Every cent: the ledger of a service against the bill of those it called, whatever happened on the way."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec

from cost.prices import PriceTable
from cost.types import Usage
from providers.simulator import Simulator
from providers.simulator.bill import Item

CALLS = 10_000
#: Providers by the simulator's name for their format. The first always thinks; all have prices for cached tokens.
PROVIDERS = {
    "messages": ("anthropic", "claude-opus-5-5", ""),
    "responses": ("openai", "gpt-6-luna", "/v1"),
    "decisions": ("openai-decisions", "gpt-6-luna", "/v1"),
    "chat": ("openai-chat", "gpt-5.6-luna", "/v1"),
}
#: (fault, share of the calls). One call in eight goes wrong: where more do, breakers open, and few calls are made.
FAULTS = [
    *((name, 0.006) for name in ("500", "502", "503", "529", "429@ms:20", "429@junk", "reset", "half_close")),
    *((name, 0.004) for name in ("malformed", "html", "empty", "nulls", "refusal", "truncated", "out_of_set")),
    *((name, 0.004) for name in ("two_labels", "wrong_case", "homoglyph", "prose", "empty_text", "redirect")),
    *((name, 0.006) for name in ("no_usage", "negative_usage", "absurd_usage", "string_usage", "cached_usage")),
    *((name, 0.001) for name in ("504", "408", "413", "no_schema", "hang", "slow_drip", "gzip_bomb")),
]
REQUESTS = 600  # more than are needed; each has a tenant of its own, so that an attempt tells whose it was
AT_ONCE = 6
#: Errors of attempts that may have been told what they cost, and were not there to hear it.
NOT_LISTENING = ("TimedOut", "Cancelled", "ProcessDied")
LONG_ENOUGH_TO_BE_CACHED = "These are messages to the support of a bank. " * 80


class Attempt(NamedTuple):
    """A row of the ledger."""

    tenant: str
    idx: int
    provider: str
    state: str
    cost_nano: int
    reply_id: str
    error: str | None
    usage: Usage

    @property
    def told(self) -> bool:
        """The provider said what it used."""
        return self.state == "settled" and not self.usage.estimated


def attempts_of(ledger: Path) -> list[Attempt]:
    buckets = Usage.__struct_fields__
    columns = ", ".join([*Attempt._fields[:-1], *(f"coalesce({bucket}, 0)" for bucket in buckets)])
    with contextlib.closing(sqlite3.connect(ledger)) as books:
        rows = books.execute(f"SELECT {columns} FROM attempts").fetchall()
    told = [msgspec.convert(dict(zip(buckets, row[7:], strict=True)), Usage, strict=False) for row in rows]
    return [Attempt._make([*row[:7], usage]) for row, usage in zip(rows, told, strict=True)]


def config(url: str, first: int) -> str:
    """`first`: the place of the provider that is asked first."""
    names = list(PROVIDERS)
    lines = [f'[tasks.banking]\nhead = "banking77"\ninstructions = "{LONG_ENOUGH_TO_BE_CACHED}"']
    lines += ['[tasks.banking.policy]\nthreshold = 1.0\n[cache]\nurl = "off"\n[budget]\nusd_per_day = 1000.0']
    lines += ["[server]\ndeadline_ms = 6_000\nlocal_deadline_ms = 6_000\n[model]\nqueue_tokens = 100_000"]
    for name in names[first:] + names[:first]:
        kind, model, path = PROVIDERS[name]
        lines.append(f'[providers.{name}]\nkind = "{kind}"\nmodel = "{model}"\nmax_in_flight = 64')
        lines.append(f'base_url = "{url}{path}"')
    for number in range(REQUESTS):
        digest = hashlib.sha256(key_of(number).encode()).hexdigest()
        lines.append(f'[[auth.keys]]\ntenant = "t{number}"\nsha256 = "{digest}"')
    return "\n".join(lines)


def key_of(number: int) -> str:
    return f"the-key-of-tenant-{number}"


class Traffic:
    """Requests of 1 to 64 texts that nobody has asked before; every tenth caller leaves early."""

    def __init__(self, sim: Simulator) -> None:
        self.sim = sim
        self.asked: dict[str, list[str]] = {}  # by tenant
        self.left = 0
        self.answers: Counter[tuple[str, str | None]] = Counter()
        self._numbers = iter(range(REQUESTS))
        self._random = random.Random(7)

    async def run(self, url: str, until: int) -> None:
        """Until the simulator has been called so often."""
        async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=AT_ONCE)) as client:

            async def caller() -> None:
                while self.sim.calls < until:
                    await self._ask(client)

            await asyncio.gather(*(caller() for _ in range(AT_ONCE)))

    async def reach(self, calls: int, load: asyncio.Task[None]) -> None:
        while self.sim.calls < calls:
            assert not load.done(), self.answers
            await asyncio.sleep(0.01)

    async def _ask(self, client: httpx.AsyncClient) -> None:
        number = next(self._numbers, REQUESTS)
        assert number < REQUESTS, f"too few calls are made: {self.answers}"
        texts = [f"canary question {number} {place} about nothing" for place in range(self._random.randint(1, 64))]
        self.asked[f"t{number}"] = texts
        patience = self._random.uniform(0.02, 0.5) if self._random.random() < 0.1 else 60
        try:
            reply = await client.post(
                "/v1/classify", json={"input": texts}, headers={"x-api-key": key_of(number)}, timeout=patience
            )
        except httpx.TransportError:
            self.left += 1
            return
        assert reply.status_code == 200, reply.text
        for result in reply.json()["results"]:
            self.answers[result["source"], result["degraded"]] += 1


def test_the_ledger_is_the_bill_over_10_000_calls_of_all_kinds(serve: Callable[..., Any], tmp_path: Path) -> None:
    """Faults, retries, failovers, cached tokens, callers who leave, a `kill -9`: what a provider told is in the ledger
    to the token; all else that it charges belongs to attempts marked uncertain or estimated, within their bounds."""
    state = tmp_path / "state"

    async def main() -> tuple[Simulator, Traffic]:
        async with Simulator(faults=FAULTS, latency="lognormal:5,0.6", record=True, seed=11) as sim:
            traffic = Traffic(sim)
            for round_number in range(4):  # every format is asked first in one of them
                service = await asyncio.to_thread(serve, config(sim.url, round_number), CROSSOVER_STATE_DIR=str(state))
                until = CALLS * (round_number + 1) // 4
                if round_number == 1:
                    load = asyncio.create_task(traffic.run(service.url, until + CALLS))
                    await traffic.reach(until, load)
                    service.process.send_signal(signal.SIGKILL)
                    await asyncio.to_thread(service.process.wait)
                    load.cancel()
                    await asyncio.gather(load, return_exceptions=True)
                else:
                    await traffic.run(service.url, until)
                    assert await asyncio.to_thread(service.stop) == 0
            return sim, traffic

    sim, traffic = asyncio.run(main())
    attempts = attempts_of(state / "ledger.db")
    check_each(list(sim.items), attempts, traffic.asked)
    check_all(sim, attempts, traffic)
    command = [sys.executable, "-m", "router", "ledger", "verify", "--ledger", str(state / "ledger.db")]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert verified.returncode == 0, verified.stdout


def check_each(items: list[Item], attempts: list[Attempt], asked: dict[str, list[str]]) -> None:
    """The issue's sentence, item by item."""
    prices = PriceTable.load()

    def priced(item: Item) -> int:
        cost = prices.cost_nano(item.model + ("/decisions" if item.format == "decisions" else ""), item.usage)
        assert cost is not None
        return cost

    def about(attempt: Attempt) -> tuple[str, str | None]:
        return attempt.provider, asked[attempt.tenant][attempt.idx]

    bill = {item.reply_id: item for item in items}
    assert len(bill) == len(items)
    for attempt in attempts:
        assert attempt.state in ("settled", "unbilled", "uncertain")
        if attempt.told:
            item = bill.pop(attempt.reply_id)
            assert item.seen, "it can't be known to the caller"
            assert (item.format, item.text) == about(attempt)
            assert attempt.usage == item.usage
            assert attempt.cost_nano == priced(item)

    unknown = defaultdict(list)  # by format and text: the upper bounds of what they cost
    for attempt in attempts:
        if attempt.state != "unbilled" and not attempt.told:
            unknown[about(attempt)].append(attempt)
    for item in bill.values():
        owners = unknown[item.format, item.text]
        named = [attempt for attempt in owners if attempt.reply_id == item.reply_id]
        nameless = [attempt for attempt in owners if not attempt.reply_id]
        assert named or nameless, f"nothing in the ledger could have cost {item}"
        owner = (named or nameless)[0]
        owners.remove(owner)
        assert priced(item) <= owner.cost_nano
        assert not item.seen or owner.error in NOT_LISTENING, "it was told"


def check_all(sim: Simulator, attempts: list[Attempt], traffic: Traffic) -> None:
    """That the test has met what it is about, and that no call was made that has no row."""
    assert sim.calls >= CALLS
    never_sent = [each for each in attempts if each.state == "uncertain" or each.error in ("Cancelled", "TimedOut")]
    assert sim.calls <= len(attempts) <= sim.calls + len(never_sent)
    assert traffic.left > 5
    kinds = Counter(
        "told" if each.told else "estimated" if each.state == "settled" else each.state for each in attempts
    )
    assert all(kinds[kind] > CALLS / 100 for kind in ("told", "estimated", "uncertain", "unbilled")), kinds
    for name in PROVIDERS:
        mine = [each for each in attempts if each.provider == name and each.told]
        assert len(mine) > CALLS / 20, name
        assert sum(each.usage.cache_read for each in mine) > 0, name
    assert sum(each.usage.cache_write_5m for each in attempts) > 0
    assert sum(each.usage.reasoning for each in attempts) > 0
    retried = [list(group) for _, group in itertools.groupby(sorted((a.tenant, a.idx) for a in attempts))]
    assert max(map(len, retried)) > 1
    assert traffic.answers["frontier", None] > CALLS / 2, traffic.answers
