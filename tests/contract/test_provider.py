"""Every provider keeps the same promises: both SDKs over a socket, and the scripted one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cost.types import Usage
from providers.build import build
from providers.fake import ScriptedProvider
from providers.simulator import Simulator
from providers.types import Answer, BadAnswer, Label, ProviderError, Question, RateLimited, Unavailable

QUESTION = Question("t", "I lost my card", (Label("lost", "a lost card"), Label("fee", "a fee")))
FAULTS: list[tuple[str, type[ProviderError]]] = [
    ("429", RateLimited),
    ("500", Unavailable),
    ("reset", Unavailable),
    ("malformed", BadAnswer),
    ("out_of_set", BadAnswer),
]


def provider(kind: str, sim: Simulator, step: Any = None) -> Any:
    if kind == "scripted":
        return ScriptedProvider("p", "m", [step or Answer("lost", "m", Usage(input=5, output=1))])
    url = sim.url + ("/v1" if kind == "openai" else "")
    model = {"anthropic": "claude-haiku-5-5", "openai": "gpt-6-luna"}[kind]
    return build(kind, name="p", model=model, api_key="k", base_url=url)


@pytest.mark.parametrize("kind", ["anthropic", "openai", "scripted"])
def test_an_answer_is_a_label_of_the_question_with_usage(kind: str) -> None:
    """And the model that gave it."""

    async def main() -> None:
        async with Simulator({QUESTION.text: "lost"}) as sim:
            asked = provider(kind, sim)
            answer = await asked.ask(QUESTION, timeout=10)
            assert answer.label == "lost"
            assert answer.model
            assert answer.usage.input + answer.usage.cache_read + answer.usage.cache_write_5m > 0
            assert answer.usage.output > 0
            await asked.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["anthropic", "openai", "scripted"])
@pytest.mark.parametrize(("fault", "expected"), FAULTS)
def test_a_fault_is_an_error_of_the_tree(kind: str, fault: str, expected: type[ProviderError]) -> None:
    """The same one whoever is asked, after one call."""

    async def main() -> None:
        async with Simulator() as sim:
            asked = provider(kind, sim, expected("scripted"))
            sim.fail_next([fault])
            with pytest.raises(expected):
                await asked.ask(QUESTION, timeout=10)
            assert sim.calls == (0 if kind == "scripted" else 1)
            await asked.close()

    asyncio.run(main())
