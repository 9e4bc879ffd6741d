"""The ledger, as paid calls use it: what was begun here ends, even if the caller has left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import structlog

from cost.types import Intent, LedgerError, Outcome

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: Pauses (seconds) before an outcome that could not be written is written again. Meanwhile its upper bound counts, and
#: books that can't be written allow no further call, so there are never many.
SETTLE_AGAIN_S = (1.0, 5.0, 20.0)


class Ledger(Protocol):
    """The part of the ledger that paid calls need (`cost.ledger.Ledger`)."""

    async def reserve(self, intent: Intent) -> int: ...
    async def settle(self, attempt_id: int, outcome: Outcome) -> None: ...


class Books:
    """`on_attempt(provider, model, outcome)` is called once an attempt has ended. Times are the event loop's."""

    def __init__(self, ledger: Ledger, on_attempt: Callable[[str, str, Outcome], None]) -> None:
        self._ledger = ledger
        self._on_attempt = on_attempt
        self._work: set[asyncio.Task[Any]] = set()
        self._closing = asyncio.Event()

    async def close(self) -> None:
        """Wait until everything is written, or could not be for the last time."""
        self._closing.set()
        while self._work:
            await asyncio.gather(*self._work, return_exceptions=True)

    async def reserve(self, intent: Intent, *, until: float) -> int:
        """The attempt's id. Raises `LedgerError`, and `TimeoutError` at `until`: then nothing stays reserved."""
        reserving = self._keep(self._ledger.reserve(intent))
        try:
            async with asyncio.timeout_at(until):
                return await asyncio.shield(reserving)
        except (TimeoutError, asyncio.CancelledError):
            # The reservation may still come about; nothing was sent, so it is given back.
            self._keep(self._give_back(reserving))
            raise

    def settle(self, attempt_id: int, intent: Intent, outcome: Outcome) -> asyncio.Task[None]:
        """How the attempt ended. The task may be waited for, and ends all the same."""
        self._on_attempt(intent.provider, outcome.model or intent.model, outcome)
        return self._keep(self._settle(attempt_id, outcome))

    async def _give_back(self, reserving: asyncio.Task[int]) -> None:
        attempt_id = await reserving
        await self._settle(attempt_id, Outcome("unbilled", error="Cancelled"))

    async def _settle(self, attempt_id: int, outcome: Outcome) -> None:
        try:
            await self._ledger.settle(attempt_id, outcome)
        except LedgerError:
            self._keep(self._settle_later(attempt_id, outcome))

    async def _settle_later(self, attempt_id: int, outcome: Outcome) -> None:
        for pause in SETTLE_AGAIN_S:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._closing.wait()
            try:
                await self._ledger.settle(attempt_id, outcome)
                return
            except LedgerError as error:
                if pause == SETTLE_AGAIN_S[-1] or self._closing.is_set():
                    # The reservation stays and counts with its upper bound.
                    log.error("attempt_not_settled", attempt=attempt_id, error=type(error).__name__)  # noqa: TRY400
                    return

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run it to its end; asyncio itself keeps only weak references to tasks."""
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._drop)
        return task

    def _drop(self, task: asyncio.Task[Any]) -> None:
        self._work.discard(task)
        if not task.cancelled():
            task.exception()  # seen by whoever waited; if he left, there is nobody to tell
