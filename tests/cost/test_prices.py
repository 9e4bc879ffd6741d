"""Prices by hand, from the providers' public lists."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost.prices import Price, PriceTable
from cost.types import LedgerError, Usage

TABLE = PriceTable.load()


def test_a_call_costs_what_the_list_says() -> None:
    # Haiku 5.5: $0.10 per million in, $0.50 out. 700 * 100 + 8 * 500 nano-USD.
    assert TABLE.cost_nano("claude-haiku-5-5", Usage(input=700, output=8)) == 74_000


def test_every_bucket_has_its_own_price() -> None:
    # Sonnet 5.5: in 2, read 0.10, write 2.50 and 4, out 10 dollars per million.
    usage = Usage(input=1, cache_read=10, cache_write_5m=100, cache_write_1h=1000, output=10_000)
    assert TABLE.cost_nano("claude-sonnet-5-5", usage) == 2_000 + 1_000 + 250_000 + 4_000_000 + 100_000_000


def test_the_sum_is_rounded_once_and_half_up() -> None:
    table = PriceTable.load({"m": Price(input=250_000, output=250_000)})  # a quarter of a nano-dollar a token
    assert table.cost_nano("m", Usage(input=1, output=1)) == 1  # 0.5, and not 0 + 0
    assert table.cost_nano("m", Usage(input=1)) == 0
    assert table.cost_nano("m", Usage(input=5, output=1)) == 2


def test_an_unknown_model_has_no_price_rather_than_the_price_zero() -> None:
    assert TABLE.price("gpt-7") is None
    assert TABLE.cost_nano("gpt-7", Usage(input=1)) is None
    assert TABLE.upper_bound_nano("gpt-7", 1, 1) is None


def test_a_bucket_without_a_price_makes_the_cost_unknown_only_if_it_has_tokens() -> None:
    assert TABLE.cost_nano("gpt-4o-mini", Usage(input=100, cache_write_5m=1)) is None
    assert TABLE.cost_nano("gpt-4o-mini", Usage(input=100)) == 15_000


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("simulated/claude-haiku-5-5", True),
        ("gpt-6-luna-2026-10-01", True),
        ("claude-haiku-4-5-20251001", True),
        ("simulated/gpt-6-luna-2026-10-01", True),
        ("gpt-6-luna-mini", False),
        ("gpt-6-lun", False),
        ("gpt-6-luna-2026", False),
    ],
)
def test_only_dates_and_the_simulated_mark_are_taken_off_a_name(name: str, known: bool) -> None:
    assert (TABLE.price(name) is not None) is known


def test_prompts_beyond_the_listed_tier_have_no_price() -> None:
    assert TABLE.cost_nano("claude-haiku-5-5", Usage(input=100_000)) == 10_000_000
    assert TABLE.cost_nano("claude-haiku-5-5", Usage(input=100_001)) is None
    assert TABLE.upper_bound_nano("claude-haiku-5-5", 100_001, 1) is None


def test_a_batch_costs_what_the_table_says_and_caching_is_discounted_likewise() -> None:
    """Where the table has no batch price there is none to be had."""
    usage = Usage(input=1000, cache_read=1000, cache_write_5m=1000, output=1000)
    single, batch = (TABLE.cost_nano("claude-haiku-5-5", usage, batch=batch) for batch in (False, True))
    assert (single, batch) == (735_000, 367_500)
    assert TABLE.upper_bound_nano("claude-haiku-5-5", 1000, 1000, batch=True) == 350_000
    own = PriceTable.load({"own": Price(input=1, output=2)})
    assert own.cost_nano("own", Usage(input=1), batch=True) is None
    assert own.upper_bound_nano("own", 1, 1, batch=True) is None


def test_the_config_s_prices_show_in_the_version() -> None:
    assert TABLE.version == "2026-11-21"
    table = PriceTable.load({"own": Price(input=1_000_000, output=2_000_000)})
    assert table.version == "2026-11-21+config"
    assert table.cost_nano("own", Usage(input=3, output=4)) == 11


@given(st.sampled_from(sorted(TABLE.models)), st.integers(0, 5000), st.integers(0, 5000), st.booleans(), st.data())
def test_no_split_into_buckets_costs_more_than_the_upper_bound(
    model: str, prompt: int, output: int, batch: bool, data: st.DataObject
) -> None:
    read = data.draw(st.integers(0, prompt))
    write = data.draw(st.integers(0, prompt - read))
    usage = Usage(input=prompt - read - write, cache_read=read, cache_write_5m=write, output=output)
    cost = TABLE.cost_nano(model, usage, batch=batch)
    bound = TABLE.upper_bound_nano(model, prompt, output, batch=batch)
    if bound is None:
        assert batch and cost is None
        return
    assert cost is None or 0 <= cost <= bound


def dated(path: Path, as_of: str, **models: object) -> Path:
    """A price table of its own."""
    file = path / f"{as_of}.json"
    file.write_text(json.dumps({"as_of": as_of, "source": f"list of {as_of}", "models": models}))
    return file


def test_every_shipped_row_says_where_it_was_read() -> None:
    assert [model for model, price in TABLE.models.items() if not price.source.startswith("https://")] == []


def test_a_newer_table_says_what_changed_and_from_which_day_on(tmp_path: Path) -> None:
    """What stayed the same keeps its row; a model that is new has always cost that, as far as anybody knows."""
    old = dated(tmp_path, "2027-01-01", mine={"input": 10, "output": 20}, same={"input": 1, "output": 2})
    new = dated(
        tmp_path,
        "2027-03-01",
        mine={"input": 5, "output": 20},
        same={"input": 1, "output": 2, "source": "read again"},
        told=[{"input": 9, "output": 9}, {"input": 8, "output": 9, "since": "2027-02-10"}],
    )
    table = PriceTable.load(files=[new, old])  # their dates count, not their order
    assert (table.version, table.as_of, table.source) == ("2027-03-01", date(2027, 3, 1), "list of 2027-03-01")
    assert [(row.input, row.since, row.source) for row in table.rows("mine")] == [
        (10, None, "list of 2027-01-01"),
        (5, date(2027, 3, 1), "list of 2027-03-01"),
    ]
    assert [row.source for row in table.rows("same")] == ["list of 2027-01-01"]
    days = (date(2027, 2, 9), date(2027, 2, 10), date(2027, 2, 28), date(2027, 3, 1))
    assert [table.price("mine", day).input for day in days] == [10, 10, 10, 5]  # type: ignore[union-attr]
    assert [table.price("told", day).input for day in days] == [9, 8, 8, 8]  # type: ignore[union-attr]
    used = Usage(input=1_000_000)
    assert (table.cost_nano("mine", used), table.cost_nano("mine", used, on=days[0])) == (5, 10)
    assert table.newest.cost_nano("mine", used, on=days[0]) == 5


def test_a_table_that_corrects_the_past_replaces_what_was_said_of_it(tmp_path: Path) -> None:
    first = dated(
        tmp_path, "2027-01-01", m=[{"input": 3, "output": 1}, {"input": 2, "output": 1, "since": "2026-12-20"}]
    )
    later = dated(tmp_path, "2027-02-01", m={"input": 1, "output": 1, "since": "2026-12-10"})
    assert [(row.input, row.since) for row in PriceTable.load(files=[first, later]).rows("m")] == [
        (3, None),
        (1, date(2026, 12, 10)),
    ]


def test_before_its_first_day_a_price_is_unknown(tmp_path: Path) -> None:
    table = PriceTable.load(files=[dated(tmp_path, "2027-01-01", m={"input": 1, "output": 1, "since": "2026-12-10"})])
    assert table.cost_nano("m", Usage(input=1), on=date(2026, 12, 9)) is None
    assert table.cost_nano("m", Usage(input=1_000_000), on=date(2026, 12, 10)) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "can't be read"),
        ("{", "is no price table"),
        ('{"as_of": "2027-01-01", "source": "s", "models": {"m": {"input": 1}}}', "is no price table"),
        ('{"as_of": "2027-01-01", "source": "s", "models": {"m": []}}', "no price for m"),
    ],
)
def test_a_file_that_is_no_price_table_is_named(tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(LedgerError, match=rf"mine\.json.*{told}"):
        PriceTable.load(files=[path])


def test_a_table_is_doubted_when_it_is_older_than_sixty_days() -> None:
    day = 20_778 * 86_400  # 2026-11-21
    assert TABLE.stale(day + 60 * 86_400) is None
    assert TABLE.stale(day + 61 * 86_400) == (
        "The price list is 61 days old (2026-11-21); check it before you decide anything by it."
    )
