"""The examples are what their README says they are."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from router.config_file import load


@pytest.fixture
def rows(root: Path) -> list[dict[str, str]]:
    with (root / "examples/bank_support.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_is_marked_a_repeat_exactly_if_its_text_stood_above(rows: list[dict[str, str]]) -> None:
    above: set[str] = set()
    for row in rows:
        assert (row["note"] == "repeat") == (row["text"] in above), row["text"]
        above.add(row["text"])


def test_the_readme_counts_right(root: Path, rows: list[dict[str, str]]) -> None:
    text = (root / "examples/README.md").read_text(encoding="utf-8")
    notes = Counter(row["note"] for row in rows)
    for said in (f"{len(rows)} messages", f"- {notes['']} ", f"- {notes['out of scope']} ", f"- {notes['repeat']} "):
        assert said in text


def test_the_labels_are_the_shipped_heads_and_each_is_meant_at_least_twice(
    root: Path, rows: list[dict[str, str]]
) -> None:
    manifest = json.loads((root / "local_model/heads/banking77/manifest.json").read_text(encoding="utf-8"))
    names = {label["name"] for label in manifest["labels"]}
    meant = Counter(row["label"] for row in rows if not row["note"])
    assert set(meant) == names
    assert min(meant.values()) >= 2
    assert {row["label"] for row in rows} <= names


def test_the_sentiment_config_is_valid_as_it_stands_and_pins_its_model(root: Path) -> None:
    task = load(root / "examples/sentiment.toml", {}).config.tasks["sentiment"]
    assert task.model is not None
    assert len(task.revision or "") == 40
