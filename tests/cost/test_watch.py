"""What the ledger promises when somebody deletes, replaces or overwrites its file while it is open."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cost.ledger import Ledger
from cost.types import LedgerUnwritable, Outcome

Make = Callable[..., Any]


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\0" * 4096)


def truncate(path: Path) -> None:
    path.write_bytes(b"")


def replace(path: Path) -> None:
    other = path.with_name("other.db")
    Ledger.open(other).close()
    other.rename(path)


HARMS = [overwrite, truncate, replace, Path.unlink]


@pytest.mark.parametrize("harm", HARMS)
def test_no_money_is_spent_unrecorded_and_no_row_is_lost_in_silence(
    tmp_path: Path, row: Make, intent: Make, noon: int, harm: Callable[[Path], None]
) -> None:
    async def main() -> None:
        ledger = Ledger.open(tmp_path / "l.db", clock=lambda: noon / 1e6)
        attempt = await ledger.reserve(intent("a", estimate_nano=600))
        assert (ledger.spent_today_nano(), ledger.writable) == (600, True)
        harm(tmp_path / "l.db")
        with pytest.raises(LedgerUnwritable, match="restart the service"):
            await ledger.reserve(intent("b"))
        with pytest.raises(LedgerUnwritable):
            await ledger.record([row("r")])
        with pytest.raises(LedgerUnwritable):
            await ledger.settle(attempt, Outcome("unbilled"))
        assert (ledger.spent_today_nano(), ledger.writable) == (600, False)
        ledger.close()
        assert ledger.spent_today_nano() == 600

    asyncio.run(main())


@pytest.mark.parametrize("harm", HARMS)
def test_whoever_asks_for_the_day_s_spending_gets_the_last_known_and_the_ledger_is_unwritable(
    tmp_path: Path, intent: Make, noon: int, harm: Callable[[Path], None]
) -> None:
    """/metrics and /v1/status ask; a service that is not asked to classify anything notices this way."""

    async def main() -> None:
        ledger = Ledger.open(tmp_path / "l.db", clock=lambda: noon / 1e6)
        await ledger.reserve(intent("a", estimate_nano=600))
        assert (ledger.spent_today_nano(), ledger.writable) == (600, True)
        harm(tmp_path / "l.db")
        assert (ledger.spent_today_nano(), ledger.writable) == (600, False)
        ledger.close()

    asyncio.run(main())


def test_rows_go_to_a_deleted_file_for_a_second_at_most_and_to_one_put_back_again(
    tmp_path: Path, row: Make, noon: int
) -> None:
    seconds = noon / 1e6

    async def main() -> None:
        nonlocal seconds
        ledger = Ledger.open(tmp_path / "l.db", clock=lambda: seconds)
        await ledger.record([row("a")])
        (tmp_path / "l.db").rename(tmp_path / "away.db")
        seconds += 1.001
        with pytest.raises(LedgerUnwritable, match="deleted"):
            await ledger.record([row("lost")])
        (tmp_path / "away.db").rename(tmp_path / "l.db")
        await ledger.record([row("b")])
        assert ledger.writable
        ledger.close()

    asyncio.run(main())
    with sqlite3.connect(tmp_path / "l.db") as db:
        assert db.execute("SELECT request_id FROM inputs").fetchall() == [("a",), ("b",)]
    db.close()


def test_a_file_whose_head_is_whole_but_can_t_be_read_is_unwritable_until_it_can(
    tmp_path: Path, intent: Make, noon: int
) -> None:
    async def main() -> None:
        ledger = Ledger.open(tmp_path / "l.db", clock=lambda: noon / 1e6)
        await ledger.reserve(intent("a", estimate_nano=600))
        assert ledger.spent_today_nano() == 600
        db = sqlite3.connect(tmp_path / "l.db")
        db.execute("ALTER TABLE spend RENAME TO gone")
        assert (ledger.spent_today_nano(), ledger.writable) == (600, False)
        with pytest.raises(LedgerUnwritable):
            await ledger.reserve(intent("b"))
        db.execute("ALTER TABLE gone RENAME TO spend")
        db.close()
        await ledger.reserve(intent("c", estimate_nano=1))
        assert (ledger.spent_today_nano(), ledger.writable) == (601, True)
        ledger.close()

    asyncio.run(main())
