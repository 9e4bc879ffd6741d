"""The rows of a ledger as a file for other programs."""

from __future__ import annotations

import csv
import sqlite3
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cost.schema import DAY_US, columns
from cost.types import Outcome, Usage
from router.cli import cli

Make = Callable[..., Any]


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["ledger", "export", *map(str, arguments)], prog_name="crossover")
    return result.exit_code, result.stdout, result.stderr


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def path(books: Make, row: Make, intent: Make, noon: int) -> Path:
    ended = Outcome("settled", "gpt-6-luna", Usage(input=100, output=4), 12_000, "2026-11-21", reply_id="resp_1")
    rows = [
        row("late", at_us=noon + DAY_US, label='says "no",\nand goes'),
        row("early", confidence=0.25, text_digest=b"\xab\x01", tenant="Straße"),
    ]
    written: Path = books(rows, [(intent("early"), ended), (intent("late", at_us=noon + DAY_US), None)])
    return written


def test_csv_has_every_column_and_row_in_the_order_of_time(path: Path, tmp_path: Path, noon: int) -> None:
    out = tmp_path / "rows.csv"
    code, said, err = run("--ledger", path, "-o", out)
    assert (code, said) == (0, "")
    assert "2 rows" in err
    early, late = read(out)
    assert list(early) == list(columns("inputs"))
    assert (early["request_id"], early["at_us"], early["tenant"]) == ("early", str(noon), "Straße")
    assert (early["text_digest"], early["confidence"], early["label"]) == ("ab01", "0.25", "")
    assert late["label"] == 'says "no",\nand goes'


def test_the_calls_are_a_table_of_their_own_and_money_stays_whole(path: Path) -> None:
    code, said, _ = run("--ledger", path, "--table", "attempts", "-o", "-")
    assert code == 0
    settled, open_ = csv.DictReader(said.splitlines())
    assert (settled["cost_nano"], settled["input"], settled["reply_id"]) == ("12000", "100", "resp_1")
    assert (open_["state"], open_["input"]) == ("reserved", "")


def test_a_window_has_its_start_and_not_its_end(path: Path, tmp_path: Path) -> None:
    for arguments, found in (
        (("--since", "2026-11-22"), ["late"]),
        (("--until", "2026-11-22"), ["early"]),
        (("--since", "2026-11-21T12:00", "--until", "2026-11-22T12:00"), ["early"]),
        (("--since", "2027-01-01"), []),
    ):
        run("--ledger", path, *arguments, "-o", tmp_path / "o.csv")
        assert [row["request_id"] for row in read(tmp_path / "o.csv")] == found


def test_several_ledgers_are_one_file_and_none_is_changed(path: Path, books: Make, row: Make, tmp_path: Path) -> None:
    other = books([row("other")], name="other")
    before = [path.read_bytes(), other.read_bytes()]
    run("--ledger", path, "--ledger", other, "-o", tmp_path / "o.csv")
    assert [row["request_id"] for row in read(tmp_path / "o.csv")] == ["early", "late", "other"]
    assert [path.read_bytes(), other.read_bytes()] == before


def test_memory_does_not_grow_with_the_ledger(books: Make, row: Make, tmp_path: Path) -> None:
    """8,000 rows are 1.4 MB of CSV."""
    path = books([row(f"r{i}", label="x" * 100) for i in range(8000)])
    run("--ledger", path, "-o", tmp_path / "warm.csv", "--until", "2000-01-01")
    tracemalloc.start()
    run("--ledger", path, "-o", tmp_path / "o.csv")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "o.csv").stat().st_size > 1_300_000
    assert most < 500_000


def test_a_file_is_whole_or_not_there(path: Path, tmp_path: Path) -> None:
    """What was there before stays if the export fails; a folder that is not there is said."""
    out = tmp_path / "o.csv"
    out.write_text("of yesterday")
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET rootpage = 9999 WHERE name = 'inputs'")
    db.close()
    code, _, err = run("--ledger", path, "-o", out)
    assert (code, out.read_text()) == (2, "of yesterday")
    assert "not a readable ledger" in err
    assert not [item for item in tmp_path.iterdir() if "part" in item.name]
    code, _, err = run("--ledger", path, "-o", tmp_path / "no" / "o.csv")
    assert (code, "can't be written" in err) == (2, True)


def test_parquet_without_its_library_says_how_to_get_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = run("--ledger", path, "--format", "parquet", "-o", tmp_path / "o.parquet")
    assert (code, "crossover-router[parquet]" in err) == (2, True)
    assert not (tmp_path / "o.parquet").exists()
    assert run("--ledger", path, "--format", "parquet", "-o", "-")[0] == 2


@pytest.mark.parametrize("rows", [0, 25])
def test_parquet_has_the_same_rows_with_their_types(
    books: Make, row: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (the extra `parquet`)")
    monkeypatch.setattr("cost.export.BATCH", 10)
    path = books([row(f"r{i:02}", confidence=0.5, text_digest=b"\xab", cost_nano=2**40 + i) for i in range(rows)])
    out = tmp_path / "o.parquet"
    code, _, err = run("--ledger", path, "--format", "parquet", "-o", out)
    assert (code, f"{rows} rows" in err) == (0, True)
    found = parquet.read_table(out)
    assert found.column_names == list(columns("inputs"))
    assert str(found.schema.field("cost_nano").type) == "int64"
    values = found.to_pylist()
    assert [value["cost_nano"] for value in values] == [2**40 + i for i in range(rows)]
    assert all((value["text_digest"], value["confidence"], value["label"]) == (b"\xab", 0.5, None) for value in values)
