"""What is understood of a reply: a label of the set, or an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.parse import label_of, name_of, scores_of, unwrapped
from providers.types import BadAnswer

LABELS = ("card_arrival", "Ärger", "a", 'quo"ted')
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
