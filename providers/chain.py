"""The providers in order, under one deadline: the only place where paid calls are made.

A call that fails is made again at the same provider where that may help (`providers.retries`), else it moves on to the
next one, while time and money last. One wire call is one attempt in the ledger (`providers.attempt`).

A caller who is cancelled takes the call under way with him, and it counts with its upper bound. Callers of the service
who leave are not: there an escalation is a task of its own (`router.flights`), which ends, is settled with what it used
and is kept for the next who asks. It is bounded by the deadline and by the calls that may be in flight; only the end of
the process cancels it. So nothing of the kind is needed here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import structlog

from cost.types import Budget, BudgetExhausted, LedgerError, Outcome
from providers.attempt import Busy, Failed, Lane, Skipped, Terms, TooLate
from providers.books import Books, Ledger
from providers.breaker import Breaker, BreakerSettings
from providers.retries import Retries, RetrySettings
from providers.settings import LaneSettings
from providers.tariffs import Prices, tariff_of
from providers.types import Answer, Caller, DegradedReason, FrontierAnswer, FrontierUnavailable, Provider, Question

log = structlog.get_logger(__name__)


class Spent(msgspec.Struct):
    """For one question so far, at all providers."""

    nano: int = 0
    attempts: int = 0


class Chain:
    """Implements `Frontier`. `lanes` by provider name. `clock` (seconds) drives the breakers and measures, `wall`
    (seconds) dates the attempts, `sleep` and `draw` ([0, 1)) make the pauses before retries; deadlines are in the event
    loop's time. `on_attempt(provider, model, outcome)` is called once an attempt has ended."""

    def __init__(
        self,
        providers: Sequence[Provider],
        *,
        ledger: Ledger,
        prices: Prices,
        budget: Budget,
        lanes: Mapping[str, LaneSettings] | None = None,
        breaker: BreakerSettings | None = None,
        retries: RetrySettings | None = None,
        min_call_s: float = 0.05,
        slot_wait_s: float = 0.25,
        typical_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
        on_attempt: Callable[[str, str, Outcome], None] = lambda _provider, _model, _outcome: None,
    ) -> None:
        self._books = Books(ledger, on_attempt)
        self._min_call_s = min_call_s
        self._clock = clock
        self._sleep = sleep
        self.terms = Terms(budget, min_call_s, slot_wait_s, typical_s, clock, wall)

        def lane(provider: Provider) -> Lane:
            settings = (lanes or {}).get(provider.name, LaneSettings())
            return Lane(
                provider,
                max_in_flight=settings.max_in_flight,
                breaker=Breaker(breaker or BreakerSettings(), clock),
                retries=Retries(retries or RetrySettings(), draw),
                tariff=tariff_of(prices, provider.model, settings, clock),
                books=self._books,
                terms=self.terms,
            )

        self._lanes = [lane(provider) for provider in providers]

    def configured(self) -> Sequence[tuple[str, str]]:
        return [(lane.provider.name, lane.provider.identity) for lane in self._lanes]

    def status(self) -> list[dict[str, Any]]:
        """For /v1/status: a line a provider."""
        return [lane.status() for lane in self._lanes]

    async def close(self) -> None:
        """Close the providers, after the books are written."""
        await self._books.close()
        for lane in self._lanes:
            await lane.provider.close()

    async def answer(self, question: Question, caller: Caller, *, deadline: float) -> FrontierAnswer:
        """Ask until one answers. Raises `FrontierUnavailable`; `deadline` is in the loop's time."""
        if not self._lanes:
            raise FrontierUnavailable("no_provider", "no provider is configured")
        loop = asyncio.get_running_loop()
        started = self._clock()
        spent, busy, late = Spent(), False, False
        reason: DegradedReason = "provider_unavailable"
        detail: list[str] = []
        for lane in self._lanes:
            left = deadline - loop.time()
            if left < self._min_call_s:
                break
            # A provider that hangs leaves the next one time to answer.
            until = deadline if lane is self._lanes[-1] else loop.time() + left * 0.6
            try:
                answer = await self._ask(lane, question, caller, spent, until=until, deadline=deadline)
            except (Failed, Skipped) as why:
                busy |= isinstance(why, Busy)
                late |= isinstance(why, TooLate)
                detail.append(f"{lane.provider.name}: {why}")
                continue
            except BudgetExhausted as error:
                reason = "budget"  # the next one may be cheaper
                detail.append(f"{lane.provider.name}: {error}")
                continue
            except LedgerError as error:
                # No call may be made that is not in the books.
                log.error("no_paid_calls", why="ledger unwritable", error=type(error).__name__)  # noqa: TRY400
                detail = ["ledger unwritable"]
                break
            return FrontierAnswer(
                label=answer.label,
                provider=lane.provider.name,
                model=answer.model or lane.provider.model,
                cost_nano=spent.nano,
                latency_us=self._us_since(started),
                attempts=spent.attempts,
                confidence=answer.confidence,
                scores=answer.scores,
            )
        if reason == "provider_unavailable" and (late or deadline - loop.time() < self._min_call_s):
            reason = "deadline"
        elif reason == "provider_unavailable" and busy and spent.attempts == 0:
            reason = "overload"
        raise FrontierUnavailable(
            reason, "; ".join(detail) or reason, cost_nano=spent.nano, latency_us=self._us_since(started)
        )

    async def _ask(
        self, lane: Lane, question: Question, caller: Caller, spent: Spent, *, until: float, deadline: float
    ) -> Answer:
        """At one provider. Who waits to ask again holds no place among its calls. Raises as `Lane.attempt`."""
        loop = asyncio.get_running_loop()
        with lane.retries.question() as again:
            while True:
                try:
                    answer, cost = await lane.attempt(question, caller, until=until, deadline=deadline)
                except Failed as failed:
                    spent.nano, spent.attempts = spent.nano + failed.cost_nano, spent.attempts + 1
                    wait = lane.retries.wait_s(
                        again,
                        failed.error,
                        left_s=until - loop.time() - lane.typical_s,
                        open_for_s=lane.breaker.open_for_s(),
                    )
                    if wait is None:
                        raise
                else:
                    spent.nano, spent.attempts = spent.nano + cost, spent.attempts + 1
                    return answer
                if wait:
                    await self._sleep(wait)

    def _us_since(self, started: float) -> int:
        return int((self._clock() - started) * 1e6)
