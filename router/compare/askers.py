"""Who is asked in a comparison: the local model, and providers that are each paid for as in production.

A provider is asked through a `Chain` of its own: reservation, budget of the day, retries and breaker are those of the
service, and every call has its row in the ledger.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import NamedTuple, Protocol

from cost.prices import PriceTable
from cost.types import Outcome
from local_model.types import ModelError
from providers.books import Ledger
from providers.chain import Chain
from providers.tariffs import tariff_of
from providers.types import AuthFailed, BadAnswer, Caller, FrontierUnavailable, Refused
from router import outcome as outcomes
from router.ask import TaskRoute
from router.config import LOCAL_TENANT, Config
from router.reporting import budget
from router.wiring import lane_settings, make_provider

LOCAL = "local"
#: For one row: it matters what a model answers and how fast, so a slow one is waited for.
PATIENCE_S = 60.0
#: Rows in a row without a reply, after which a provider is asked no more.
GIVE_UP = 8
#: For how long a row waits while the provider is left alone, seconds.
LEFT_ALONE_S = 60.0
#: Errors that are the model's own doing: a reply came.
REFUSED, OUTSIDE = Refused.__name__, "OutsideTheLabels"
REPLIES = (REFUSED, BadAnswer.__name__, OUTSIDE)

#: The ends of the calls that the running task's row took.
_ends: ContextVar[list[Outcome]] = ContextVar("_ends")


class Reply(NamedTuple):
    """What became of one row. `label`: one of the task's; None: `error` says why. Money in nano-USD."""

    label: str | None
    error: str | None = None
    calls: tuple[Outcome, ...] = ()
    cost: int = 0
    latency_us: int = 0  # of the call that answered


class Asker(Protocol):
    """A classifier to compare."""

    name: str
    model: str
    slots: int  # rows that may be asked at once
    stopped: str | None  # why it is asked no more

    async def ask(self, text: str, number: int, stop: asyncio.Event) -> Reply | None:
        """None: `stop` was set before anything was paid."""
        ...


class LocalAsker:
    """The local model, one text at a time, whatever its confidence."""

    slots = 1

    def __init__(self, route: TaskRoute, taken: Container[str] = ()) -> None:
        """`taken`: names that providers have."""
        self.name = LOCAL if LOCAL not in taken else f"{LOCAL} model"
        self.model = route.info.model
        self.labels = route.label_names
        self.stopped: str | None = None
        self._route = route

    async def ask(self, text: str, number: int, stop: asyncio.Event) -> Reply:  # noqa: ARG002 - the protocol's
        route, started = self._route, time.perf_counter_ns()
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        try:
            (future,) = route.classifier.submit(route.info.name, [text], truncate=True, deadline=deadline)
            found = outcomes.from_prediction(await future, route.info, route.nano_per_us)
        except ModelError as error:
            return Reply(None, type(error).__name__)
        return Reply(found.label, cost=found.cost_nano, latency_us=(time.perf_counter_ns() - started) // 1000)


class ProviderAsker:
    """One provider of the config."""

    def __init__(
        self, name: str, config: Config, route: TaskRoute, *, ledger: Ledger, prices: PriceTable, run: str
    ) -> None:
        """`run` begins the calls' request ids in the ledger. Raises `ValueError` for a provider that can't be made."""
        self.provider = make_provider(name, config)
        self.name, self.model = name, self.provider.model
        self.slots = config.providers[name].max_in_flight
        self.stopped: str | None = None
        self._route, self._run = route, f"{run}_{name}"
        self._in_a_row = 0
        self.chain = Chain(
            [self.provider],
            ledger=ledger,
            prices=prices,
            budget=budget(config),
            lanes=lane_settings(config),
            on_attempt=self._call_ended,
        )
        self._tariff = tariff_of(prices, self.model, lane_settings(config)[name], time.monotonic)

    def at_most(self, texts: Sequence[str]) -> int | None:
        """nano-USD that one call for each text can cost; None: the model has no price."""
        total = 0
        for text in texts:
            nano = self._tariff.estimate(self.provider.upper_bound(self._route.question(text)), PATIENCE_S)
            if nano is None:
                return None
            total += nano
        return total

    async def ask(self, text: str, number: int, stop: asyncio.Event) -> Reply | None:
        loop = asyncio.get_running_loop()
        caller = Caller(self._run, number, LOCAL_TENANT)
        ends: list[Outcome] = []
        _ends.set(ends)
        give_up = loop.time() + LEFT_ALONE_S
        while True:
            try:
                answer = await self.chain.answer(self._route.question(text), caller, deadline=loop.time() + PATIENCE_S)
            except FrontierUnavailable as why:
                lane = self.chain.status()[0]
                resting = why.reason == "overload" or lane["breaker"] != "closed"
                if ends or not resting or self.stopped or loop.time() >= give_up:
                    return self._none(why, ends)
                with suppress(TimeoutError):
                    rest = max(0.1, min(float(lane["open_for_s"]), give_up - loop.time()))
                    await asyncio.wait_for(stop.wait(), rest)
                    return None
                continue
            self._in_a_row = 0
            # The adapters promise it; nothing else counts as an answer here either.
            known = answer.label in self._route.label_names
            label, error = (answer.label, None) if known else (None, OUTSIDE)
            return Reply(label, error, tuple(ends), answer.cost_nano, ends[-1].latency_us)

    async def close(self) -> None:
        await self.chain.close()

    def _none(self, why: FrontierUnavailable, ends: Sequence[Outcome]) -> Reply:
        error = ends[-1].error if ends else None
        if why.reason == "budget":
            self.stopped = self.stopped or "the budget of the day is spent"
        elif error == AuthFailed.__name__:
            self.stopped = self.stopped or "the key was refused"
        elif not ends:
            self.stopped = self.stopped or str(why)
        elif error not in REPLIES:
            self._in_a_row += 1
            if self._in_a_row >= GIVE_UP:
                self.stopped = self.stopped or f"{GIVE_UP} rows in a row without a reply, the last: {error}"
        return Reply(None, error or why.reason, tuple(ends), why.cost_nano)

    def _call_ended(self, _provider: str, _model: str, outcome: Outcome) -> None:
        _ends.get([]).append(outcome)


async def ask_all(
    asker: Asker,
    texts: Sequence[str],
    replies: list[Reply | None],
    *,
    stop: asyncio.Event,
    on_reply: Callable[[str], None],
    first: int = 0,
) -> None:
    """Fills `replies`, one a text, in order; None stays where none was asked: `stop` was set, or the asker had stopped.

    The first text goes alone: a refused key costs one call, and the prompt's prefix is in the provider's cache for the
    rest, as it is in service. `first` numbers the texts in the ledger.
    """
    left = iter(range(len(texts)))

    async def some(count: int) -> None:
        while count and not stop.is_set() and asker.stopped is None and (place := next(left, None)) is not None:
            if (reply := await asker.ask(texts[place], first + place, stop)) is None:
                return
            replies[place] = reply
            count -= 1
            on_reply(asker.name)

    await some(1)
    async with asyncio.TaskGroup() as group:
        for _ in range(asker.slots):
            group.create_task(some(len(texts)))
