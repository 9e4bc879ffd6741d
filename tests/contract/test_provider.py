"""Every provider keeps the same promises: four formats through both SDKs over a socket, and the scripted one."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import pytest

from cost.prices import PriceTable
from cost.types import Usage
from providers.build import build
from providers.fake import ScriptedProvider
from providers.settings import Kind, Settings
from providers.simulator import Simulator
from providers.types import Answer, BadAnswer, Label, ProviderError, Question, RateLimited, Unavailable

QUESTION = Question("t", "I lost my card", (Label("lost", "a lost card"), Label("fee", "a fee")))
KINDS = [*get_args(Kind), "scripted"]
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
    url = sim.url + ("" if kind == "anthropic" else "/v1")
    model = "claude-haiku-5-5" if kind == "anthropic" else "gpt-6-luna"
    return build(kind, name="p", model=model, api_key="k", settings=Settings(base_url=url))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_uses_no_more_than_its_upper_bound(kind: str) -> None:
    """Which is what the ledger reserves."""

    async def main() -> None:
        async with Simulator() as sim:
            asked = provider(kind, sim)
            used, bound = (await asked.ask(QUESTION, timeout=10)).usage, asked.upper_bound(QUESTION)
            assert bound.estimated
            assert used.input + used.cache_read + used.cache_write_5m + used.cache_write_1h <= bound.input
            assert used.output <= bound.output
            await asked.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_a_provider_says_who_it_is(kind: str) -> None:
    """Its name in the config, the model as it is priced, and what of its settings changes an answer."""

    async def main() -> None:
        async with Simulator() as sim:
            asked = provider(kind, sim)
            assert asked.name == "p"
            assert kind == "scripted" or PriceTable.load().price(asked.model)
            assert asked.model.removesuffix("/decisions") in asked.identity
            await asked.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
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
