"""When a failed call is made again at the same provider: once, seldom, and only if it can end in time.

The budget is Envoy's (`retry_budget`: 20 % of the active requests, 3 at least; circuit_breaker.proto): retries help
where few calls fail, and are what keeps a provider down where all do. Jitter is full ("Exponential Backoff And Jitter",
AWS Architecture Blog). The SDKs retry nothing, so that every wire call is seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from providers.types import ProviderError, RateLimited, SchemaRefused, Unavailable


class RetrySettings(msgspec.Struct, frozen=True):
    share: float = 0.2  # of the questions at this provider now
    floor: int = 3
    backoff_s: float = 0.1  # full jitter: between nothing and this, on top of what the provider asked for


class Retries:
    """One provider's. `draw` gives a number in [0, 1)."""

    def __init__(self, settings: RetrySettings, draw: Callable[[], float]) -> None:
        self._settings = settings
        self._draw = draw
        self._questions = 0
        self._under_way = 0
        self.made = 0
        self.overflow = 0  # retries that the budget did not allow

    @contextmanager
    def question(self) -> Iterator[Again]:
        """While one question is at the provider, or waits for its retry."""
        again = Again()
        self._questions += 1
        try:
            yield again
        finally:
            self._questions -= 1
            self._under_way -= again.retried

    def wait_s(self, again: Again, failure: ProviderError, *, left_s: float, open_for_s: float) -> float | None:
        """Seconds until the provider is asked again; None: go on to the next one.

        `left_s`: how much of the question's time here may be waited. `open_for_s`: how long the breaker lets no call
        through. A time-out has used its time, and a refused key, request or answer would be so again.
        """
        again.calls += 1
        if isinstance(failure, SchemaRefused):
            return 0.0 if again.calls < 3 else None
        if again.calls > 1 or not isinstance(failure, RateLimited | Unavailable):
            return None
        wait = (failure.retry_after or 0.0) + self._draw() * self._settings.backoff_s
        if wait > left_s or wait < open_for_s:
            return None
        if self._under_way + 1 > max(self._settings.floor, self._settings.share * self._questions):
            self.overflow += 1
            return None
        again.retried = True
        self._under_way += 1
        self.made += 1
        return wait


class Again(msgspec.Struct):
    """One question at one provider."""

    calls: int = 0  # that failed
    retried: bool = False
