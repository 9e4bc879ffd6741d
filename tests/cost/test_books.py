"""What the cache commands ask the books."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cost.books import CacheUse, cache_use, hits

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
    assert cache_use(tmp_path / "absent.db", since=0, by="hour") == []
    (tmp_path / "text.db").write_text("no database at all " * 300)
    assert hits(tmp_path / "text.db") == {}
    damaged = books([row(f"r{i}", source="cache", text_digest=os.urandom(64)) for i in range(200)])
    content = bytearray(damaged.read_bytes())
    for at in range(8192, len(content), 4096):
        content[at : at + 64] = os.urandom(64)
    damaged.write_bytes(content)
    assert hits(damaged) == {}
    assert cache_use(damaged, since=0, by="day") == []


def test_the_use_of_the_cache_over_time_by_task_and_who_answered(books: Make, row: Make) -> None:
    """Hits, misses and what was shared apart; what asked for no cache is in none of them."""
    hour = 1_700_000_000_000_000 // 3_600_000_000 * 3_600_000_000
    path = books(
        [
            row("a", at_us=hour + 1, source="cache", answered_by="frontier", cache_tier="redis", cache_us=5),
            row("b", at_us=hour + 2, source="cache", answered_by="frontier", cache_tier="memory", cache_us=1),
            row("c", at_us=hour + 3, source="frontier", cache_us=5),
            row("d", at_us=hour + 4, source="frontier", cache_us=5, coalesced=True),
            row("e", at_us=hour + 5, source="frontier", cache_us=0),
            row("f", at_us=hour + 6, source="local", cache_us=5, task="other"),
            row("g", at_us=hour + 3_600_000_000, source="cache", answered_by="local", cache_us=5),
            row("h", at_us=hour - 1, source="local", cache_us=5),
        ]
    )
    first, second = "2023-11-14T22:00:00Z", "2023-11-14T23:00:00Z"
    since = (hour + 7) / 1e6
    assert cache_use(path, since=since, by="hour") == [
        CacheUse(first, "banking", "frontier", 2, 1, 1, 1, 2 / 3),
        CacheUse(first, "other", "local", 0, 0, 1, 0, 0.0),
        CacheUse(second, "banking", "local", 1, 0, 0, 0, 1.0),
    ]
    days = cache_use(path, since=since, by="day")
    assert [(use.at, use.task, use.source, use.hits, use.misses) for use in days] == [
        ("2023-11-14T00:00:00Z", "banking", "frontier", 2, 1),
        ("2023-11-14T00:00:00Z", "banking", "local", 1, 1),
        ("2023-11-14T00:00:00Z", "other", "local", 0, 1),
    ]
