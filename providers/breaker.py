"""When to leave a provider alone: after failures in a row, after a refused key, while it asks for patience."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NewType

import msgspec

from providers.types import AuthFailed, BadRequest, ProviderError, Refused, SchemaRefused, TimedOut, Transient

State = Literal["closed", "open", "half_open"]
#: Of one call; to be handed back with its end.
Admission = NewType("Admission", int)


class BreakerSettings(msgspec.Struct, frozen=True):
    failures: int = 5  # in a row, before it opens
    open_s: float = 10.0
    auth_open_s: float = 60.0  # a wrong key does not mend itself
    retry_after_max_s: float = 60.0  # providers have been seen to ask for hours
    # One caller in a hurry must not close a healthy provider to the others: a time-out counts as the provider's
    # failure only if it had at least this long.
    patience_s: float = 2.0


class Breaker:
    """Closed: calls pass. Open: none, for a while. Half open: one call probes, and its end decides. A rest that the
    provider asked for, after fewer failures than open it, needs no probe.

    Every admission needs exactly one `succeeded`, `failed` or `abandoned`. A call may end long after it was admitted:
    it tells about the period (a number) it was admitted in, and neither closes nor opens the breaker in a later one.
    """

    def __init__(self, settings: BreakerSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._open_until: float | None = None
        self._period = 1  # a new one with every opening and every probe
        self._probe: int | None = None  # the period of the probe under way
        self._must_probe = True  # once the wait is over
        self.failures = 0
        self.last_error: str | None = None

    @property
    def state(self) -> State:
        if self.open_for_s() > 0:
            return "open"
        return "half_open" if self._open_until is not None and self._must_probe else "closed"

    def open_for_s(self) -> float:
        """Seconds until the next call may pass."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - self._clock())

    def admit(self) -> Admission | None:
        """None: make no call. Else hand it back with the call's end."""
        if self.state == "closed":
            return Admission(self._period)
        if self.state == "open" or self._probe is not None:
            return None
        self._period += 1
        self._probe = self._period
        return Admission(self._period)

    def succeeded(self, admission: Admission) -> None:
        self.abandoned(admission)
        if admission == self._period:
            self._open_until = None
            self.failures = 0

    def abandoned(self, admission: Admission) -> None:
        """The call ended before the provider could show anything."""
        if admission == self._probe:
            self._probe = None

    def failed(self, admission: Admission, error: ProviderError, given_s: float) -> None:
        """`given_s`: how long the provider was given to answer."""
        probed = admission == self._probe
        self.abandoned(admission)
        self.last_error = type(error).__name__
        s = self._settings
        if _says_nothing(error) or (isinstance(error, TimedOut) and given_s < s.patience_s):
            return
        self.failures += admission == self._period
        # A refused key and a plea for patience hold whenever the call was admitted.
        if isinstance(error, AuthFailed):
            self._open(s.auth_open_s)
        elif isinstance(error, Transient) and error.retry_after:
            # All who wait were told to come back: after the rest that it asked for, a healthy provider takes them all.
            self._open(min(error.retry_after, s.retry_after_max_s), probe=probed or self.failures >= s.failures)
        elif admission == self._period and (probed or self.failures >= s.failures):
            self._open(s.open_s)

    def _open(self, seconds: float, *, probe: bool = True) -> None:
        self._period += 1
        # What the wait ends in, its longest reason says. Calls that were already under way may fail later and for
        # milder reasons; they don't shorten it.
        until = self._clock() + seconds
        if self.state != "open" or until > (self._open_until or 0.0):
            self._open_until, self._must_probe = until, probe


def _says_nothing(error: ProviderError) -> bool:
    """Of the provider's health: it is asked more simply next time; or the text was one that the model would not answer,
    too long, or of a shape that can't be asked at all. Else one caller's texts would close it to the others. Servers
    refuse texts with 400 and 422 under many names, at no cost."""
    return isinstance(error, SchemaRefused | Refused) or (
        isinstance(error, BadRequest) and error.status in (0, 400, 413, 422)
    )
