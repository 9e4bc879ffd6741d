"""Identical inputs in flight share one computation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Iterable
from typing import Any

from router.outcome import Outcome


class Flight:
    """A computation that several callers may wait for. Who leaves stops neither what others wait for nor the settling
    of a paid call. It lands with an outcome, with an error, or with neither: given up."""

    __slots__ = ("error", "escalation", "key", "landed", "local", "outcome", "waiting")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.landed = False
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self.local: Outcome | None = None  # once the local model has answered
        self.escalation: asyncio.Task[Outcome] | None = None
        self.waiting: list[Callable[[], None]] = []


class Flights:
    """By key: what makes two inputs identical."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, Flight] = {}
        self.closed = False

    def __contains__(self, key: Hashable) -> bool:
        return key in self._by_key

    def __getitem__(self, key: Hashable) -> Flight:
        return self._by_key[key]

    def launch(self, key: Hashable) -> Flight:
        flight = self._by_key[key] = Flight(key)
        return flight

    def land(self, flight: Flight, outcome: Outcome | None, error: BaseException | None = None) -> None:
        """Tell all who wait."""
        if flight.landed:  # given up
            return
        del self._by_key[flight.key]
        flight.landed, flight.outcome, flight.error = True, outcome, error
        for tell in flight.waiting:
            tell()

    def follow(self, flight: Flight, escalating: Coroutine[Any, Any, Outcome]) -> None:
        """What this returns, or raises, is the answer. Not begun for a flight that was given up: it would be paid."""
        if flight.landed:
            escalating.close()
            return
        escalation = flight.escalation = asyncio.create_task(escalating)

        def landed(task: asyncio.Task[Outcome]) -> None:
            if task.cancelled():
                self.land(flight, None)
            elif error := task.exception():
                self.land(flight, None, error)
            else:
                self.land(flight, task.result())

        escalation.add_done_callback(landed)

    @staticmethod
    async def wait(flights: Iterable[Flight], until: float) -> None:
        """For those that have not landed, until `until` (the loop's time)."""
        open_now = [flight for flight in flights if not flight.landed]
        if not open_now:
            return
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        left = len(open_now)

        def one_landed() -> None:
            nonlocal left
            left -= 1
            if not left:
                stop()

        def stop() -> None:
            if not over.done():
                over.set_result(None)

        for flight in open_now:
            flight.waiting.append(one_landed)
        timer = loop.call_at(until, stop)
        try:
            await over
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Give up what is still being computed; paid calls are settled as uncertain."""
        self.closed = True
        flights = list(self._by_key.values())
        escalations = [flight.escalation for flight in flights if flight.escalation is not None]
        for escalation in escalations:
            escalation.cancel()
        await asyncio.gather(*escalations, return_exceptions=True)
        for flight in flights:
            self.land(flight, None)
