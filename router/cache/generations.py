"""The generations of tasks, as far as this process knows them. A purge gives its task a new one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from router.cache.keys import TRUST_S


class _Known:
    __slots__ = ("changed", "confirmed", "value")

    def __init__(self, value: str, changed: float, confirmed: float) -> None:
        self.value, self.changed, self.confirmed = value, changed, confirmed


class Generations:
    """Values as under `keys.generation_key`; "" where there is none. Times are seconds of `clock`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def value(self, task: str) -> str:
        """As last heard."""
        known = self._known.get(task)
        return known.value if known else ""

    def trusted(self, task: str, now: float) -> str:
        """As confirmed within `TRUST_S`; "" if that was longer ago."""
        known = self._known.get(task)
        return known.value if known and now - known.confirmed <= TRUST_S else ""

    def heard(self, task: str, value: str, asked: float, *, confirmed: bool = False) -> None:
        """Redis said so, to a command that was sent at `asked`. Replies overtake each other: a command that was sent
        before the present value came in may have read an older one, which must not come back.

        `confirmed`: and whoever purges knows that this process is to be waited for (`router.cache.replica`)."""
        known = self._known.get(task)
        if known is None or (known.value != value and asked >= known.changed):
            known = self._known[task] = _Known(value, self._clock(), -math.inf)
        if confirmed and known.value == value:
            known.confirmed = max(known.confirmed, asked)

    def seen(self) -> dict[str, str]:
        """All, as last heard."""
        return {task: known.value for task, known in self._known.items()}
