"""Token counts, as each format reports them: disjoint buckets, or the upper bound."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost.types import Usage
from providers import usage

BOUND = Usage(input=1000, output=100, estimated=True)
values: st.SearchStrategy[Any] = st.recursive(
    st.text(max_size=8) | st.none() | st.booleans() | st.floats() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("reported", "understood"),
    [
        ({"input_tokens": 10, "output_tokens": 5}, Usage(10, 0, 0, 0, 5)),
        (
            {"input_tokens": 10, "output_tokens": 50, "output_tokens_details": {"thinking_tokens": 45}},
            Usage(10, 0, 0, 0, 50, 45),
        ),
        ({"input_tokens": 10, "output_tokens": 5, "output_tokens_details": {"thinking_tokens": 6}}, BOUND),
        (
            {
                "input_tokens": 10,
                "cache_read_input_tokens": 20,
                "cache_creation_input_tokens": 30,
                "cache_creation": {"ephemeral_5m_input_tokens": 18, "ephemeral_1h_input_tokens": 12},
                "output_tokens": 5,
            },
            Usage(10, 20, 18, 12, 5),
        ),
        ({"input_tokens": 10, "cache_creation_input_tokens": 30, "output_tokens": 0}, Usage(10, 0, 30, 0, 0)),
        # The parts exceed the whole.
        (
            {
                "input_tokens": 1,
                "cache_creation_input_tokens": 3,
                "cache_creation": {"ephemeral_1h_input_tokens": 4},
                "output_tokens": 5,
            },
            BOUND,
        ),
        ({"input_tokens": 0, "output_tokens": 5}, BOUND),
        ({"input_tokens": 10}, BOUND),
        ({"input_tokens": 10.0, "output_tokens": 5}, BOUND),
        ({"input_tokens": True, "output_tokens": 5}, BOUND),
        # Somewhat more than our bound: the bill may follow it. Far more: nonsense.
        ({"input_tokens": 10, "output_tokens": 101}, Usage(10, output=101, estimated=True)),
        ({"input_tokens": 1001, "output_tokens": 5}, Usage(1001, output=5, estimated=True)),
        ({"input_tokens": 10, "output_tokens": 1001}, BOUND),
        ({"input_tokens": 10_001, "output_tokens": 5}, BOUND),
        # A tier that the list has no price for.
        (
            {"input_tokens": 10, "output_tokens": 5, "service_tier": "standard", "inference_geo": "global"},
            Usage(10, output=5),
        ),
        ({"input_tokens": 10, "output_tokens": 5, "service_tier": "priority"}, Usage(10, output=5, estimated=True)),
        ({"input_tokens": 10, "output_tokens": 5, "inference_geo": "us"}, Usage(10, output=5, estimated=True)),
        ({"input_tokens": 10, "output_tokens": 5, "speed": "fast"}, Usage(10, output=5, estimated=True)),
        ({"input_tokens": 10, "output_tokens": 5, "speed": ["fast"]}, Usage(10, output=5)),
        (None, BOUND),
        ([], BOUND),
    ],
)
def test_messages_usage_leaves_cached_tokens_out_of_its_input(reported: object, understood: Usage) -> None:
    assert usage.from_messages(reported, BOUND) == understood


@pytest.mark.parametrize(
    ("details", "understood"),
    [
        ({}, Usage(100, 0, 0, 0, 5)),
        ({"cached_tokens": 60, "cache_write_tokens": 30}, Usage(10, 60, 30, 0, 5)),
        (
            {"cache_write_tokens": 30, "cache_write_tokens_details": {"ttl_30m_tokens": 20, "ttl_12h_tokens": 10}},
            Usage(70, 0, 20, 10, 5),
        ),
        ({"cache_write_tokens": 30, "cache_write_tokens_details": {"ttl_12h_tokens": 31}}, BOUND),
        ({"cached_tokens": 101}, BOUND),
        ({"cached_tokens": -1}, BOUND),
        (None, Usage(100, 0, 0, 0, 5)),
    ],
)
def test_responses_usage_holds_cached_tokens_in_its_input(details: object, understood: Usage) -> None:
    reported = {"input_tokens": 100, "input_tokens_details": details, "output_tokens": 5}
    assert usage.from_responses(reported, BOUND) == understood


@pytest.mark.parametrize(
    ("more", "understood"),
    [
        ({}, Usage(100, 0, 0, 0, 5)),
        ({"prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30}}, Usage(10, 60, 30, 0, 5)),
        ({"prompt_tokens_details": {"cached_tokens": 101}}, BOUND),
        ({"prompt_tokens_details": None, "completion_tokens_details": None}, Usage(100, 0, 0, 0, 5)),
        ({"completion_tokens_details": {"reasoning_tokens": 4}, "total_tokens": 105}, Usage(100, 0, 0, 0, 5, 4)),
        # Gemini's and xAI's way: thoughts are in the total only.
        ({"completion_tokens_details": {"reasoning_tokens": 40}, "total_tokens": 145}, Usage(100, 0, 0, 0, 45, 40)),
        ({"total_tokens": 145}, Usage(100, 0, 0, 0, 45)),
        ({"completion_tokens_details": {"reasoning_tokens": 40}}, BOUND),
        ({"completion_tokens": None}, BOUND),
        ({"prompt_tokens": "100"}, BOUND),
        ({"total_tokens": 10**9}, BOUND),
    ],
)
def test_chat_usage_holds_cached_tokens_in_its_prompt_and_thoughts_in_its_total(more: Any, understood: Usage) -> None:
    assert usage.from_chat({"prompt_tokens": 100, "completion_tokens": 5} | more, BOUND) == understood


# Reports with every key that is read, and counts that are likely to be plausible.
counts = st.integers(0, 90) | st.integers(-3, 120) | st.integers() | st.sampled_from([None, "7", 1.0, True])
totals = ("input_tokens", "prompt_tokens", "output_tokens", "completion_tokens")
inner = ("cached_tokens", "cache_write_tokens", "reasoning_tokens", "thinking_tokens", "ephemeral_1h_input_tokens")
optional = ("total_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
details = st.builds(
    lambda flat, deeper: flat | deeper,
    st.dictionaries(st.sampled_from(inner), counts),
    st.just({}) | counts.map(lambda count: {"cache_write_tokens_details": {"ttl_12h_tokens": count}}),
)
reports = st.fixed_dictionaries(
    dict.fromkeys(totals, counts),
    optional=dict.fromkeys(optional, counts)
    | dict.fromkeys(["input_tokens_details", "prompt_tokens_details", "cache_creation"], details)
    | dict.fromkeys(["output_tokens_details", "completion_tokens_details"], details | values),
)


@pytest.mark.parametrize("read", [usage.from_messages, usage.from_responses, usage.from_chat])
@given(reports | values)
def test_whatever_is_reported_no_bucket_is_negative_and_the_sum_is_bounded(read: Any, reported: object) -> None:
    """Decisions are read as Responses are."""
    used = read(reported, BOUND)
    buckets = (used.input, used.cache_read, used.cache_write_5m, used.cache_write_1h, used.output, used.reasoning)
    assert min(buckets) >= 0
    assert 0 < sum(buckets[:4]) <= 10 * BOUND.input
    assert used.reasoning <= used.output <= 10 * BOUND.output
    above = sum(buckets[:4]) > BOUND.input or used.output > BOUND.output
    assert used == BOUND or used.estimated == above
