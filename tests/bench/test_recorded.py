"""The replay of recorded answers: ids become names by joining texts, and the statistics are right."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path
from typing import Any

import pytest

NAMED = [
    ("where is my card", "card_arrival"),
    ("lost it, in the café", "lost_card"),
    ("what is the rate", "exchange_rate"),
]


def write(path: Path, header: list[str], rows: list[tuple[str, ...]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def named(tmp_path: Path) -> Path:
    return write(tmp_path / "train.csv", ["text", "category"], NAMED)


def recording(folder: Path, rows: list[tuple[str, ...]]) -> Path:
    return write(folder / "recorded.csv", ["text", "label", "gpt-label"], rows)


def test_ids_become_the_names_of_the_rows_they_are_gold_for(recorded: Any, named: Path, tmp_path: Path) -> None:
    other_form = unicodedata.normalize("NFD", " lost it, in the café\n")
    rows = recorded.read_recorded(
        recording(tmp_path, [("what is the rate", "0", "0"), (other_form, "1", "2"), ("where is my card", "2", "1")]),
        named,
    )
    assert rows == [
        ("what is the rate", "exchange_rate", "exchange_rate"),
        ("lost it, in the café", "lost_card", "card_arrival"),
        ("where is my card", "card_arrival", "lost_card"),
    ]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([("never seen", "0", "0")], "row 1 is not in"),
        ([("where is my card", "0", "0"), ("what is the rate", "0", "0")], "id 0 is card_arrival and, in row 2"),
        ([("where is my card", "0", "5")], "names id 5"),
    ],
)
def test_a_recording_that_does_not_join_is_refused(
    recorded: Any, named: Path, tmp_path: Path, rows: list[tuple[str, ...]], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        recorded.read_recorded(recording(tmp_path, rows), named)


def test_the_interval_of_a_share_is_wilsons(recorded: Any) -> None:
    """8 of 10: the value in every textbook's table."""
    assert recorded.wilson(8, 10) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    low, high = recorded.wilson(10, 10)
    assert 0.7 < low < high <= 1.0 + 1e-12


def test_the_interval_of_a_difference_counts_only_rows_that_differ(recorded: Any) -> None:
    assert recorded.paired_interval(0, 0, 100, 1.96) == (0, 0, 0)
    difference, low, high = recorded.paired_interval(30, 10, 1000, 1.96)
    assert difference == pytest.approx(0.020)
    assert high - difference == pytest.approx(1.96 * (40 - 400 / 1000) ** 0.5 / 1000)
    assert low == pytest.approx(2 * difference - high)


def answers(recorded: Any, labels: str, source: str) -> list[Any]:
    return [recorded.Answer(label, source, None) for label in labels]


def test_the_finding_says_whether_escalating_helps_or_harms(recorded: Any) -> None:
    rows = [recorded.Recorded(str(n), "a", "b") for n in range(100)]
    wrong, right = answers(recorded, "b" * 100, "frontier"), answers(recorded, "a" * 100, "local")
    assert " harms: -100.0 points" in recorded.conclude(rows, {0.0: right, 1.0: wrong})
    assert " helps: +100.0 points" in recorded.conclude(rows, {0.0: wrong, 1.0: right})
    assert "told apart" in recorded.conclude(rows, {0.0: right, 1.0: right})


def test_bars_fail_when_books_and_bill_or_answers_and_recording_differ(recorded: Any) -> None:
    rows = [recorded.Recorded("1", "a", "a"), recorded.Recorded("2", "a", "b")]
    runs = {1.0: answers(recorded, "ab", "frontier")}
    books = {1.0: recorded.Books(total=12, frontier=10, calls=2)}
    assert all(bar.holds for bar in recorded.bars(rows, runs, books, 10, 2))
    assert [bar.holds for bar in recorded.bars(rows, runs, books, 11, 3)] == [False, False, True, True, True]
    altered = {1.0: answers(recorded, "aa", "frontier")}
    assert [bar.value for bar in recorded.bars(rows, altered, books, 10, 2)] == [0, 0, 0, 1, 0]


def test_the_simulator_answers_with_the_recorded_label_and_its_bill_is_priced(
    recorded: Any, load: Any, tmp_path: Path
) -> None:
    """Texts with commas, quotes and newlines survive the way through its CSV."""
    texts = ['say "hello", please', "two\nlines", "plain"]
    rows = [recorded.Recorded(text, "a", label) for text, label in zip(texts, "bab", strict=True)]
    enum = {"format": {"schema": {"properties": {"label": {"enum": ["a", "b"]}}}}}
    with recorded.simulator(tmp_path, rows) as url:
        where = f"{url}/v1/responses"
        body = {"model": recorded.MODEL, "instructions": "x" * 8000, "text": enum}
        requests = [load.request(where, {**body, "input": row.text}, {"Authorization": "Bearer x"}) for row in rows]
        replies = sorted(load.send(where, requests, connections=1))
        nano, calls = recorded.read_bill(url)
    labels = [reply.body.partition(b'label\\": \\"')[2][:1].decode() for reply in replies]
    assert labels == ["b", "a", "b"]
    # gpt-6-luna, nano-USD a token: input 100, cache write 125, cache read 10, output 500. By the simulator's rule a
    # text of n characters has n // 4 + 8 tokens, the prefix 2001 (written once, read twice), an answer 6.
    inputs = sum(len(text) // 4 + 8 for text in texts)
    assert (nano, calls) == (inputs * 100 + 2001 * 125 + 2 * 2001 * 10 + 3 * 6 * 500, 3)
