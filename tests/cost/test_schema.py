"""Files of earlier releases."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cost.ledger import Ledger
from cost.report import build
from cost.schema import MIGRATIONS, connect_readonly
from cost.types import Machine
from cost.verify import verify

Make = Callable[..., Any]


@pytest.fixture
def version_1(books: Make, row: Make, noon: int) -> Path:
    """What the first release wrote: its tables alone, with a row."""
    path: Path = books([row("old", local_us=4000)], name="new").with_name("v1.db")
    with sqlite3.connect(path) as db:
        for statement in MIGRATIONS[0]:
            db.execute(statement)
        db.execute("PRAGMA user_version = 1")
        db.execute("ATTACH ? AS new", (str(path.with_name("new.db")),))
        db.execute("INSERT INTO inputs SELECT * FROM new.inputs")
        assert db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'machines'").fetchone() == (0,)
    db.close()
    return path


def test_a_file_of_version_1_is_brought_up_to_date_and_keeps_its_rows(version_1: Path) -> None:
    async def main() -> None:
        ledger = Ledger.open(version_1)
        await ledger.note_machine(Machine(4, "cpu", 8, "onnx-int8", 0.3))
        ledger.close()

    asyncio.run(main())
    with sqlite3.connect(version_1) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert db.execute("SELECT request_id FROM inputs").fetchall() == [("old",)]
        noted = db.execute("SELECT threads, device, cores, engine, usd_per_hour FROM machines").fetchall()
    db.close()
    assert noted == [(4, "cpu", 8, "onnx-int8", 0.3)]
    assert verify(version_1) == []


def test_a_file_of_version_1_is_read_as_it_is_alone_and_beside_newer_ones(version_1: Path, books: Make) -> None:
    before = version_1.read_bytes()
    assert build([version_1]).inputs == 1
    assert build([books(name="b"), version_1]).inputs == 1
    db = connect_readonly([version_1])
    assert db.execute("SELECT * FROM machines").fetchall() == []
    db.close()
    assert version_1.read_bytes() == before
