"""Writes in the background: what fails costs nothing but what it would have kept."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

from redis.asyncio import Redis

from router.cache import keys
from router.cache.breaker import Breaker
from router.cache.generations import Generations
from router.cache.waiting import Background

#: Commands that may wait; more are dropped.
LONGEST_QUEUE = 1024
#: Commands a round trip.
BATCH = 128


class Write(NamedTuple):
    command: tuple[str | bytes | int, ...]
    task: str = ""  # of an entry,
    generation: str = ""  # and the whole value that it belongs to


class Writer:
    """Commands in order, on one connection: a burst of writes takes no lookup's place in the pool."""

    def __init__(self, redis: Redis, breaker: Breaker, generations: Generations, background: Background) -> None:
        self._redis = redis
        self._breaker = breaker
        self._generations = generations
        self._background = background
        self._queue: deque[Write] = deque()
        self._running = False

    def put(self, *command: str | bytes | int, task: str = "", generation: str = "") -> None:
        """With a task and its generation it is the SET of an entry, which a purge meanwhile undoes."""
        if self._breaker.open or len(self._queue) >= LONGEST_QUEUE:
            return
        self._queue.append(Write(command, task, generation))
        if not self._running:
            self._running = True
            self._background.start(self._run())

    async def _run(self) -> None:
        try:
            while self._queue:
                await self._write([self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))])
        finally:
            self._running = False

    async def _write(self, writes: list[Write]) -> None:
        """What belongs to a generation is written and then asked for its generation, in one round trip: who does not
        know of a purge yet takes back what it wrote after it."""
        writes = [it for it in writes if not it.task or it.generation == self._generations.value(it.task)]
        tasks = list({it.task: None for it in writes if it.task})
        asked = time.monotonic()
        try:
            pipeline = self._redis.pipeline(transaction=False)
            for it in writes:
                pipeline.execute_command(*it.command)
            if tasks:
                pipeline.mget([keys.generation_key(task) for task in tasks])
            replies = await pipeline.execute(raise_on_error=False)
            for task, value in zip(tasks, replies[-1] if tasks else (), strict=True):
                self._generations.heard(task, keys.generation_in(value), asked)
        except Exception as error:  # noqa: BLE001 - a reply of the wrong shape raises anything
            self._breaker.failed(error)
            return
        for it in writes:
            if it.task and it.generation != self._generations.value(it.task):
                self.put("UNLINK", it.command[1])
        # Scripts only release claims, which end by themselves: an ACL that forbids them is no outage.
        said = [reply for it, reply in zip(writes, replies, strict=False) if it.command[0] != "EVAL"]
        refused = [reply for reply in said if isinstance(reply, Exception)]
        if refused:  # out of memory, read-only, ...
            self._breaker.failed(refused[0])
        elif said:
            self._breaker.succeeded()
