"""The providers in order, under one deadline: the only place where paid calls are made.

For each provider: is its breaker closed? → a free slot → reserve the upper bound in the ledger → ask → settle. A call
that fails moves on to the next provider, once, while time lasts. One wire call is one attempt in the ledger.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import structlog

from cost.types import BudgetExhausted, Intent, LedgerError, Outcome
from providers import prompt
from providers.breaker import Breaker, BreakerSettings
from providers.settlement import PricesLike, Settlement
from providers.types import (
    Answer,
    AuthFailed,
    Caller,
    DegradedReason,
    FrontierAnswer,
    FrontierUnavailable,
    Provider,
    ProviderError,
    Question,
    TimedOut,
    Unavailable,
)

log = structlog.get_logger(__name__)
T = TypeVar("T")


class LedgerLike(Protocol):
    """The part of the ledger that paid calls need (`cost.ledger.Ledger`)."""

    async def reserve(self, intent: Intent) -> int: ...
    async def settle(self, attempt_id: int, outcome: Outcome) -> None: ...


class _Lane:
    """One provider and what the chain knows of it."""

    def __init__(self, provider: Provider, slots: int, breaker: Breaker, prices: PricesLike) -> None:
        self.provider = provider
        self.breaker = breaker
        self.settlement = Settlement(prices, provider.model)
        self.slots = asyncio.Semaphore(slots)
        self.in_flight = 0
        self.calls = 0


class _Failed(Exception):
    """An attempt that gave no answer: what it cost (or may have), and why."""

    def __init__(self, error: ProviderError, cost_nano: int) -> None:
        super().__init__(type(error).__name__)
        self.error = error
        self.cost_nano = cost_nano


class _Skipped(Exception):
    """No call was made: the message says why."""


class Chain:
    """Implements `Frontier`. `clock` (seconds) drives the breakers, `wall` (seconds) dates the attempts; deadlines are
    in the event loop's time. `on_attempt(provider, model, outcome)` is called once an attempt has ended."""

    def __init__(
        self,
        providers: Sequence[Provider],
        *,
        ledger: LedgerLike,
        prices: PricesLike,
        budget_nano: int | None,
        max_attempts: int = 2,
        max_in_flight: int = 16,
        breaker: BreakerSettings | None = None,
        min_call_s: float = 0.05,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        on_attempt: Callable[[str, str, Outcome], None] = lambda _provider, _model, _outcome: None,
    ) -> None:
        settings = breaker or BreakerSettings()
        self._lanes = [_Lane(provider, max_in_flight, Breaker(settings, clock), prices) for provider in providers]
        self._ledger = ledger
        self._budget_nano = budget_nano
        self._max_attempts = max_attempts
        self._min_call_s = min_call_s  # a call that can't end in time would only cost
        self._clock = clock
        self._wall = wall
        self._on_attempt = on_attempt
        self._books: set[asyncio.Task[Any]] = set()  # ledger work that must end even if its caller left

    def configured(self) -> Sequence[tuple[str, str]]:
        return [(lane.provider.name, lane.provider.model) for lane in self._lanes]

    def status(self) -> list[dict[str, Any]]:
        """For /v1/status: a line a provider."""
        return [
            {
                "name": lane.provider.name,
                "model": lane.provider.model,
                "breaker": lane.breaker.state,
                "open_for_s": round(lane.breaker.open_for_s(), 1),
                "failures": lane.breaker.failures,
                "last_error": lane.breaker.last_error,
                "in_flight": lane.in_flight,
                "calls": lane.calls,
            }
            for lane in self._lanes
        ]

    async def close(self) -> None:
        """Close the providers, after the books are written."""
        await asyncio.gather(*self._books, return_exceptions=True)
        for lane in self._lanes:
            await lane.provider.close()

    async def answer(self, question: Question, caller: Caller, *, deadline: float) -> FrontierAnswer:
        """Ask until one answers. Raises `FrontierUnavailable`; `deadline` is in the loop's time."""
        if not self._lanes:
            raise FrontierUnavailable("no_provider", "no provider is configured")
        loop = asyncio.get_running_loop()
        started = self._clock()
        spent, attempts = 0, 0
        reason: DegradedReason = "provider_unavailable"
        detail: list[str] = []
        for place, lane in enumerate(self._lanes):
            left = deadline - loop.time()
            if attempts == self._max_attempts:
                break
            if left < self._min_call_s:
                break
            # A provider that hangs leaves the next one time to answer.
            last = attempts + 1 == self._max_attempts or place + 1 == len(self._lanes)
            until = deadline if last else loop.time() + left * 0.6
            try:
                answer, cost = await self._attempt(lane, question, caller, until, deadline)
            except _Skipped as skipped:
                detail.append(f"{lane.provider.name}: {skipped}")
                continue
            except _Failed as failed:
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
        raise FrontierUnavailable(
            reason, "; ".join(detail) or reason, cost_nano=spent, latency_us=self._us_since(started)
        )

    async def _attempt(
        self, lane: _Lane, question: Question, caller: Caller, until: float, deadline: float
    ) -> tuple[Answer, int]:
        """One provider, one wire call, one ledger attempt. Raises `_Skipped` (no call), `_Failed`, `LedgerError`."""
        if lane.breaker.state == "open":
            raise _Skipped(f"left alone for {lane.breaker.open_for_s():.0f} s after {lane.breaker.last_error}")
        estimate = lane.settlement.estimate(prompt.upper_bound(question))
        if estimate is None:
            raise _Skipped(f"no price is known for {lane.provider.model}; add it to the config")
        try:
            async with asyncio.timeout_at(until):
                await lane.slots.acquire()
        except TimeoutError:
            raise _Skipped("all its slots are busy") from None
        try:
            # Asked only now: whoever is admitted in the half-open state must make the call.
            if not lane.breaker.admit():
                raise _Skipped(f"left alone after {lane.breaker.last_error}")
            try:
                attempt_id = await self._reserve(lane, question, caller, estimate, until)
            except BaseException:
                lane.breaker.abandoned()
                raise
            return await self._ask(lane, question, attempt_id, estimate, until, deadline)
        finally:
            lane.slots.release()

    async def _reserve(self, lane: _Lane, question: Question, caller: Caller, estimate: int, until: float) -> int:
        intent = Intent(
            request_id=caller.request_id,
            index=caller.index,
            at_us=int(self._wall() * 1e6),
            tenant=caller.tenant,
            task=question.task,
            provider=lane.provider.name,
            model=lane.provider.model,
            estimate_nano=estimate,
            tokens=caller.tokens,
            budget_nano=self._budget_nano,
        )
        reserving = self._keep(self._ledger.reserve(intent))
        try:
            async with asyncio.timeout_at(until):
                attempt_id = await asyncio.shield(reserving)
        except (TimeoutError, asyncio.CancelledError) as error:
            # The reservation may still come about; nothing was sent, so it is given back.
            self._keep(self._give_back(reserving))
            if isinstance(error, TimeoutError):
                raise _Skipped("the ledger took too long to reserve") from None
            raise
        if until - asyncio.get_running_loop().time() < self._min_call_s:
            self._book(lane, attempt_id, Outcome("unbilled", error="TimedOut"))
            raise _Skipped("the ledger left no time for the call")
        return attempt_id

    async def _give_back(self, reserving: asyncio.Task[int]) -> None:
        attempt_id = await reserving
        await self._ledger.settle(attempt_id, Outcome("unbilled", error="Cancelled"))

    async def _ask(
        self, lane: _Lane, question: Question, attempt_id: int, estimate: int, until: float, deadline: float
    ) -> tuple[Answer, int]:
        loop = asyncio.get_running_loop()
        given = until - loop.time()
        started = self._clock()
        lane.in_flight += 1
        lane.calls += 1
        failure: ProviderError
        try:
            # Adapters keep the time themselves; this one holds whatever they do.
            async with asyncio.timeout_at(until):
                answer = await lane.provider.ask(question, timeout=given)
        except ProviderError as error:
            failure = error
        except TimeoutError:
            failure = TimedOut("no answer in time")
        except asyncio.CancelledError:
            lane.breaker.abandoned()
            self._book(lane, attempt_id, lane.settlement.unknown("Cancelled", estimate, self._us_since(started)))
            raise
        except Exception as error:  # noqa: BLE001 - an adapter's bug costs its own call, not the service
            # Without its traceback: the message may quote the text.
            log.error("provider_bug", provider=lane.provider.name, error=type(error).__name__)  # noqa: TRY400
            failure = Unavailable(type(error).__name__)
        else:
            lane.breaker.succeeded()
            outcome = lane.settlement.answered(answer, estimate, self._us_since(started))
            await self._settled(lane, attempt_id, outcome, deadline)
            return answer, outcome.cost_nano
        finally:
            lane.in_flight -= 1
        self._blame(lane, failure, given)
        bound = prompt.upper_bound(question)
        outcome = lane.settlement.failed(failure, bound, estimate, self._us_since(started))
        await self._settled(lane, attempt_id, outcome, deadline)
        raise _Failed(failure, outcome.cost_nano) from None

    def _blame(self, lane: _Lane, failure: ProviderError, given_s: float) -> None:
        before = lane.breaker.state
        lane.breaker.failed(failure, given_s)
        if isinstance(failure, AuthFailed):
            log.error(
                "provider_auth_failed",
                provider=lane.provider.name,
                model=lane.provider.model,
                what=str(failure),
                do="check the provider's key in the config or the environment, then its account",
            )
        if before != "open" and lane.breaker.state == "open":
            log.warning(
                "provider_left_alone",
                provider=lane.provider.name,
                error=type(failure).__name__,
                seconds=round(lane.breaker.open_for_s(), 1),
            )

    async def _settled(self, lane: _Lane, attempt_id: int, outcome: Outcome, deadline: float) -> None:
        """Wait for the books, but no longer than the caller can."""
        settling = self._book(lane, attempt_id, outcome)
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(settling)
        except TimeoutError:
            pass

    def _book(self, lane: _Lane, attempt_id: int, outcome: Outcome) -> asyncio.Task[None]:
        self._on_attempt(lane.provider.name, outcome.model or lane.provider.model, outcome)
        return self._keep(self._settle(attempt_id, outcome))

    async def _settle(self, attempt_id: int, outcome: Outcome) -> None:
        try:
            await self._ledger.settle(attempt_id, outcome)
        except LedgerError as error:
            # The reservation stays and counts with its upper bound.
            log.error("attempt_not_settled", attempt=attempt_id, error=type(error).__name__)  # noqa: TRY400

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run it to its end whoever leaves; asyncio itself keeps only weak references to tasks."""
        task = asyncio.get_running_loop().create_task(work)
        self._books.add(task)
        task.add_done_callback(self._drop)
        return task

    def _drop(self, task: asyncio.Task[Any]) -> None:
        self._books.discard(task)
        if not task.cancelled():
            task.exception()  # seen by whoever waited; if he left, there is nobody to tell

    def _us_since(self, started: float) -> int:
        return int((self._clock() - started) * 1e6)
