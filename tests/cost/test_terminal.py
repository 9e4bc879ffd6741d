"""`crossover report` as somebody asks it what if, and reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from cost.report_schema import schema
from cost.types import Outcome, Usage
from router.cli import cli
from router.cli.report import Share

Make = Callable[..., Any]


@pytest.fixture
def path(books: Make, row: Make, intent: Make) -> Path:
    """10 bought at list price, 30 local."""
    rows, calls = [], []
    for i in range(10):
        calls.append((intent(f"f{i}"), Outcome("settled", "gpt-6-luna", Usage(input=100, output=4), 12_000, "v")))
        rows.append(row(f"f{i}", source="frontier", cost_nano=12_000))
    rows += [row(f"l{i}", confidence=0.8 + i / 200, local_us=2000) for i in range(30)]
    written: Path = books(rows, calls)
    return written


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["report", *map(str, arguments)], prog_name="crossover")
    return result.exit_code, " ".join(result.stdout.split()), result.stderr


def test_what_if_is_asked_on_the_command_line(path: Path, tmp_path: Path) -> None:
    table = tmp_path / "dear.json"
    price = {"input": 10**9, "output": 5 * 10**9}
    table.write_text(json.dumps({"as_of": "2027-01-01", "source": "a test", "models": {"gpt-6-luna": price}}))
    what = ("--threshold", "0.9", "--hit", "30%", "--prices", table, "--volume", "2M")
    code, out, err = run("--ledger", path, *what)
    assert code == 0, err
    assert (
        "WHAT IF: a threshold of 0.9 escalates 75.0% instead of 25.0%, the cache answers 30.0% instead of 0.0%" in out
    )
    assert "a million calls cost $120.00 instead of $12.00" in out
    code, out, _ = run("--ledger", path, *what, "--json")
    jsonschema.Draft202012Validator(json.loads(schema())).validate(json.loads(out))
    assert len(json.loads(out)["supposed"]) == 3


def test_a_price_table_that_is_none_is_a_usage_error(path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    code, _, err = run("--ledger", path, "--prices", broken)
    assert (code, "broken.json" in err) == (2, True)
    assert run("--ledger", path, "--prices", tmp_path / "absent.json")[0] == 2
    assert run("--ledger", path, "--hit", "130%")[0] == 2


def test_what_compare_found_decides_which_cheaper_tier_is_adequate(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cost.comparison import Comparison, Contender, Paired, judged, keep

    monkeypatch.setenv("CROSSOVER_STATE_DIR", str(tmp_path))
    sample = {"asked": 100, "answered": 100, "judged": 100, "simulated": False, "answered_by": ()}
    best = Contender("big", "gpt-6-sol", right=95, accuracy=0.95, nano_per_million=10**12, **sample)
    small = Contender(
        "small",
        "gpt-5-nano",
        right=94,
        accuracy=0.94,
        nano_per_million=10**9,
        against_best=Paired.of(1, 2, 100),
        **sample,
    )
    found = Comparison("banking", 0.0, 100, 100, 0, True, 0.02, True, "v", (best, small))
    from router import paths

    keep(paths.state_dir() / "compare" / "banking.json", judged(found))
    assert "cheaper tier (gpt-5-nano)" in run("--ledger", path, "--volume", "2M")[1]
    options = json.loads(run("--ledger", path, "--volume", "2M", "--json")[1])["options"]
    assert {o["name"]: o["adequate"] for o in options}["cheaper tier"] == "measured"


def test_the_chart_is_written_as_svg(path: Path, tmp_path: Path) -> None:
    assert run("--ledger", path, "--volume", "2M", "--svg", tmp_path / "c.svg")[0] == 0
    assert (tmp_path / "c.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(("text", "share"), [("0.3", 0.3), ("30%", 0.3), ("1", 1.0), ("0", 0.0)])
def test_shares_are_written_as_people_write_them(text: str, share: float) -> None:
    assert Share().convert(text, None, None) == share
