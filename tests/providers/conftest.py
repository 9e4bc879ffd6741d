"""What the tests of the frontier share: a question, every adapter on a simulator, a chain with its books."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, get_args

import pytest

from cost.fake import MemoryLedger
from cost.prices import PriceTable
from cost.types import Budget
from providers.build import build
from providers.chain import Chain
from providers.settings import Kind, Settings
from providers.simulator import Simulator
from providers.types import Caller, FrontierAnswer, Label, Provider, Question

KEY = "sk-canary-5f1e0c77d9"
TEXT = "my card still has not arrived, canarytext"
MODELS = {
    "anthropic": "claude-haiku-5-5",
    "openai": "gpt-6-luna",
    "openai-decisions": "gpt-6-luna",
    "openai-chat": "gpt-5.6-luna",
}


@pytest.fixture(params=get_args(Kind))
def kind(request: pytest.FixtureRequest) -> str:
    """All four wire formats, through both real SDKs."""
    return str(request.param)


@pytest.fixture
def key() -> str:
    return KEY


@pytest.fixture
def question() -> Question:
    labels = (Label("card_arrival", "where a new card is"), Label("lost_or_stolen_card"), Label("exchange_rate"))
    return Question("banking", TEXT, labels, instructions="Messages to a bank's support.")


@pytest.fixture
def provider_on() -> Callable[..., Provider]:
    """(simulator, kind, name=kind, model=..., `Settings`) -> the adapter, talking to the simulator."""

    def make(sim: Simulator, kind: str, name: str | None = None, model: str | None = None, **settings: Any) -> Provider:
        base_url = sim.url + ("" if kind == "anthropic" else "/v1")
        given = Settings(base_url, **settings)
        return build(kind, name=name or kind, model=model or MODELS[kind], api_key=KEY, settings=given)

    return make


class Books:
    """A chain on a ledger in memory, with list prices."""

    def __init__(self, providers: list[Provider], **settings: Any) -> None:
        self.ledger = settings.pop("ledger", None) or MemoryLedger()
        self.outcomes: list[tuple[str, str, Any]] = []
        settings.setdefault("budget", Budget(10**9))
        settings.setdefault("prices", PriceTable.load())
        self.chain = Chain(
            providers, ledger=self.ledger, on_attempt=lambda *seen: self.outcomes.append(seen), **settings
        )

    async def ask(self, question: Question, *, within: float = 5.0, index: int = 0) -> FrontierAnswer:
        caller = Caller("req_1", index, "default", tokens=9)
        return await self.chain.answer(question, caller, deadline=asyncio.get_running_loop().time() + within)

    @property
    def states(self) -> list[str]:
        return [attempt.state for attempt in self.ledger.attempts.values()]

    @property
    def spent(self) -> int:
        return sum(attempt.cost_nano for attempt in self.ledger.attempts.values())


@pytest.fixture
def books() -> type[Books]:
    return Books
