"""What a call costs on a machine that is paid by the hour, as a model on one's own GPU is: time, not tokens.

At every moment the calls then in flight share the machine's price evenly. So all calls together cost the price of the
time in which at least one was in flight, however many there were; idle time is in no call. Who shares a moment need not
be known: `_shared` grows by 1/n seconds a second while n are in flight, and a call's share is what it grew by (the
virtual time of fair queueing). A call that failed took its time all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cost.types import NANO_PER_USD, Outcome, Usage
from providers.types import Answer, ProviderError


class HourlyTariff:
    """Prices the calls of one provider, as `providers.tariffs.TokenTariff` does by tokens. `clock` in seconds."""

    unpriced: Sequence[str] = ()

    def __init__(self, nano_per_hour: int, clock: Callable[[], float]) -> None:
        self.kind = f"${nano_per_hour / NANO_PER_USD:.12g}/h"
        self._rate = nano_per_hour / 3600  # nano-USD a second
        self._clock = clock
        self._in_flight = 0
        self._shared = 0.0  # seconds of the machine that a call in flight all along has to pay
        self._at = 0.0  # when that was so

    def estimate(self, bound: Usage, seconds: float) -> int:  # noqa: ARG002
        """nano-USD that a call can cost at most: if it is alone, and gets no answer in the `seconds` that it has."""
        return math.ceil(self._rate * max(0.0, seconds))

    def begin(self) -> Share:
        """A call is in flight from now on, until one of the methods of what this returns is called."""
        self._pass_time()
        self._in_flight += 1
        return Share(self, self._shared)

    def end(self, since: float, estimate: int) -> int:
        """nano-USD of a call that began when `_shared` was `since`. What a late timer added is nobody's: never more
        than was set aside."""
        self._pass_time()
        self._in_flight -= 1
        cost = round(self._rate * (self._shared - since))
        if not self._in_flight:
            self._shared = 0.0  # a float keeps its precision only near zero
        return min(cost, estimate)

    def _pass_time(self) -> None:
        now = self._clock()
        if self._in_flight:
            self._shared += (now - self._at) / self._in_flight
        self._at = now


class Share:
    """One call. Its time is known however it ends, so it is always `settled`."""

    def __init__(self, tariff: HourlyTariff, since: float) -> None:
        self._tariff = tariff
        self._since = since

    def answered(self, answer: Answer, estimate: int, latency_us: int) -> Outcome:
        return self._settled(estimate, latency_us, answer.model, answer.usage, None, answer.reply_id)

    def failed(self, failure: ProviderError, bound: Usage, estimate: int, latency_us: int) -> Outcome:  # noqa: ARG002
        name = type(failure).__name__
        return self._settled(estimate, latency_us, failure.model, failure.usage, name, failure.reply_id)

    def unknown(self, error: str, estimate: int, latency_us: int) -> Outcome:
        return self._settled(estimate, latency_us, "", None, error, "")

    def _settled(
        self, estimate: int, latency_us: int, model: str, usage: Usage | None, error: str | None, reply_id: str
    ) -> Outcome:
        return Outcome(
            "settled",
            model=model,
            usage=usage,
            cost_nano=self._tariff.end(self._since, estimate),
            price_version=self._tariff.kind,
            error=error,
            latency_us=latency_us,
            reply_id=reply_id,
        )
