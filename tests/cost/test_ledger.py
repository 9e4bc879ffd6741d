"""What the ledger promises while everything works."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cost.fake import MemoryLedger
from cost.ledger import Ledger
from cost.types import BudgetExhausted, InputRow, Intent, LedgerError, LedgerUnwritable, Limits, Outcome, Usage
from cost.verify import verify

Make = Callable[..., Any]
DAY = 86_400_000_000


def read(path: Path, query: str) -> list[tuple[Any, ...]]:
    db = sqlite3.connect(path)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


def test_a_row_comes_back_as_it_was_written(tmp_path: Path, row: Make) -> None:
    full = row("r", label="l", confidence=0.5, model="m@1", cache_tier="redis", answered_by="local", degraded="budget")
    full = msgspec.structs.replace(full, truncated=True, text_digest=b"\0\xff", total_us=7, error="e", cost_nano=2**62)

    async def main() -> None:
        ledger = Ledger.open(tmp_path / "new" / "folder" / "l.db")
        await ledger.record([full, row("r", index=1)])
        ledger.close()

    asyncio.run(main())
    path = tmp_path / "new" / "folder" / "l.db"
    first, second = read(path, "SELECT * FROM inputs ORDER BY idx")
    assert msgspec.convert(dict(zip(InputRow.__struct_fields__, first, strict=True)), InputRow, strict=False) == full
    assert second[1] == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_recording_a_row_twice_keeps_one(tmp_path: Path, row: Make) -> None:
    async def main() -> None:
        ledger = Ledger.open(tmp_path / "l.db")
        await ledger.record([row("r"), row("r")])
        await ledger.record([row("r", label="other")])
        ledger.close()

    asyncio.run(main())
    assert read(tmp_path / "l.db", "SELECT label FROM inputs") == [(None,)]


def test_what_waits_is_committed_together_and_wakes_the_loop_once(tmp_path: Path, row: Make) -> None:
    async def main() -> int:
        ledger = Ledger.open(tmp_path / "l.db")
        loop = asyncio.get_running_loop()
        wakes, wake = 0, loop.call_soon_threadsafe

        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return wake(*arguments, **named)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        await asyncio.gather(*(ledger.record([row(f"r{i}")]) for i in range(1000)))
        assert ledger.pending == 0
        del loop.call_soon_threadsafe
        ledger.close()
        return wakes

    assert asyncio.run(main()) <= 20
    assert read(tmp_path / "l.db", "SELECT count(*) FROM inputs") == [(1000,)]


def test_one_impossible_row_fails_alone(tmp_path: Path, row: Make) -> None:
    async def main() -> list[Any]:
        ledger = Ledger.open(tmp_path / "l.db")
        rows = [row(f"r{i}", tokens=2**70 if i == 5 else 1, label="\ud800" if i == 7 else "x") for i in range(20)]
        results = await asyncio.gather(*(ledger.record([one]) for one in rows), return_exceptions=True)
        assert ledger.writable
        ledger.close()
        return results

    results = asyncio.run(main())
    assert [i for i, result in enumerate(results) if isinstance(result, LedgerError)] == [5, 7]
    assert "ud800" not in str(results[7])
    assert read(tmp_path / "l.db", "SELECT count(*) FROM inputs") == [(18,)]


def test_close_writes_what_waits_and_refuses_what_comes_after(tmp_path: Path, row: Make) -> None:
    async def main() -> None:
        ledger = Ledger.open(tmp_path / "l.db")
        waiting = [asyncio.ensure_future(ledger.record([row(f"r{i}")])) for i in range(50)]
        await asyncio.sleep(0)
        ledger.close()
        await asyncio.gather(*waiting)
        with pytest.raises(LedgerUnwritable):
            await ledger.record([row("late")])

    asyncio.run(main())
    assert read(tmp_path / "l.db", "SELECT count(*) FROM inputs") == [(50,)]


def test_a_budget_is_a_utc_day_s_and_money_set_aside_counts(tmp_path: Path, intent: Make, noon: int) -> None:
    async def main() -> None:
        ledger = Ledger.open(tmp_path / "l.db", clock=lambda: noon / 1e6)
        first = await ledger.reserve(intent("a", estimate_nano=600, limits=Limits(1000)))
        with pytest.raises(BudgetExhausted):
            await ledger.reserve(intent("b", estimate_nano=401, limits=Limits(1000)))
        assert ledger.spent_today_nano() == 600
        await ledger.settle(first, Outcome("settled", "m", Usage(input=1), 50, "v"))
        assert ledger.spent_today_nano() == 50
        await ledger.reserve(intent("c", estimate_nano=950, limits=Limits(1000)))
        await ledger.reserve(intent("d", estimate_nano=1000, limits=Limits(1000), at_us=noon + DAY))
        assert ledger.spent_today_nano() == 1000
        ledger.close()

    asyncio.run(main())
    assert verify(tmp_path / "l.db")[0].severity == "note"  # an attempt without an answered input, nothing worse


def test_settling_twice_never_charges_twice_but_the_truth_replaces_a_doubt(
    tmp_path: Path, intent: Make, noon: int
) -> None:
    async def main() -> None:
        ledger = Ledger.open(tmp_path / "l.db", clock=lambda: noon / 1e6)
        attempt = await ledger.reserve(intent("a", estimate_nano=900))
        for outcome, spent in (
            (Outcome("uncertain", cost_nano=10), 900),  # keeps the upper bound
            (Outcome("uncertain", cost_nano=5000), 900),
            (Outcome("settled", cost_nano=70), 70),
            (Outcome("settled", cost_nano=80), 70),
            (Outcome("unbilled"), 70),
        ):
            await ledger.settle(attempt, outcome)
            assert ledger.spent_today_nano() == spent
        with pytest.raises(LedgerError):
            await ledger.settle(attempt + 1, Outcome("unbilled"))
        ledger.close()

    asyncio.run(main())


def test_a_caller_who_leaves_while_money_is_set_aside_gets_it_freed(tmp_path: Path, intent: Make, noon: int) -> None:
    async def main() -> None:
        ledger = Ledger.open(tmp_path / "l.db", clock=lambda: noon / 1e6)
        for _ in range(50):
            leaving = [asyncio.ensure_future(ledger.reserve(intent("a"))) for _ in range(4)]
            await asyncio.sleep(0)
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
        stays = await ledger.reserve(intent("b", estimate_nano=7))
        await ledger.settle(stays, Outcome("settled", cost_nano=7))
        ledger.close()

    asyncio.run(main())
    assert read(tmp_path / "l.db", "SELECT count(*), sum(cost_nano) FROM attempts WHERE state = 'reserved'")[0][0] == 0
    assert read(tmp_path / "l.db", "SELECT sum(nano) FROM spend") == [(7,)]


RESERVER = """
import asyncio, sys
from cost.ledger import Ledger
from cost.types import BudgetExhausted, Intent, Limits
async def main(path, name, scope):
    ledger = Ledger.open(path, busy_ms=20_000)
    limits = Limits(**{scope: 150_500})
    print("ready", flush=True); sys.stdin.readline()
    async def one(i):
        try:
            await ledger.reserve(Intent(f"{name}{i}", 0, %d, "t", "k", "p", "m", 1000, limits=limits))
        except BudgetExhausted:
            return 0
        return 1
    print(sum([sum(await asyncio.gather(*(one(10 * k + i) for i in range(10)))) for k in range(20)]), flush=True)
    ledger.close()
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("scope", ["day", "task", "tenant"])
def test_two_processes_never_exceed_the_budget_together_nor_after_a_restart(
    tmp_path: Path, process: Make, intent: Make, noon: int, scope: str
) -> None:
    path = tmp_path / "l.db"
    children = [process(RESERVER % noon, str(path), name, scope) for name in "ab"]
    assert [child.stdout.readline() for child in children] == ["ready\n"] * 2
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    granted = [int(child.stdout.readline()) for child in children]
    assert sum(granted) == 150
    assert [child.wait() for child in children] == [0, 0]
    assert read(path, "SELECT nano FROM spend UNION ALL SELECT nano FROM spend_by") == [(150_000,)] * 3

    async def after_a_restart() -> None:
        ledger = Ledger.open(path)
        limits = Limits(**{scope: 150_500})
        with pytest.raises(BudgetExhausted):
            await ledger.reserve(intent("c", task="k", tenant="t", estimate_nano=501, limits=limits))
        await ledger.reserve(intent("d", task="k", tenant="t", estimate_nano=500, limits=limits))
        ledger.close()

    asyncio.run(after_a_restart())


usages = st.none() | st.builds(Usage, input=st.integers(0, 9), output=st.integers(0, 9), estimated=st.booleans())
outcomes = st.builds(
    Outcome, state=st.sampled_from(["settled", "unbilled", "uncertain"]), usage=usages, cost_nano=st.integers(0, 300)
)
limits = st.none() | st.integers(0, 400)
reserves = st.tuples(
    st.just("reserve"),
    st.fixed_dictionaries(
        {
            "estimate_nano": st.integers(0, 100),
            "day": st.integers(0, 1),
            "task": st.sampled_from(["k1", "k2"]),
            "tenant": st.sampled_from(["t1", "t2", "t3"]),
            "limits": st.builds(Limits, limits, limits, limits),
        }
    ),
)
settles = st.tuples(st.just("settle"), st.tuples(st.integers(1, 12), outcomes))


class Counted:
    """What each call counts with, by day, task and tenant: the rule, kept by hand."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def spent(self, **which: Any) -> int:
        return sum(call["nano"] for call in self.calls if all(call[name] == value for name, value in which.items()))

    def fits(self, wanted: dict[str, Any]) -> bool:
        day, task, tenant, estimate = (wanted[name] for name in ("day", "task", "tenant", "estimate_nano"))
        spent = (self.spent(day=day), self.spent(day=day, task=task), self.spent(day=day, tenant=tenant))
        limits = (wanted["limits"].day, wanted["limits"].task, wanted["limits"].tenant)
        return all(limit is None or before + estimate <= limit for before, limit in zip(spent, limits, strict=True))

    def settle(self, number: int, outcome: Outcome) -> None:
        call = self.calls[number - 1]
        if call["state"] not in ("settled", "unbilled", outcome.state):
            uncertain = max(outcome.cost_nano, call["estimate_nano"])
            call["nano"] = {"settled": outcome.cost_nano, "unbilled": 0, "uncertain": uncertain}[outcome.state]
            call["state"] = outcome.state


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(reserves | settles, max_size=30))
def test_no_limit_is_ever_exceeded_by_a_reservation_and_the_fake_keeps_the_same_books(
    tmp_path: Path, steps: list[tuple[str, Any]], intent: Make, noon: int
) -> None:
    """Whatever is reserved and settled in which order: a call is refused if, and only if, one of its limits has no
    room for it, and the sums are those of the calls."""
    path = tmp_path / "l.db"
    for old in tmp_path.iterdir():
        old.unlink()

    async def run(ledger: Ledger | MemoryLedger) -> None:
        counted = Counted()
        for kind, what in steps:
            if kind == "settle" and what[0] > len(counted.calls):
                with pytest.raises(LedgerError):
                    await ledger.settle(*what)
            elif kind == "settle":
                await ledger.settle(*what)
                counted.settle(*what)
            else:
                wanted = {name: value for name, value in what.items() if name != "day"}
                asked: Intent = intent("r", **wanted, at_us=noon + what["day"] * DAY)
                if counted.fits(what):
                    assert await ledger.reserve(asked) == len(counted.calls) + 1
                    counted.calls.append({**what, "nano": what["estimate_nano"], "state": "reserved"})
                else:
                    with pytest.raises(BudgetExhausted):
                        await ledger.reserve(asked)
            spent = ledger.spent_today()
            assert spent.day == ledger.spent_today_nano() == counted.spent(day=0)
            assert spent.tasks == {name: counted.spent(day=0, task=name) for name in spent.tasks}
            assert spent.tenants == {name: counted.spent(day=0, tenant=name) for name in spent.tenants}
            assert sum(spent.tasks.values()) == sum(spent.tenants.values()) == spent.day
        ledger.close()

    asyncio.run(run(Ledger.open(path, clock=lambda: noon / 1e6)))
    asyncio.run(run(MemoryLedger(clock=lambda: noon / 1e6)))
    assert [finding for finding in verify(path) if finding.severity == "error"] == []
