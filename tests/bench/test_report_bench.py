"""The made-up ledger is a ledger, its sums are right, and the bars of the report bench judge what they say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cost.schema import connect_readonly
from cost.verify import verify


@pytest.fixture
def ledgers(script: Callable[[str], Any]) -> Any:
    return script("ledgers")


@pytest.fixture
def bench(script: Callable[[str], Any]) -> Any:
    return script("report")


def test_a_made_up_ledger_verifies_and_has_the_sums_that_are_told(ledgers: Any, tmp_path: Path) -> None:
    wrote = ledgers.write(tmp_path / "l.db", 3000)
    assert verify(tmp_path / "l.db") == []
    with closing(connect_readonly([tmp_path / "l.db"])) as db:
        inputs = db.execute("SELECT count(*), sum(cost_nano) FROM inputs").fetchone()
        attempts = db.execute("SELECT count(*), sum(cost_nano) FROM attempts").fetchone()
        sources = dict(db.execute("SELECT source, count(*) FROM inputs GROUP BY 1").fetchall())
    assert (inputs, attempts) == ((wrote.inputs, wrote.input_nano), (wrote.attempts, wrote.attempt_nano))
    assert wrote.inputs == 3000
    assert sources["frontier"] == wrote.attempts
    shares = {"cache": 0.4, "local": 0.45, "frontier": 0.14, "error": 0.01}
    assert {name: count / 3000 for name, count in sources.items()} == pytest.approx(shares, abs=0.03)


def test_report_and_aggregate_run_in_processes_of_their_own(bench: Any, ledgers: Any, tmp_path: Path) -> None:
    ledgers.write(tmp_path / "l.db", 2000)
    ((report, aggregate),) = bench.measure(tmp_path / "l.db", 1)
    assert 0 < aggregate.seconds < report.seconds
    assert report.resident_mb > 10
    with pytest.raises(SystemExit, match="report failed"):
        bench.child("report", tmp_path / "nothing.db")


def test_sums_over_many_calls_are_exact_where_floats_would_not_be(bench: Any, tmp_path: Path) -> None:
    found = bench.drifted(tmp_path / "l.db", 30_000)
    assert found["off_nano"] == 0
    assert found["float_off_nano"] != 0


def test_each_bar_fails_on_its_own(bench: Any) -> None:
    good = {"off_nano": 0, "float_off_nano": 1.0}
    assert [bar.holds for bar in bench.bars(3.0, 64.0, good)] == [True, True, True]
    assert [bar.holds for bar in bench.bars(3.1, 64.1, {**good, "off_nano": 1})] == [False, False, False]
