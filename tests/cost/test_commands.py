"""`crossover report` and `crossover ledger`, as somebody types them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cost.types import Outcome, Usage
from router.cli import cli
from router.cli.report import Since, Volume

Make = Callable[..., Any]


@pytest.fixture
def path(books: Make, row: Make, intent: Make) -> Path:
    call = (intent("req_1"), Outcome("settled", "gpt-6-luna", Usage(input=100, output=4), 12_000, "2026-11-21"))
    answered = row(
        "req_1", source="frontier", cost_nano=12_000, text_digest=b"\xab", total_us=10**9, label="card_arrival"
    )
    written: Path = books([answered, row("req_2")], [call])
    return written


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="crossover")
    return result.exit_code, result.stdout, result.stderr


def test_a_report_is_text_json_page_and_picture(path: Path, tmp_path: Path) -> None:
    files = ("--html", tmp_path / "new" / "r.html", "--png", tmp_path / "r.png")
    code, out, err = run("report", "--ledger", path, "--volume", "2M/month", "--by", "task", *files)
    assert (code, "At 2 million requests a month" in out) == (0, True)
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert "</html>" in (tmp_path / "new" / "r.html").read_text()
    assert "wrote" in err
    code, out, _ = run("report", "--ledger", path, "--json")
    assert (code, json.loads(out)["inputs"]) == (0, 2)


def test_the_ledger_is_found_through_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSOVER_LEDGER__PATH", str(path))
    assert run("ledger", "verify") == (0, f"{path}: the books add up\n", "")


def test_the_config_of_this_folder_says_where_the_books_are_and_what_machines_and_tokens_cost(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --config; nothing that only serving needs has to be there. --ledger names other books."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crossover.toml").write_text(
        f"""[ledger]
path = "{path}"
[hardware.attic-box]
usd_per_hour = 0.01
requests_per_second = 100
[tasks.gone]
head = "heads/gone"
[providers.x]
kind = "openai"
model = "gpt-6-luna"
[providers.x.price]
input = 1.0
output = 2.0
"""
    )
    code, out, err = run("report", "--json", "--volume", "2M")
    assert code == 0, err
    assert json.loads(out)["inputs"] == 2
    assert "attic-box" in out
    assert "+config" in out
    assert run("ledger", "verify") == (0, f"{path}: the books add up\n", "")
    assert run("ledger", "show", "req_1")[0] == 0
    code, _, err = run("report", "--ledger", tmp_path / "absent.db")
    assert (code, "absent.db" in err) == (2, True)


def test_the_running_service_is_meant_before_the_config_of_this_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config and its ledger, by its run file; --config and the environment say otherwise."""
    from router import runfile

    served = tmp_path / "served.toml"
    served.write_text("[hardware.attic-box]\nusd_per_hour = 0.01\nrequests_per_second = 100\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crossover.toml").write_text('[ledger]\npath = "elsewhere.db"\n')
    with runfile.announce("http://127.0.0.1:1", "", path, served):
        code, out, _ = run("report", "--json", "--volume", "2M")
        assert (code, json.loads(out)["inputs"], "attic-box" in out) == (0, 2, True)
        code, _, err = run("report", "--config", tmp_path / "crossover.toml")
        assert (code, "elsewhere.db" in err) == (2, True)
        monkeypatch.setenv("CROSSOVER_LEDGER__PATH", str(tmp_path / "named.db"))
        code, _, err = run("report")
        assert (code, "named.db" in err) == (2, True)


def test_no_ledger_is_a_usage_error_that_says_what_to_do(tmp_path: Path) -> None:
    for command in (["report"], ["ledger", "verify"], ["ledger", "show", "x"]):
        code, _, err = run(*command, "--ledger", tmp_path / "absent.db")
        assert (code, "--ledger" in err) == (2, True)


def test_a_request_is_shown_with_its_calls(path: Path) -> None:
    code, out, _ = run("ledger", "show", "req_1", "--ledger", path)
    assert code == 0
    for text in ("card_arrival", "paid call", "gpt-6-luna", "$0.000012", "+00:00"):
        assert text in out
    code, out, _ = run("ledger", "show", "req_1", "--ledger", path, "--json")
    found = json.loads(out)
    assert (found["inputs"][0]["text_digest"], found["attempts"][0]["cost_nano"]) == ("ab", 12_000)
    code, _, err = run("ledger", "show", "req_9", "--ledger", path)
    assert (code, "req_9" in err) == (1, True)


def test_books_that_do_not_add_up_exit_1(path: Path) -> None:
    import sqlite3

    with sqlite3.connect(path) as db:
        db.execute("UPDATE spend SET nano = 1")
    db.close()
    code, out, _ = run("ledger", "verify", "--ledger", path)
    assert (code, "error: spend" in out) == (1, True)
    assert out.endswith(": 1 finding\n")


def test_a_chart_that_can_not_be_drawn_is_a_finding(books: Make, tmp_path: Path) -> None:
    """Exit 1 with the reason; the page is written all the same."""
    code, _, err = run("report", "--ledger", books([], []), "--png", tmp_path / "r.png", "--html", tmp_path / "r.html")
    assert (code, "no chart written" in err) == (1, True)
    assert not (tmp_path / "r.png").exists()
    assert (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        ("2M", 2_000_000),
        ("2M/month", 2_000_000),
        ("70k/day", 2_129_167),
        ("1_500", 1500),
        ("1.5b", 1_500_000_000),
        ("1e6", 1_000_000),
    ],
)
def test_volumes_are_written_as_people_write_them(text: str, volume: int) -> None:
    assert Volume().convert(text, None, None) == volume


def test_a_date_is_utc() -> None:
    assert Since().convert("2026-11-21", None, None) == 1_795_219_200_000_000


@pytest.mark.parametrize(
    "arguments",
    [("--volume", "lots"), ("--volume", "0"), ("--volume", "1e400"), ("--since", "yesterday"), ("--volume", "..")],
)
def test_nonsense_is_a_usage_error(path: Path, arguments: tuple[str, str]) -> None:
    assert run("report", "--ledger", path, *arguments)[0] == 2


def test_neither_command_loads_a_model_or_a_web_framework(path: Path) -> None:
    code = (
        "import sys; from router.cli import cli\n"
        "for words in (['report', '--json'], ['ledger', 'verify']):\n"
        "    try: cli([*words, '--ledger', sys.argv[1]], standalone_mode=False)\n"
        "    except SystemExit as end: assert not end.code\n"
        "print(sorted({'torch', 'transformers', 'litestar', 'onnxruntime', 'altair', 'anthropic'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
