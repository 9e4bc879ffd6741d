"""One attempt at one provider: a slot → the breaker → reserve the upper bound → ask → settle. One wire call at most."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from cost.types import Budget, Intent, Outcome, Usage
from providers.books import Books
from providers.breaker import Admission, Breaker
from providers.retries import Retries
from providers.tariffs import Tariff
from providers.types import Answer, AuthFailed, Caller, Permanent, Provider, ProviderError, Question, TimedOut

log = structlog.get_logger(__name__)

#: Of what an answer takes: a call that has less time is not made, but for one now and then (`TRY_ANYWAY_S`), since only
#: a call tells that the provider has become faster.
LEAST_SHARE = 0.5
TRY_ANYWAY_S = 10.0


class Failed(Exception):
    """An attempt that gave no answer: what it cost (or may have), and why."""

    def __init__(self, error: ProviderError, cost_nano: int) -> None:
        super().__init__(type(error).__name__)
        self.error = error
        self.cost_nano = cost_nano


class Skipped(Exception):
    """No call was made: the message says why."""


class Busy(Skipped):
    """The provider has as many calls in flight as are allowed."""


class TooLate(Skipped):
    """The provider takes longer than the time that is left."""


class Terms(msgspec.Struct):
    """What holds for all attempts; the budget may change. `clock` and `wall` in seconds: the first measures, the second
    dates."""

    budget: Budget
    min_call_s: float  # a call that can't end in time would only cost
    slot_wait_s: float  # how long calls may end later than expected, until nobody waits for their places
    typical_s: float  # what an answer takes, until it is measured
    clock: Callable[[], float]
    wall: Callable[[], float]


class _Call(msgspec.Struct, frozen=True):
    """An attempt once it may be made. `until`, `deadline`: the attempt's and the caller's, in the loop's time."""

    question: Question
    admission: Admission
    intent: Intent
    bound: Usage
    until: float
    deadline: float


class Lane:
    """One provider, what is known of it, and how many calls it may have under way."""

    def __init__(
        self,
        provider: Provider,
        *,
        max_in_flight: int,
        breaker: Breaker,
        retries: Retries,
        tariff: Tariff,
        books: Books,
        terms: Terms,
    ) -> None:
        self.provider = provider
        self.breaker = breaker
        self.retries = retries
        #: Seconds that an answer takes as a rule: who has less left need not wait to ask again.
        self.typical_s = terms.typical_s
        self._measured = False  # `typical_s` is
        self._hurried_at = -math.inf  # by the clock: the last call that had too little time
        self._tariff = tariff
        self._books = books
        self._terms = terms
        self._slots = asyncio.Semaphore(max_in_flight)
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._waiting = 0
        self._moved_at = 0.0  # the loop's time, when the last call ended, or the last free place was taken
        self._turned_away = 0
        self._calls = 0

    def status(self) -> dict[str, Any]:
        """A line of /v1/status."""
        return {
            "name": self.provider.name,
            "model": self.provider.model,
            "breaker": self.breaker.state,
            "open_for_s": round(self.breaker.open_for_s(), 1),
            "failures": self.breaker.failures,
            "last_error": self.breaker.last_error,
            "in_flight": self._in_flight,
            "max_in_flight": self._max_in_flight,
            "waiting": self._waiting,
            "calls": self._calls,
            "typical_s": round(self.typical_s, 3),
            "retries": self.retries.made,
            # What was not done because a limit was reached.
            "overflow": {"in_flight": self._turned_away, "retries": self.retries.overflow},
            "price": self._tariff.kind,
            "unpriced": list(self._tariff.unpriced),
        }

    async def attempt(self, question: Question, caller: Caller, *, until: float, deadline: float) -> tuple[Answer, int]:
        """The answer and its cost in nano-USD. Raises `Skipped`, `Failed`, `LedgerError`."""
        if self.breaker.state == "open":
            raise Skipped(f"left alone for {self.breaker.open_for_s():.0f} s after {self.breaker.last_error}")
        self._in_time(until)
        bound = self.provider.upper_bound(question)
        await self._slot(until)
        try:
            estimate = self._tariff.estimate(bound, until - asyncio.get_running_loop().time())
            if estimate is None:
                raise Skipped(self._no_price())
            # Asked only now: whoever is admitted in the half-open state must make the call.
            admission = self.breaker.admit()
            if admission is None:
                raise Skipped(f"left alone after {self.breaker.last_error}")
            try:
                call = _Call(question, admission, self._intent(question, caller, estimate), bound, until, deadline)
                attempt_id = await self._reserve(call)
            except BaseException:
                self.breaker.abandoned(admission)
                raise
            return await self._ask(call, attempt_id)
        finally:
            self._slots.release()

    def _in_time(self, until: float) -> None:
        """A call that would be cut costs its upper bound, and helps nobody. Raises `TooLate`."""
        left, clock = until - asyncio.get_running_loop().time(), self._terms.clock
        if self._measured and left < LEAST_SHARE * self.typical_s:
            if clock() - self._hurried_at < TRY_ANYWAY_S:
                raise TooLate(f"an answer takes about {self.typical_s:.1f} s, and {left:.1f} s are left")
            self._hurried_at = clock()

    async def _slot(self, until: float) -> None:
        """A place among the calls in flight: waited for while calls end, and if the turn can come in time. A provider
        that hangs would fill the service with those who wait for it. Raises `Busy`."""
        now = asyncio.get_running_loop().time
        if not self._slots.locked():
            await self._slots.acquire()  # at once
            self._moved_at = now()
            return
        latest = until - self.typical_s  # who has waited needs time for the call
        if self.typical_s * (self._waiting + 1) / self._max_in_flight > latest - now():
            raise self._busy()
        self._waiting += 1
        turn = asyncio.ensure_future(self._slots.acquire())
        try:
            while not turn.done():
                patience = min(latest, self._moved_at + 2 * self.typical_s + self._terms.slot_wait_s) - now()
                if patience <= 0:
                    raise self._busy()
                await asyncio.wait([turn], timeout=patience)
        except BaseException:
            if not turn.cancel():
                self._slots.release()  # it came in the same moment
            raise
        finally:
            self._waiting -= 1

    def _no_price(self) -> str:
        model = self.provider.model
        if model in self._tariff.unpriced:
            return f"no price is known for {model}; add it to the config"
        return f"prices of {model} are known for shorter prompts only; a text counts with a token for every byte"

    def _busy(self) -> Busy:
        self._turned_away += 1
        return Busy("as many calls as allowed are in flight")

    def _intent(self, question: Question, caller: Caller, estimate: int) -> Intent:
        return Intent(
            request_id=caller.request_id,
            index=caller.index,
            at_us=int(self._terms.wall() * 1e6),
            tenant=caller.tenant,
            task=question.task,
            provider=self.provider.name,
            model=self.provider.model,
            estimate_nano=estimate,
            tokens=caller.tokens,
            limits=self._terms.budget.limits(question.task, caller.tenant),
        )

    async def _reserve(self, call: _Call) -> int:
        try:
            attempt_id = await self._books.reserve(call.intent, until=call.until)
        except TimeoutError:
            raise Skipped("the ledger took too long to reserve") from None
        if call.until - asyncio.get_running_loop().time() < self._terms.min_call_s:
            self._books.settle(attempt_id, call.intent, Outcome("unbilled", error="TimedOut"))
            raise Skipped("the ledger left no time for the call")
        return attempt_id

    async def _ask(self, call: _Call, attempt_id: int) -> tuple[Answer, int]:
        given = call.until - asyncio.get_running_loop().time()
        estimate = call.intent.estimate_nano
        pricing = self._tariff.begin()
        started = self._terms.clock()
        self._in_flight += 1
        self._calls += 1
        failure: ProviderError
        try:
            # Adapters keep the time themselves; this one holds whatever they do.
            async with asyncio.timeout_at(call.until):
                answer = await self.provider.ask(call.question, timeout=given)
        except ProviderError as error:
            failure = error
        except TimeoutError:
            failure = TimedOut("no answer in time")
        except asyncio.CancelledError:
            self.breaker.abandoned(call.admission)
            outcome = pricing.unknown("Cancelled", estimate, self._us_since(started))
            self._books.settle(attempt_id, call.intent, outcome)
            raise
        except Exception as error:  # noqa: BLE001 - an adapter's bug costs its own call, not the service
            # Without its traceback: the message may quote the text.
            log.error("provider_bug", provider=self.provider.name, error=type(error).__name__)  # noqa: TRY400
            failure = Permanent(type(error).__name__)
            failure.billed = "unknown"
        else:
            self.breaker.succeeded(call.admission)
            took = self._terms.clock() - started
            self.typical_s += (0.2 if self._measured else 1.0) * (took - self.typical_s)
            self._measured = True
            self._moved_at = asyncio.get_running_loop().time()
            outcome = pricing.answered(answer, estimate, self._us_since(started))
            await self._settled(call, attempt_id, outcome)
            return answer, outcome.cost_nano
        finally:
            self._in_flight -= 1
        if not isinstance(failure, TimedOut):
            self._moved_at = asyncio.get_running_loop().time()
        self._blame(call.admission, failure, given)
        outcome = pricing.failed(failure, call.bound, estimate, self._us_since(started))
        await self._settled(call, attempt_id, outcome)
        raise Failed(failure, outcome.cost_nano) from None

    def _blame(self, admission: Admission, failure: ProviderError, given_s: float) -> None:
        before = self.breaker.state
        self.breaker.failed(admission, failure, given_s)
        if isinstance(failure, AuthFailed):
            log.error(
                "provider_auth_failed",
                provider=self.provider.name,
                model=self.provider.model,
                what=str(failure),
                do="check the provider's key in the config or the environment, then its account",
            )
        if before != "open" and self.breaker.state == "open":
            log.warning(
                "provider_left_alone",
                provider=self.provider.name,
                error=type(failure).__name__,
                seconds=round(self.breaker.open_for_s(), 1),
            )

    async def _settled(self, call: _Call, attempt_id: int, outcome: Outcome) -> None:
        """Wait for the books, but no longer than the caller can."""
        settling = self._books.settle(attempt_id, call.intent, outcome)
        try:
            async with asyncio.timeout_at(call.deadline):
                await asyncio.shield(settling)
        except TimeoutError:
            pass

    def _us_since(self, started: float) -> int:
        return int((self._terms.clock() - started) * 1e6)
