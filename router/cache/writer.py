"""Writes in the background: what fails costs nothing but what it would have kept."""

from __future__ import annotations

from collections import deque

from redis.asyncio import Redis

from router.cache.breaker import Breaker
from router.cache.waiting import Background

#: Commands that may wait; more are dropped.
LONGEST_QUEUE = 1024
#: Commands a round trip.
BATCH = 128


class Writer:
    """Commands in order, on one connection: a burst of writes takes no lookup's place in the pool."""

    def __init__(self, redis: Redis, breaker: Breaker, background: Background) -> None:
        self._redis = redis
        self._breaker = breaker
        self._background = background
        self._queue: deque[tuple[str | bytes | int, ...]] = deque()
        self._running = False

    def put(self, *command: str | bytes | int) -> None:
        if self._breaker.open or len(self._queue) >= LONGEST_QUEUE:
            return
        self._queue.append(command)
        if not self._running:
            self._running = True
            self._background.start(self._run())

    async def _run(self) -> None:
        try:
            while self._queue:
                await self._write([self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))])
        finally:
            self._running = False

    async def _write(self, commands: list[tuple[str | bytes | int, ...]]) -> None:
        try:
            pipeline = self._redis.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            replies = await pipeline.execute(raise_on_error=False)
        except Exception as error:  # noqa: BLE001 - a reply of the wrong shape raises anything
            self._breaker.failed(error)
            return
        refused = [reply for reply in replies if isinstance(reply, Exception)]
        if refused:  # out of memory, read-only, ...
            self._breaker.failed(refused[0])
        else:
            self._breaker.succeeded()
