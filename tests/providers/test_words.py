"""What is said to a model and what is understood of its replies: prompt, parser, token counts, Retry-After."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import anthropic
import httpx2
import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost.types import Usage
from providers import failures, prompt, usage
from providers.parse import label_of, name_of, scores_of, unwrapped
from providers.types import AuthFailed, BadAnswer, Example, Label, Question

LABELS = ("card_arrival", "Ärger", "a", 'quo"ted')
BOUND = Usage(input=1000, output=100, estimated=True)
# Near misses are likelier to fool a parser than noise.
labels = st.one_of(st.sampled_from(LABELS), st.sampled_from(LABELS).map(str.upper), st.text(max_size=8))
values: st.SearchStrategy[Any] = st.recursive(
    labels | st.none() | st.booleans() | st.floats() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("label") | labels, inner, max_size=3),
    max_leaves=6,
)
replies = st.one_of(
    st.text(),
    values.map(json.dumps),
    st.builds(lambda value, tail: json.dumps({"label": value}) + tail, labels, st.text(max_size=4)),
    st.builds('{{"label": {}, "label": {}}}'.format, labels.map(json.dumps), labels.map(json.dumps)),
)


# What chat models put around their JSON, whole and in pieces.
wrapped = st.builds(
    "".join,
    st.lists(st.sampled_from(["<think>", "</think>", "```json\n", "```", "\n", " "]) | replies, max_size=5),
)


@given(replies | wrapped)
def test_for_all_strings_a_label_of_the_set_or_an_error(reply: str) -> None:
    """Read strictly, and as chat is read."""
    for text in (reply, unwrapped(reply)):
        try:
            assert label_of(text, LABELS) in LABELS
        except BadAnswer as error:
            assert error.__context__ is None  # the decoder's error would quote the reply


@given(replies)
def test_whatever_is_understood_strictly_is_understood_the_same_when_unwrapped(reply: str) -> None:
    try:
        label = label_of(reply, LABELS)
    except BadAnswer:
        return
    assert label_of(unwrapped(reply), LABELS) == label


@given(st.lists(st.tuples(labels | values, st.floats() | st.floats(0, 0.3) | values), max_size=5))
def test_whatever_probabilities_are_given_those_kept_are_of_labels_and_possible(pairs: Any) -> None:
    scores = scores_of(pairs, LABELS)
    assert {label for label, _ in scores} <= set(LABELS)
    assert all(0 <= probability <= 1 for _, probability in scores)
    assert sum(probability for _, probability in scores) <= 1.01
    assert [probability for _, probability in scores] == sorted((p for _, p in scores), reverse=True)


@given(st.sampled_from(LABELS), st.booleans())
def test_every_label_is_understood_however_its_json_is_escaped(label: str, ascii_only: bool) -> None:
    assert label_of(json.dumps({"label": label}, ensure_ascii=ascii_only), LABELS) == label


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "a",
        '"a"',
        '["label", "a"]',
        '[["label", "a"]]',
        '{"label": "a", "label": "card_arrival"}',
        '{"label": "a", "why": "because"}',
        '{"label": ["a"]}',
        '{"label": {"a": 1}}',
        '{"label": "A"}',
        '{"label": " a"}',
        '{"label": "\u0430"}',  # a Cyrillic letter that looks the same
        '{"label": "a"} is the label',
        "[" * 100_000,
        '{"label": ' + "9" * 5000 + "}",
    ],
)
def test_a_near_miss_is_a_miss(reply: str) -> None:
    with pytest.raises(BadAnswer):
        label_of(reply, LABELS)


@pytest.mark.parametrize("name", ["", None, 7, "x" * 129, "a\nb", "<script>", "ä"])
def test_a_name_that_is_none_is_dropped(name: object) -> None:
    assert name_of(name) == ""


@given(st.text())
def test_no_text_can_leave_its_json_string(text: str) -> None:
    shown = text.encode("utf-8", "replace").decode()
    assert json.loads(prompt.user_part(text)) == {"text": shown}


@given(st.text(), st.text(min_size=1))
def test_the_upper_bound_covers_every_byte_that_is_sent(text: str, label: str) -> None:
    question = Question("t", text, (Label(label), Label(label + "2")))
    shown = prompt.of(question)
    bound = shown.upper_bound(text)
    assert bound.input > len((shown.prefix + prompt.user_part(text)).encode())
    assert bound.output > len(json.dumps({"label": label}))
    bound = shown.choice_upper_bound(text)
    assert bound.input > len(json.dumps(shown.choice)) + len(text.encode(errors="replace"))


def test_the_prefix_is_the_same_for_all_texts_and_its_digest_tells_every_change(question: Question) -> None:
    digest = prompt.prompt_digest(question.labels, question.instructions)
    assert digest == prompt.prompt_digest(tuple(question.labels), question.instructions)
    first, *rest = question.labels
    changed = [
        (question.labels, "Other words."),
        ((Label(first.name, "another description"), *rest), question.instructions),
        ((*rest, first), question.instructions),
        ((*question.labels, Label("new")), question.instructions),
        (question.labels, question.instructions, (Example("a", first.name),)),
        (question.labels, question.instructions, (Example("b", first.name),)),
        (question.labels, question.instructions, (Example("a", rest[0].name),)),
        (question.labels, question.instructions, (Example("a", first.name), Example("b", first.name))),
    ]
    assert len({digest, *(prompt.prompt_digest(*parts) for parts in changed)}) == 1 + len(changed)


def test_the_words_of_version_1_are_these_when_there_are_no_examples(question: Question) -> None:
    """Other words under the same version would let old answers pass for new ones."""
    assert (prompt.PROMPT_VERSION, prompt.of(question).digest) == ("1", "fae61c86f92afccb350dafd02f235259")


def test_the_stable_part_is_made_once_for_all_texts_of_a_task(question: Question) -> None:
    other = msgspec.structs.replace(question, text="another text", labels=(*question.labels,))
    assert prompt.of(other) is prompt.of(question)
    assert prompt.of(msgspec.structs.replace(question, instructions="x")) is not prompt.of(question)
    assert prompt.prompt_digest(list(question.labels), question.instructions) == prompt.of(question).digest


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
        ({"input_tokens": 10, "output_tokens": 101}, BOUND),
        ({"input_tokens": 1001, "output_tokens": 5}, BOUND),
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
    assert 0 < sum(buckets[:4]) <= BOUND.input
    assert used.reasoning <= used.output <= BOUND.output
    assert used == BOUND or not used.estimated


def test_retry_after_understands_dates_and_milliseconds() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    heard = failures.retry_after({"retry-after": soon})
    assert heard is not None
    assert 25 < heard <= 30
    assert failures.retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) is None
    assert failures.retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert failures.retry_after({"retry-after-ms": "junk", "retry-after": "9"}) == 9
    assert failures.retry_after({}) is None


@given(st.text())
def test_for_all_strings_retry_after_is_positive_or_nothing(value: str) -> None:
    heard = failures.retry_after({"retry-after": value})
    assert heard is None or heard > 0


@pytest.mark.parametrize(
    ("sdk_error", "status", "body"),
    [
        (anthropic.APIStatusError, 400, {"type": "error", "error": {"type": "billing_error", "message": "no credit"}}),
        (openai.APIStatusError, 429, {"type": "insufficient_quota", "code": "insufficient_quota"}),
        (openai.APIStatusError, 429, {"type": "insufficient_quota", "code": None}),
    ],
)
def test_an_account_without_credit_is_not_mistaken_for_a_moments_rush(sdk_error: Any, status: int, body: Any) -> None:
    """By the name in the body, where either SDK keeps it."""
    response = httpx2.Response(status, request=httpx2.Request("POST", "https://api.example.com"))
    assert type(failures.from_error(sdk_error("said", response=response, body=body))) is AuthFailed
    assert type(failures.from_error(sdk_error("said", response=response, body=None))) is not AuthFailed
