"""The ledger beside what providers say they have billed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cost.reconcile import Reconciliation, reconcile
from cost.retention import compact
from cost.schema import DAY_US
from cost.types import LedgerError, Outcome, Usage
from cost.usage_exports import Billed, read, same_name
from router.cli import cli

Make = Callable[..., Any]
DAY = 20_778  # 2026-11-21

ANTHROPIC_USAGE = """usage_date_utc,model_version,api_key,workspace,usage_type,context_window,\
usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,\
usage_input_tokens_cache_read,usage_output_tokens,web_search_count,inference_geo,speed
2026-11-21,claude-haiku-4-5-20251001,key,Default,standard,≤ 200k,100,20,3,4000,50,0,not_available,
2026-11-21,claude-haiku-4-5-20251001,key,Default,batch,≤ 200k,10,0,0,0,5,0,not_available,
"""
ANTHROPIC_COST = """usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,\
list_price_usd,cost_type,inference_geo,speed
2026-11-21,Claude Haiku 4.5,Default,key,message,≤ 200k,input_no_cache,0.19,0.19,token,global,
2026-11-21,Claude Haiku 4.5,Default,key,message,≤ 200k,output,0.02,0.02,token,global,
"""
ANTHROPIC_API = {
    "data": [
        {
            "starting_at": "2026-11-21T00:00:00Z",
            "ending_at": "2026-11-22T00:00:00Z",
            "results": [
                {
                    "uncached_input_tokens": 100,
                    "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 3},
                    "cache_read_input_tokens": 4000,
                    "output_tokens": 50,
                    "model": "claude-haiku-4-5-20251001",
                    "service_tier": "standard",
                }
            ],
        }
    ],
    "has_more": False,
}
ANTHROPIC_API_COST = {
    "data": [
        {
            "starting_at": "2026-11-21T00:00:00Z",
            "results": [
                {"amount": "123.45", "currency": "USD", "model": "claude-haiku-4-5", "cost_type": "tokens"},
                {"amount": "1", "currency": "USD", "model": None, "cost_type": "web_search"},
            ],
        }
    ]
}
OPENAI_API = {
    "object": "page",
    "data": [
        {
            "object": "bucket",
            "start_time": DAY * 86_400,
            "results": [
                {
                    "object": "organization.usage.completions.result",
                    "input_tokens": 1000,
                    "input_cached_tokens": 800,
                    "output_tokens": 500,
                    "num_model_requests": 5,
                    "model": "gpt-6-luna-2026-08-01",
                    "batch": False,
                }
            ],
        },
        {"object": "bucket", "start_time": (DAY + 1) * 86_400, "results": []},
    ],
}
OPENAI_API_COST = {
    "data": [
        {
            "start_time": DAY * 86_400,
            "results": [
                {"amount": {"value": 0.0612345678, "currency": "usd"}, "line_item": "gpt-6-luna-2026-08-01, input"},
                {"amount": {"value": 0.5, "currency": "usd"}, "line_item": "gpt-6-luna-2026-08-01, output"},
            ],
        }
    ]
}
OPENAI_USAGE = """start_time,end_time,start_time_iso,end_time_iso,num_model_requests,model,batch,input_tokens,\
output_tokens,input_cached_tokens
1795219200,1795305600,2026-11-21T00:00:00+00:00,2026-11-22T00:00:00+00:00,5,gpt-6-luna,False,1000,500,800
1795305600,1795392000,2026-11-22T00:00:00+00:00,2026-11-23T00:00:00+00:00,,,,,,
"""
OPENAI_COST = """start_time\tend_time\tstart_time_iso\tamount_value\tamount_currency\tline_item
1795219200\t1795305600\t2026-11-21T00:00:00+00:00\t0.8958740000000000\tusd\tgpt-6-luna, input
"""
PLAIN = """day,model,input_tokens,cache_read_tokens,cache_write_5m_tokens,output_tokens,cost_usd,reply_id
2026-11-21,gpt-6-luna,100,20,3,50,0.000123,resp_1
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (ANTHROPIC_USAGE, [("claude-haiku-4-5", 4123, 50, None), ("claude-haiku-4-5", 10, 5, None)]),
        (ANTHROPIC_COST, [("claude-haiku-4-5", None, None, 190_000_000), ("claude-haiku-4-5", None, None, 20_000_000)]),
        (ANTHROPIC_API, [("claude-haiku-4-5", 4123, 50, None)]),
        (
            ANTHROPIC_API_COST,
            [("claude-haiku-4-5", None, None, 1_234_500_000), ("web-search", None, None, 10_000_000)],
        ),
        (OPENAI_API, [("gpt-6-luna", 1000, 500, None)]),
        (OPENAI_API_COST, [("gpt-6-luna", None, None, 61_234_568), ("gpt-6-luna", None, None, 500_000_000)]),
        ([OPENAI_API, OPENAI_API], [("gpt-6-luna", 1000, 500, None)] * 2),
        (OPENAI_USAGE, [("gpt-6-luna", 1000, 500, None)]),
        (OPENAI_COST, [("gpt-6-luna", None, None, 895_874_000)]),
        (PLAIN, [("gpt-6-luna", 123, 50, 123_000)]),
    ],
)
def test_every_export_that_is_known_is_read(tmp_path: Path, text: Any, found: list[Any]) -> None:
    """With a byte order mark, as spreadsheets write it, and without."""
    for encoding in ("utf-8", "utf-8-sig"):
        path = tmp_path / "export"
        path.write_text(text if isinstance(text, str) else json.dumps(text), encoding=encoding)
        lines = read(path)
        assert [(line.model, line.prompt, line.output, line.cost_nano) for line in lines] == found
        assert {line.day for line in lines} == {DAY}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "its columns are none"),
        ("a,b\n1,2\n", "its columns are a, b"),
        (PLAIN.replace("2026-11-21", "yesterday"), "line 2: 'yesterday' is no day"),
        (PLAIN.replace("0.000123", "much"), "line 2: 'much' is no amount"),
        (PLAIN.replace("gpt-6-luna", ""), "line 2: a line without a model"),
        (OPENAI_COST.replace("usd", "eur"), "line 2: an amount in eur; the ledger is kept in US dollars"),
        ('{"data": [{"results": []}]}', "it has no 'start_time'"),
        ('{"data": [{"start_time": 1, "results": [{"input_tokens": 1, "output_tokens": 1}]}]}', "without a model"),
        ('{"data"', "no usage export that is known"),
        ("[1]", "no usage export that is known"),
    ],
)
def test_what_is_no_export_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "export"
    path.write_text(text)
    with pytest.raises(LedgerError, match=said.replace("(", "\\(")):
        read(path)


def test_a_model_is_the_same_however_its_name_is_written() -> None:
    assert same_name("Claude Haiku 4.5") == same_name("claude-haiku-4-5-20251001") == "claude-haiku-4-5"
    assert same_name("gpt-4o-2024-08-06") == same_name("GPT-4o") != same_name("gpt-4o-mini")


@pytest.fixture
def ledger(books: Make, intent: Make, noon: int) -> Callable[[Sequence[tuple[Any, Outcome | None]]], Path]:
    """Calls, answered a second later (or as many as `late` says)."""

    def write(calls: Sequence[tuple[Any, Outcome | None]], late_us: int = 1_000_000) -> Path:
        path: Path = books([], calls)
        with sqlite3.connect(path) as db:
            db.execute("UPDATE attempts SET settled_us = at_us + ? WHERE settled_us IS NOT NULL", (late_us,))
        db.close()
        return path

    return write


def settled(cost: int = 1000, prompt: int = 100, output: int = 10, **more: Any) -> Outcome:
    estimated = more.pop("estimated", False)
    return Outcome(
        "settled", "m-2026-01-01", Usage(prompt - 30, 30, output=output, estimated=estimated), cost, "v", **more
    )


def billed(cost: int | None = 1000, prompt: int | None = 100, output: int | None = 10, **more: Any) -> Billed:
    return Billed(**{"day": DAY, "model": "m", "prompt": prompt, "output": output, "cost_nano": cost, **more})


def compared(path: Path, *lines: Billed) -> tuple[Reconciliation, list[str]]:
    found = reconcile([path], list(lines), tolerance=0)
    return found, [line.status for line in found.lines]


def test_equal_books_are_equal_to_the_last_token(ledger: Make, intent: Make) -> None:
    path = ledger([(intent("a"), settled()), (intent("b"), settled()), (intent("u"), Outcome("unbilled"))])
    found, statuses = compared(path, billed(2000, 200, 20))
    assert (found.holds, statuses, found.lines[0].calls) == (True, ["equal"], 2)
    for wrong in (billed(2001, 200, 20), billed(2000, 201, 20), billed(2000, 200, 19)):
        found, statuses = compared(path, wrong)
        assert (found.holds, statuses) == (False, ["different"])
    assert reconcile([path], [billed(2001, 200, 20)], tolerance=0.001).holds
    assert compared(path, billed(2001, 200, 20, rounding_nano=1))[0].holds


def test_what_the_provider_bills_and_the_ledger_does_not_have_is_a_difference(ledger: Make, intent: Make) -> None:
    path = ledger([(intent("a"), settled())])
    assert compared(path, billed(), billed(5, 1, 1, model="other"))[1] == ["equal", "different"]


def test_a_day_of_the_ledger_that_the_export_leaves_out_is_a_difference(ledger: Make, intent: Make, noon: int) -> None:
    path = ledger([(intent("a", at_us=noon + day * DAY_US), settled()) for day in range(3)])
    assert compared(path, billed(), billed(day=DAY + 2))[1] == ["equal", "different", "equal"]


def test_a_model_that_no_export_has_is_not_compared_and_said(ledger: Make, intent: Make) -> None:
    other = Outcome("settled", "claude-x", Usage(5), 7, "v")
    path = ledger([(intent("a"), settled()), (intent("b"), other), (intent("s", model="simulated/m"), settled())])
    found, statuses = compared(path, billed())
    assert (found.holds, statuses, found.not_compared) == (True, ["equal"], {"claude-x": 1})


@pytest.mark.parametrize("outcome", [Outcome("uncertain", "m"), None])
def test_calls_that_nobody_knows_of_explain_up_to_their_bound(ledger: Make, intent: Make, outcome: Any) -> None:
    path = ledger([(intent("a"), settled()), (intent("b", model="m", estimate_nano=500), outcome)])
    assert compared(path, billed())[1] == ["equal"]
    assert compared(path, billed(1500, 200, 20))[1] == ["explained"]
    assert compared(path, billed(1501, 200, 20))[1] == ["different"]
    assert compared(path, billed(1500, 201, 20))[1] == ["different"]
    assert compared(path, billed(999))[1] == ["different"]


def test_an_estimate_explains_less_than_itself(ledger: Make, intent: Make) -> None:
    path = ledger([(intent("a"), settled()), (intent("b"), settled(estimated=True))])
    found, statuses = compared(path, billed(1300, 120, 12))
    assert (statuses, found.lines[0].why) == (["explained"], {"estimated": 1000})
    assert compared(path, billed(2001, 200, 20))[1] == ["different"]


def test_a_batch_may_be_billed_on_any_day_until_it_was_answered_and_only_once(ledger: Make, intent: Make) -> None:
    path = ledger([(intent("a", batch=True), settled())], late_us=DAY_US)
    assert compared(path, billed(), billed(0, 0, 0, day=DAY + 1))[1] == ["equal", "equal"]
    found, statuses = compared(path, billed(0, 0, 0), billed(day=DAY + 1))
    assert (found.holds, statuses, found.lines[0].why) == (True, ["explained", "explained"], {"batch": 1000})
    assert not compared(path, billed(day=DAY + 2))[0].holds


def test_a_call_answered_after_midnight_may_be_of_either_day(ledger: Make, intent: Make, noon: int) -> None:
    path = ledger([(intent("a", at_us=noon + DAY_US // 2 - 1), settled())])
    assert compared(path, billed())[0].holds
    found, statuses = compared(path, billed(day=DAY + 1))
    assert (found.holds, statuses, found.lines[0].why) == (True, ["explained"], {"midnight": 1000})


def test_replies_are_compared_by_their_own_names(ledger: Make, intent: Make) -> None:
    path = ledger([(intent(f"r{i}"), settled(reply_id=f"msg_{i}")) for i in range(3)])
    lines = [billed(reply_id=f"msg_{i}") for i in range(3)]
    found, _ = compared(path, *lines)
    assert found.replies is not None
    assert (found.holds, found.replies.equal) == (True, 3)
    # Sums may agree where replies do not.
    found, statuses = compared(
        path, billed(reply_id="msg_0"), billed(1001, reply_id="msg_1"), billed(999, reply_id="msg_9")
    )
    assert found.replies is not None
    assert (found.holds, statuses) == (False, ["equal"])
    assert found.replies.different == ["msg_1"]
    assert (found.replies.not_in_ledger, found.replies.not_in_export) == (["msg_9"], ["msg_2"])


def test_days_that_were_rolled_up_compare_as_before(ledger: Make, intent: Make, noon: int) -> None:
    path = ledger([(intent(f"r{i}"), settled()) for i in range(4)])
    compact(path, before_us=2**62, clock=lambda: noon / 1e6 + 9 * 86_400, rest=lambda _: None)
    found, statuses = compared(path, billed(4000, 400, 40))
    assert (statuses, found.lines[0].calls) == (["equal"], 4)
    assert compared(path, billed(4001, 400, 40))[1] == ["different"]


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["ledger", *map(str, arguments)], prog_name="crossover")
    return result.exit_code, result.stdout, result.stderr


def test_the_command_exits_1_on_a_difference_and_2_on_a_file_it_can_not_read(
    ledger: Make, intent: Make, tmp_path: Path
) -> None:
    answered = Outcome("settled", "gpt-6-luna", Usage(100, 20, 3, output=50), 123_000, "v", reply_id="resp_1")
    path, export = ledger([(intent("a"), answered)]), tmp_path / "export.csv"
    export.write_text(PLAIN)
    code, out, _ = run("reconcile", export, "--ledger", path)
    assert (code, "agree" in out, "2026-11-21" in out) == (0, True, True)
    export.write_text(PLAIN.replace("0.000123", "0.000223"))
    code, out, _ = run("reconcile", export, "--ledger", path)
    assert (code, "different" in out, "resp_1" in out) == (1, True, True)
    code, out, _ = run("reconcile", export, "--ledger", path, "--json")
    assert (code, json.loads(out)["lines"][0]["cost_nano"]["billed"]) == (1, 223_000)
    assert run("reconcile", export, "--ledger", path, "--tolerance", "60")[0] == 0
    export.write_text("nothing")
    assert run("reconcile", export, "--ledger", path)[0] == 2


def test_old_rows_are_rolled_up_by_the_command_too(ledger: Make, intent: Make, tmp_path: Path) -> None:
    """Only where a ledger is; and not what the config keeps."""
    path = ledger([(intent("a", at_us=1_000_000), settled())])
    code, out, _ = run("compact", "--ledger", path, "--before", "2020-01-01")
    assert (code, out.endswith("0 inputs and 1 paid calls are hourly sums now\n")) == (0, True)
    assert run("verify", "--ledger", path)[0] == 0
    code, _, err = run("show", "a", "--ledger", path)
    assert (code, "older than 1970-01-01T01:00+00:00 is kept as hourly sums" in err) == (1, True)
    assert run("compact", "--ledger", tmp_path / "none.db", "--before", "2020-01-01")[0] == 2
    assert not (tmp_path / "none.db").exists()
    config = tmp_path / "crossover.toml"
    config.write_text('[tasks.banking]\nhead = "banking77"\n[ledger]\nretention_days = 0\n')
    code, _, err = run("compact", "--ledger", path, "--config", config)
    assert (code, "all rows are kept" in err) == (2, True)
