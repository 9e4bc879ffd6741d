"""A running service rolls up its old rows; of several workers one does."""

from __future__ import annotations

import asyncio
import sqlite3
from functools import partial
from pathlib import Path

import pytest

from cost.ledger import Ledger
from cost.retention import Upkeep
from cost.types import InputRow
from router.config_file import load
from router.service import Service
from router.siblings import Place


@pytest.mark.parametrize(("days", "place", "left"), [(30, Place(), 0), (0, Place(), 1), (30, Place(1, 2), 1)])
def test_old_rows_go_unless_all_are_kept_or_another_worker_sees_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, place: Place, left: int
) -> None:
    path, config = tmp_path / "l.db", tmp_path / "crossover.toml"
    ledger = f'[ledger]\npath = "{path}"\nretention_days = {days}\n'
    config.write_text(f'[tasks.banking]\nhead = "banking77"\n[cache]\nurl = "off"\n{ledger}')
    monkeypatch.setattr("router.service.Upkeep", partial(Upkeep, first_s=0.0))

    async def main() -> None:
        books = Ledger.open(path)
        await books.record([InputRow("r", 0, 1_000_000, "t", "k", "local")])
        books.close()
        service = Service(load(config, {}), place=place)
        await service.open()
        await service.wait_until_ready()
        await asyncio.sleep(0.1)
        await service.close()

    asyncio.run(main())
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM inputs").fetchone() == (left,)
        assert db.execute("SELECT coalesce(sum(inputs), 0) FROM input_hours").fetchone() == (1 - left,)
    db.close()
