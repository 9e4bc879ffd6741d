"""What the cache commands ask the books."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cost.books import hits

Make = Callable[..., Any]


def test_hits_are_counted_by_text_task_and_who_answered_first(books: Make, row: Make) -> None:
    hit = {"source": "cache", "text_digest": b"\xab\x01", "saved_nano": 5}
    path = books(
        [
            row("first", text_digest=b"\xab\x01", saved_nano=0),  # an answer, not a hit
            row("a", answered_by="frontier", **hit),
            row("b", answered_by="frontier", **hit),
            row("c", answered_by="local", **{**hit, "saved_nano": 0}),
            row("d", answered_by="frontier", **{**hit, "task": "other"}),
        ]
    )
    assert hits(path) == {
        ("ab01", "banking", "frontier"): (2, 10),
        ("ab01", "banking", "local"): (1, 0),
        ("ab01", "other", "frontier"): (1, 5),
    }


def test_books_that_cannot_be_read_have_no_hits(tmp_path: Path, books: Make, row: Make) -> None:
    assert hits(tmp_path / "absent.db") == {}
    (tmp_path / "text.db").write_text("no database at all " * 300)
    assert hits(tmp_path / "text.db") == {}
    damaged = books([row(f"r{i}", source="cache", text_digest=os.urandom(64)) for i in range(200)])
    content = bytearray(damaged.read_bytes())
    for at in range(8192, len(content), 4096):
        content[at : at + 64] = os.urandom(64)
    damaged.write_bytes(content)
    assert hits(damaged) == {}
