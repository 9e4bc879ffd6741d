"""The fake keeps the promises of the seam, so what is tested on it holds on the real one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from local_model.fake import KeywordClassifier
from local_model.types import Expired, NotFinite, OverLength, QueueFull

TASKS = {"banking": {"card_arrival": ["arrive"], "change_pin": ["pin"], "refund": ["money back"]}}


def ask(fake: KeywordClassifier, texts: list[str], **options: Any) -> list[Any]:
    async def main() -> list[Any]:
        futures = fake.submit("banking", texts, **{"truncate": False, "deadline": None, **options})
        return await asyncio.gather(*futures, return_exceptions=True)

    return asyncio.run(main())


def test_a_keyword_decides_and_an_unknown_text_gets_no_confidence() -> None:
    fake = KeywordClassifier(TASKS, confidence=0.9)
    known, unknown = ask(fake, ["Has it ARRIVED?", "hello"])
    assert known.probabilities.tolist() == pytest.approx([0.9, 0.05, 0.05])
    assert [index for index, _ in known.top] == [0, 1, 2]
    assert unknown.probabilities.max() < 0.4
    assert unknown.probabilities.sum() == pytest.approx(1)
    assert fake.task("banking").labels == ("card_arrival", "change_pin", "refund")


def test_length_deadline_and_chosen_failures_hit_one_text_alone() -> None:
    fake = KeywordClassifier(TASKS, max_tokens=5, fail=lambda text: NotFinite("no") if text == "bad" else None)
    long, bad, fine = ask(fake, ["pin " * 9, "bad", "pin"])
    assert isinstance(long, OverLength)
    assert isinstance(bad, NotFinite)
    assert fine.probabilities.argmax() == 1
    assert ask(fake, ["pin " * 9], truncate=True)[0].truncated
    assert isinstance(ask(fake, ["pin"], deadline=0.0)[0], Expired)
    assert fake.seen == ["pin", "pin " * 9]


def test_a_held_queue_fills_refuses_whole_requests_and_never_computes_the_cancelled() -> None:
    fake = KeywordClassifier(TASKS, queue_items=3)

    async def main() -> None:
        fake.hold()
        first, second = fake.submit("banking", ["pin", "arrive"], truncate=False, deadline=None)
        with pytest.raises(QueueFull):
            fake.submit("banking", ["a", "b"], truncate=False, deadline=None)
        assert fake.status()["waiting"] == 2
        first.cancel()
        fake.release()
        assert (await second).probabilities.argmax() == 0
        assert fake.seen == ["arrive"]

    asyncio.run(main())
