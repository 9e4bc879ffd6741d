"""The providers in order, under one deadline: the only place where paid calls are made.

A call that fails moves on to the next provider, once, while time lasts. One wire call is one attempt in the ledger
(`providers.attempt`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from cost.types import Budget, BudgetExhausted, LedgerError, Outcome
from providers.attempt import Busy, Failed, Lane, Skipped, Terms
from providers.books import Books, Ledger
from providers.breaker import Breaker, BreakerSettings
from providers.settlement import Prices, Settlement
from providers.types import Caller, DegradedReason, FrontierAnswer, FrontierUnavailable, Provider, Question

log = structlog.get_logger(__name__)


class Chain:
    """Implements `Frontier`. `clock` (seconds) drives the breakers, `wall` (seconds) dates the attempts; deadlines are
    in the event loop's time. `on_attempt(provider, model, outcome)` is called once an attempt has ended."""

    def __init__(
        self,
        providers: Sequence[Provider],
        *,
        ledger: Ledger,
        prices: Prices,
        budget: Budget,
        max_attempts: int = 2,
        max_in_flight: int = 16,
        breaker: BreakerSettings | None = None,
        min_call_s: float = 0.05,
        slot_wait_s: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        on_attempt: Callable[[str, str, Outcome], None] = lambda _provider, _model, _outcome: None,
    ) -> None:
        self._books = Books(ledger, on_attempt)
        self._max_attempts = max_attempts
        self._min_call_s = min_call_s
        self._clock = clock
        self.terms = Terms(budget, min_call_s, slot_wait_s, clock, wall)
        self._lanes = [
            Lane(
                provider,
                slots=max_in_flight,
                breaker=Breaker(breaker or BreakerSettings(), clock),
                settlement=Settlement(prices, provider.model),
                books=self._books,
                terms=self.terms,
            )
            for provider in providers
        ]

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
        spent, attempts, busy = 0, 0, False
        reason: DegradedReason = "provider_unavailable"
        detail: list[str] = []
        for place, lane in enumerate(self._lanes):
            left = deadline - loop.time()
            if attempts == self._max_attempts or left < self._min_call_s:
                break
            # A provider that hangs leaves the next one time to answer.
            last = attempts + 1 == self._max_attempts or place + 1 == len(self._lanes)
            until = deadline if last else loop.time() + left * 0.6
            try:
                answer, cost = await lane.attempt(question, caller, until=until, deadline=deadline)
            except Skipped as skipped:
                busy |= isinstance(skipped, Busy)
                detail.append(f"{lane.provider.name}: {skipped}")
                continue
            except Failed as failed:
                detail.append(f"{lane.provider.name}: {failed}")
                attempts, spent = attempts + 1, spent + failed.cost_nano
                continue
            except BudgetExhausted as error:
                reason, detail = "budget", [str(error)]
                break
            except LedgerError as error:
                # No call may be made that is not in the books.
                log.error("no_paid_calls", why="ledger unwritable", error=type(error).__name__)  # noqa: TRY400
                detail = ["ledger unwritable"]
                break
            return FrontierAnswer(
                label=answer.label,
                provider=lane.provider.name,
                model=answer.model or lane.provider.model,
                cost_nano=spent + cost,
                latency_us=self._us_since(started),
                attempts=attempts + 1,
                confidence=answer.confidence,
            )
        if reason == "provider_unavailable" and deadline - loop.time() < self._min_call_s:
            reason = "deadline"
        elif reason == "provider_unavailable" and busy and attempts == 0:
            reason = "overload"
        raise FrontierUnavailable(
            reason, "; ".join(detail) or reason, cost_nano=spent, latency_us=self._us_since(started)
        )

    def _us_since(self, started: float) -> int:
        return int((self._clock() - started) * 1e6)
