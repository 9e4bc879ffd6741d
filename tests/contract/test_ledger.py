"""Every ledger keeps the same promises: the file and the one in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cost.fake import MemoryLedger
from cost.ledger import Ledger
from cost.types import BudgetExhausted, InputRow, Intent, Limits, Outcome, Usage

NOON_US = 1_800_000_000_000_000


@pytest.fixture(params=["file", "memory"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        yield MemoryLedger(clock=lambda: NOON_US / 1e6)
        return
    ledger = Ledger.open(tmp_path / "ledger.db", clock=lambda: NOON_US / 1e6)
    yield ledger
    ledger.close()


def intent(estimate: int, budget: int | None = 100) -> Intent:
    return Intent("req", 0, NOON_US, "t", "task", "p", "m", estimate, limits=Limits(budget))


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


def test_rows_are_recorded_once(ledger: Any) -> None:
    """The same request and index again is the same row."""

    async def main() -> None:
        row = InputRow("req", 0, NOON_US, "t", "task", "local")
        await ledger.record([row])
        await ledger.record([row])
        await ledger.record([])

    asyncio.run(main())
