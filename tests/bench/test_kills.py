"""A row that is lost, or a call without its attempt, is seen."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from cost.ledger import Ledger
from cost.schema import connect
from cost.types import InputRow, Intent, Outcome, Usage
from providers.simulator.bill import Item


@pytest.fixture
def kills(script: Callable[[str], Any]) -> Any:
    return script("kills")


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """An answered request, its settled call, and a call that was still open."""

    async def write() -> None:
        books = Ledger.open(tmp_path / "l.db")
        at = 1_795_262_400_000_000
        settled = await books.reserve(Intent("r1", 0, at, "t", "a", "p", "gpt-6-luna", 900))
        await books.reserve(Intent("r2", 0, at, "t", "a", "p", "gpt-6-luna", 900))
        paid = Outcome("settled", "gpt-6-luna", Usage(input=2, output=1), 700, "v", reply_id="reply-1")
        await books.settle(settled, paid)
        await books.record([InputRow("r1", 0, at, "t", "a", "frontier", cost_nano=700)])
        books.close()

    asyncio.run(write())
    return tmp_path / "l.db"


def items(*names: str) -> Sequence[Item]:
    return [Item(name, "messages", "m", Usage()) for name in names]


def test_whole_books_have_nothing_lost(kills: Any, ledger: Path) -> None:
    """The open attempt answers for one call whose reply nobody heard."""
    found = kills.judge(ledger, kills.REAL, {"r1": "frontier"}, items("reply-1", "unheard"))
    assert found[4:] == (1, 0, 0, 0)
    assert all(bar.holds for bar in kills.bars([found])[:3])


def test_a_lost_row_a_lost_call_and_broken_sums_are_each_found(kills: Any, ledger: Path) -> None:
    with closing(connect(ledger, busy_ms=1000)) as db:
        db.execute("UPDATE spend SET nano = nano + 1")
    found = kills.judge(ledger, kills.REAL, {"r1": "frontier", "r9": "local"}, items("reply-1", "unheard", "another"))
    assert (found.lost_rows, found.lost_calls, found.errors) == (1, 1, 1)
    assert [bar.holds for bar in kills.bars([found])] == [False] * 4


def test_the_load_is_mixed_and_only_repeats_repeat(kills: Any) -> None:
    texts = list(islice(kills.mixed(random.Random(1), 3), 1000))
    new = [text for text in texts if not text.startswith("where is my card")]
    assert len(new) == len(set(new))
    assert 500 < len(new) < 700
    assert 200 < sum(text.startswith("hmm") for text in new) < 400


def test_the_keyword_model_is_sure_of_cards_and_of_nothing_else(kills: Any, script: Callable[[str], Any]) -> None:
    """So that the three kinds of texts get their three kinds of answers, and the service starts without torch."""
    model = script("keyword_server").KeywordModel({"banking": script("keyword_server").LABELS})

    async def sure(text: str) -> float:
        (future,) = model.submit("banking", [text], truncate=False, deadline=None)
        return (await future).top[0][1]

    assert asyncio.run(sure("I lost my card 3 77")) > 0.8
    assert asyncio.run(sure("hmm 3 77")) < 0.8
