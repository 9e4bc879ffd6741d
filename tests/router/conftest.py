"""What these tests share: the pipeline on fakes, because what stands around it is what is tested; and a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis

from cost.fake import MemoryLedger
from local_model.fake import KeywordClassifier
from providers.types import Caller, FrontierAnswer, FrontierUnavailable, Label, Question
from router import policy
from router.ask import Ask, TaskRoute
from router.cache.embedded import EmbeddedRedis
from router.cache.fake import MemoryCache
from router.config import Policy
from router.outcome import Outcome
from router.pipeline import Pipeline

LABELS = {"lost": ["lost"], "arrival": ["arrive"], "fee": ["fee"]}


class Frontier:
    """Answers "fee" at once, or what `reply` says; `hold` keeps calls waiting."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.reply: Callable[[Question], FrontierAnswer | Exception] = lambda _: FrontierAnswer(
            "fee", "p", "simulated/m", 1000, 2000, 1
        )
        self.hold: asyncio.Event | None = None

    async def answer(self, question: Question, caller: Caller, *, deadline: float) -> FrontierAnswer:
        self.asked.append(question.text)
        if self.hold:
            try:
                async with asyncio.timeout_at(deadline):
                    await self.hold.wait()
            except TimeoutError:
                raise FrontierUnavailable("deadline", "too slow") from None
        reply = self.reply(question)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def configured(self) -> Sequence[tuple[str, str]]:
        return [("p", "m")]


class Bench:
    """A pipeline and what it is built on. `ask(...)` must be awaited on one loop."""

    def __init__(self, **classifier: Any) -> None:
        self.cache, self.frontier, self.books = MemoryCache(), Frontier(), MemoryLedger()
        self.classifier = KeywordClassifier({"t": LABELS}, **classifier)
        self.ledger_errors: list[Exception] = []
        info = self.classifier.task("t")
        self.route = TaskRoute(
            info=info,
            classifier=self.classifier,
            nano_per_us=2.0,
            labels=tuple(Label(name) for name in info.labels),
            label_names=frozenset(info.labels),
            instructions="",
            local_parts={},
            frontier_parts={},
            local_identity="local",
            frontier_identity="frontier",
        )
        self.pipeline = Pipeline(
            cache=self.cache,
            frontier=self.frontier,
            ledger=self.books,
            digest=lambda tenant, text: f"{tenant}/{text}".encode(),
            local_deadline_s=1.0,
            on_ledger_error=self.ledger_errors.append,
        )
        self._count = 0

    async def ask(
        self,
        *texts: str,
        threshold: float = 0.8,
        tenant: str = "a",
        route: str = "auto",
        over_length: str | None = None,
        seconds: float = 5.0,
        **more: Any,
    ) -> list[Outcome]:
        self._count += 1
        rules = policy.rules_for(Policy(threshold=threshold), over_length, tenant="auto", route=route, provider=True)
        return await self.pipeline.classify(
            Ask(
                request_id=f"req_{self._count}",
                tenant=tenant,
                task=self.route,
                texts=texts,
                rules=rules,
                deadline=asyncio.get_running_loop().time() + seconds,
                started_ns=time.perf_counter_ns(),
                **more,
            )
        )


@pytest.fixture
def bench() -> type[Bench]:
    return Bench


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A real Redis of the module's own."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), 16) as server:
        yield server


@pytest.fixture
def raw(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A plain client to it, emptied: to look and to tamper."""
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        client.flushall()
        client.config_resetstat()
        yield client
