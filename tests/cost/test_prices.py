"""Prices by hand, from the providers' public lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost.prices import Price, PriceTable
from cost.types import Usage

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
