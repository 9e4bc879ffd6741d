"""When to stop asking, and when to ask again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable

import structlog

from router.cache.waiting import Background

log = structlog.get_logger("crossover.cache")

#: It opens after this many failures in a row.
FAILURES_TO_OPEN = 5
#: Seconds between two probes while it is open, give or take a fifth.
PROBE_S = 0.5
#: What opens again so soon after it closed has never been well...
RELAPSE_S = 3.0
#: ...and is probed half as often each time, down to this.
LONGEST_PROBE_S = 8.0


class Breaker:
    """Stops asking what fails; a probe in the background finds out when it works again.

    It opens after `FAILURES_TO_OPEN` failures in a row, if they span `seconds`: one stall of the event loop times out
    everything in flight together, and is no outage. `probe` must do what failed, and raise if it fails again: a server
    whose PING is quick and whose MGETs are late would open and close it for ever. The log has a line when it opens and
    one when it closes; what comes and goes gets one line that says so, and then none until it stays.
    """

    def __init__(
        self, name: str, probe: Callable[[], Awaitable[object]], background: Background, *, seconds: float = 0.25
    ) -> None:
        self.open = False
        self._name = name
        self._probe = probe
        self._background = background
        self._seconds = seconds
        self._failures = 0
        self._since = 0.0
        self._closed_at = -RELAPSE_S  # when it closed last
        self._relapses = 0
        self._end = asyncio.Event()

    def failed(self, error: BaseException) -> None:
        now = time.monotonic()
        if self._failures == 0:
            self._since = now
        self._failures += 1
        if self._failures >= FAILURES_TO_OPEN and now - self._since >= self._seconds:
            self.trip(error)

    def succeeded(self) -> None:
        self._failures = 0

    def trip(self, error: BaseException) -> None:
        """Open now."""
        if self.open or self._end.is_set():
            return
        self.open = True
        self._relapses = self._relapses + 1 if time.monotonic() - self._closed_at < RELAPSE_S else 0
        if self._relapses <= 1:
            note = {"comes_and_goes": True} if self._relapses else {}
            log.warning(f"{self._name}_unavailable", error=type(error).__name__, failures=self._failures, **note)
        self._background.start(self._recover())

    def close(self) -> None:
        """No more probes."""
        self._end.set()

    async def _recover(self) -> None:
        pause = min(PROBE_S * 2 ** max(0, self._relapses - 1), LONGEST_PROBE_S)
        while not await self._ended_within(pause * random.uniform(0.8, 1.2)):
            try:
                await self._probe()
            except Exception:  # noqa: BLE001, S112 - a reply of the wrong shape raises anything
                continue
            self._failures = 0
            self.open = False
            closed_at = self._closed_at = time.monotonic()
            if self._relapses and await self._ended_within(RELAPSE_S):
                return
            if not self.open and self._closed_at == closed_at:
                log.info(f"{self._name}_available")
            return

    async def _ended_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._end.wait(), seconds)
        return self._end.is_set()
