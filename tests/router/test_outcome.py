"""From an answer to what is kept and sent of it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from providers.types import Example, FrontierAnswer, Question
from router import outcome
from router.outcome import Outcome

LOCAL = Outcome(source="local", label="a", confidence=0.4, scores=(("a", 0.4), ("b", 0.3)), model="m@1")


def test_a_frontiers_probabilities_reach_the_caller_and_the_cache_and_the_local_ones_do_not() -> None:
    scores = (("b", 0.9), ("a", 0.1))
    bought = outcome.from_frontier(FrontierAnswer("b", "p", "m", 5, 7, 1, 0.9, scores), LOCAL)
    assert outcome.to_entry(bought, 0.0, None).scores == scores
    sent = msgspec.to_builtins(outcome.to_wire(bought, total_us=1, top_k=1))
    assert list(map(list, sent["scores"])) == [["b", 0.9]]


def test_a_frontier_that_gives_no_probabilities_has_no_scores() -> None:
    bought = outcome.from_frontier(FrontierAnswer("b", "p", "m", 5, 7, 1), LOCAL)
    assert (bought.scores, bought.confidence) == ((), None)


def test_a_tasks_examples_are_shown_to_the_frontier(bench: Any) -> None:
    examples = (Example("how much is it?", "fee"),)
    questions: list[Question] = []

    def reply(question: Question) -> FrontierAnswer:
        questions.append(question)
        return FrontierAnswer("fee", "p", "m", 1, 1, 1)

    async def main() -> None:
        made = bench()
        made.route = msgspec.structs.replace(made.route, examples=examples)
        made.frontier.reply = reply
        (answered,) = await made.ask("nothing that the local model knows", threshold=1.0)
        assert answered.source == "frontier"

    asyncio.run(main())
    assert [question.examples for question in questions] == [examples]
