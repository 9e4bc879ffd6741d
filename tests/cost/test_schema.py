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
from cost.schema import DAY_US, MIGRATIONS, connect_readonly
from cost.types import Limits, Machine, Outcome, Spent, Usage
from cost.verify import verify

Make = Callable[..., Any]
OLD = ("inputs", "attempts", "spend")


def columns(db: sqlite3.Connection, table: str) -> str:
    return ", ".join(name for _, name, *_ in db.execute(f"PRAGMA table_info({table})"))


@pytest.fixture
def old(books: Make, row: Make, intent: Make, noon: int) -> Callable[[int], Path]:
    """What an earlier release wrote: a row, and calls on two days for two tasks and tenants."""

    def write(version: int) -> Path:
        name = f"v{version}"
        calls = [
            (intent(f"{name}a"), Outcome("settled", "m", Usage(input=3, output=4), 10, "v")),
            (intent(f"{name}b", task="other", estimate_nano=600), None),
            (intent(f"{name}c", tenant="two", estimate_nano=70), Outcome("uncertain")),
            (intent(f"{name}d", at_us=noon + DAY_US, estimate_nano=8), Outcome("unbilled")),
        ]
        rows = [row(f"{name}a", source="frontier", cost_nano=10, total_us=10**12, local_us=4000)]
        path: Path = books(rows, calls, name=f"{name}.new").with_name(f"{name}.db")
        with sqlite3.connect(path) as db:
            for statement in [part for step in MIGRATIONS[:version] for part in step]:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {version}")
            db.execute("ATTACH ? AS new", (str(path.with_name(f"{name}.new.db")),))
            for table in OLD:
                db.execute(f"INSERT INTO {table} SELECT {columns(db, table)} FROM new.{table}")
            assert db.execute("SELECT name FROM main.sqlite_schema WHERE name = 'spend_by'").fetchall() == []
        db.close()
        return path

    return write


SPENT_BY = [("task", "banking", 80), ("task", "other", 600), ("tenant", "local", 610), ("tenant", "two", 70)]


@pytest.mark.parametrize("version", [1, 2])
def test_an_old_file_is_brought_up_to_date_keeps_its_rows_and_knows_who_spent_what(
    old: Make, version: int, intent: Make, noon: int
) -> None:
    path = old(version)

    async def main() -> Spent:
        ledger = Ledger.open(path, clock=lambda: noon / 1e6)
        await ledger.note_machine(Machine(4, "cpu", 8, "onnx-int8", 0.3))
        attempt = await ledger.reserve(intent("new", estimate_nano=5, batch=True, limits=Limits(task=85)))
        await ledger.settle(attempt, Outcome("settled", "m", Usage(output=9, reasoning=7), 2, "v", reply_id="msg_1"))
        spent = ledger.spent_today()
        ledger.close()
        return spent

    assert asyncio.run(main()) == Spent(682, {"banking": 82, "other": 600}, {"local": 612, "two": 70})
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert db.execute("SELECT request_id FROM inputs").fetchall() == [(f"v{version}a",)]
        noted = db.execute("SELECT threads, device, cores, engine, usd_per_hour FROM machines").fetchall()
        told = db.execute("SELECT reasoning, batch, reply_id FROM attempts WHERE output > 0 ORDER BY id").fetchall()
    db.close()
    assert noted == [(4, "cpu", 8, "onnx-int8", 0.3)]
    assert told == [(None, 0, ""), (7, 1, "msg_1")]
    assert [finding for finding in verify(path) if finding.severity == "error"] == []


def test_a_release_that_does_not_know_of_tasks_writes_on_during_a_rolling_restart(old: Make, noon: int) -> None:
    """What it reserves and settles in a file that was brought up to date counts for task and tenant all the same."""
    path = old(2)
    before = sqlite3.connect(path, isolation_level=None)
    known = columns(before, "attempts")
    Ledger.open(path).close()
    again = f"SELECT {known.replace('id,', 'NULL,', 1)} FROM attempts WHERE state <> 'settled'"
    before.execute(f"INSERT INTO attempts ({known}) {again}")
    before.execute("UPDATE attempts SET state = 'settled', cost_nano = 9 WHERE task = 'other'")
    before.execute(f"UPDATE spend SET nano = (SELECT sum(cost_nano) FROM attempts WHERE at_us / {DAY_US} = day)")
    before.close()
    assert [finding for finding in verify(path) if finding.severity == "error"] == []
    db = connect_readonly([path])
    found = db.execute("SELECT scope, name, nano FROM spend_by WHERE nano > 0 ORDER BY 1, 2").fetchall()
    db.close()
    assert found == [("task", "banking", 150), ("task", "other", 18), ("tenant", "local", 28), ("tenant", "two", 140)]


def test_files_of_all_versions_are_read_together_as_they_are(old: Make, books: Make, intent: Make, row: Make) -> None:
    ended = Outcome("settled", "gpt-6-luna", Usage(input=100, output=4, reasoning=1), 6_000, "v", reply_id="r")
    new = books([row("n", source="frontier", cost_nano=6_000)], [(intent("n", batch=True), ended)], name="v3")
    paths = [old(1), old(2), new]
    before = [path.read_bytes() for path in paths]
    for some in ([paths[0]], [paths[1]], paths, [*reversed(paths)]):
        assert build(some).inputs == len(some)
    db = connect_readonly(paths)
    assert db.execute("SELECT count(*), sum(batch), sum(reasoning), max(reply_id) FROM attempts").fetchone() == (
        9,
        1,
        1,
        "r",
    )
    spent = db.execute("SELECT scope, name, sum(nano) FROM spend_by WHERE nano > 0 GROUP BY 1, 2").fetchall()
    assert spent == [(scope, name, 2 * nano + 6_000 * (name in ("banking", "local"))) for scope, name, nano in SPENT_BY]
    assert db.execute("SELECT ledger FROM machines").fetchall() == []
    db.close()
    assert build(paths).spend.settled_nano == 6_020
    assert [path.read_bytes() for path in paths] == before
    assert [finding for path in paths for finding in verify(path) if finding.severity == "error"] == []
