"""Every ledger keeps the same promises: the file and the one in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cost.fake import MemoryLedger
from cost.ledger import Ledger
from cost.types import BudgetExhausted, InputRow, Intent, Limits, Outcome, Spent, Usage

NOON_US = 1_800_000_000_000_000


@pytest.fixture(params=["file", "memory"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        yield MemoryLedger(clock=lambda: NOON_US / 1e6)
        return
    ledger = Ledger.open(tmp_path / "ledger.db", clock=lambda: NOON_US / 1e6)
    yield ledger
    ledger.close()


def intent(estimate: int, budget: int | None = 100, **more: Any) -> Intent:
    fields: dict[str, Any] = {"tenant": "t", "task": "task", "limits": Limits(budget), **more}
    return Intent("req", 0, NOON_US, provider="p", model="m", estimate_nano=estimate, **fields)


def test_a_reservation_counts_until_it_is_settled_and_only_once(ledger: Any) -> None:
    """Reserve 60 of 100, settle at 10: 90 are left; settling again changes nothing."""

    async def main() -> None:
        first = await ledger.reserve(intent(60))
        with pytest.raises(BudgetExhausted):
            await ledger.reserve(intent(60))
        assert ledger.spent_today_nano() == 60
        for _ in range(2):
            await ledger.settle(first, Outcome("settled", "m", Usage(input=1), cost_nano=10))
        assert ledger.spent_today_nano() == 10
        await ledger.reserve(intent(90))
        assert ledger.spent_today_nano() == 100

    asyncio.run(main())


def test_an_uncertain_call_keeps_its_upper_bound_and_an_unbilled_one_costs_nothing(ledger: Any) -> None:
    """Nobody knows: it counts in full."""

    async def main() -> None:
        for state in ("uncertain", "unbilled"):
            await ledger.settle(await ledger.reserve(intent(30)), Outcome(state, error="TimedOut"))  # type: ignore[arg-type]
        assert ledger.spent_today_nano() == 30

    asyncio.run(main())


def test_a_call_must_fit_its_day_its_task_and_its_tenant(ledger: Any) -> None:
    """Whichever is exceeded is named; what others spend counts for the day only."""
    limits = Limits(day=100, task=60, tenant=40)

    async def main() -> None:
        first = await ledger.reserve(intent(40, limits=limits))
        for estimate, task, tenant, whose in (
            (1, "task", "t", "tenant t's"),
            (21, "task", "other", "task task's"),
            (1, "other", "t", "tenant t's"),
            (61, "other", "other", "the day's"),
        ):
            with pytest.raises(BudgetExhausted, match=f"^{whose} budget"):
                await ledger.reserve(intent(estimate, limits=limits, task=task, tenant=tenant))
        await ledger.reserve(intent(20, limits=limits, tenant="other"))
        assert ledger.spent_today() == Spent(60, {"task": 60}, {"t": 40, "other": 20})
        await ledger.settle(first, Outcome("settled", "m", cost_nano=3))
        await ledger.reserve(intent(37, limits=limits))
        assert ledger.spent_today() == Spent(60, {"task": 60}, {"t": 40, "other": 20})

    asyncio.run(main())


def test_what_was_given_up_may_still_be_settled(ledger: Any) -> None:
    """A batch outlives the process that sent it: its call was uncertain meanwhile, and counts with what it cost."""

    async def main() -> None:
        attempt = await ledger.reserve(intent(50, batch=True))
        await ledger.settle(attempt, Outcome("uncertain", error="ProcessDied"))
        assert ledger.spent_today() == Spent(50, {"task": 50}, {"t": 50})
        await ledger.settle(attempt, Outcome("settled", "m", Usage(input=1), cost_nano=20, reply_id="msg_1"))
        assert ledger.spent_today() == Spent(20, {"task": 20}, {"t": 20})

    asyncio.run(main())


def test_rows_are_recorded_once(ledger: Any) -> None:
    """The same request and index again is the same row."""

    async def main() -> None:
        row = InputRow("req", 0, NOON_US, "t", "task", "local")
        await ledger.record([row])
        await ledger.record([row])
        await ledger.record([])

    asyncio.run(main())
