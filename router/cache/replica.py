"""This process, among those that remember answers: it asks for its tasks' generations four times a second, and says
which ones it has seen, so that a purge knows when nobody serves what was purged."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import socket
import time

import msgspec
from redis.asyncio import Redis

from router.cache import keys
from router.cache.generations import Generations
from router.cache.memory import Memory


class Seen(msgspec.Struct, frozen=True):
    """What a process says of itself: a field of `keys.replicas_key`."""

    at: int  # unix ms by its own clock: to be shown, not to be judged by
    seen: dict[str, str] = {}  # task -> its generation's whole value
    memory: dict[str, int] = {}  # entries, bytes


class Replica:
    """`run()` until `stop()`, then `leave()`."""

    def __init__(self, redis: Redis, generations: Generations, memory: Memory) -> None:
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._redis = redis
        self._generations = generations
        self._memory = memory
        self._listed = False
        self._swept = -math.inf
        self._fields: dict[bytes, bytes] = {}  # the fields when they were last looked through
        self._over: asyncio.Future[None] | None = None

    async def run(self) -> None:
        over = self._over = asyncio.get_running_loop().create_future()
        while not over.done():
            started = time.monotonic()
            news = False
            with contextlib.suppress(Exception):  # a poll that failed confirms nothing; that is all
                news = await self.poll()
            if not news:  # else it is told at once: somebody waits for it
                await asyncio.wait({over}, timeout=max(0.0, keys.POLL_S - (time.monotonic() - started)))

    async def poll(self) -> bool:
        """One round trip; whether a generation changed. Raises what redis raises, and anything for a reply of the wrong
        shape."""
        seen = self._generations.seen()
        if not seen:
            return False  # nothing is remembered either
        tasks = list(seen)
        memory = {"entries": len(self._memory), "bytes": self._memory.bytes}
        said = msgspec.json.encode(Seen(round(time.time() * 1000), seen, memory))
        asked = time.monotonic()
        pipeline = self._redis.pipeline(transaction=False)
        # In this order: a purge between the two is heard of in the reply, one after them finds this replica.
        pipeline.hset(keys.replicas_key(), self.id, said)
        pipeline.mget([keys.generation_key(task) for task in tasks])
        if asked - self._swept >= keys.CORPSE_S:
            self._swept = asked
            pipeline.hgetall(keys.replicas_key())
            pipeline.expire(keys.replicas_key(), 60)
        self._listed = True
        registered, values, *rest = await pipeline.execute(raise_on_error=False)
        if isinstance(registered, Exception):  # a full Redis, say: no purge would wait for this process
            raise registered
        for task, value in zip(tasks, values, strict=True):
            self._generations.heard(task, keys.generation_in(value), asked, confirmed=True)
        if rest and isinstance(rest[0], dict):
            await self._bury(rest[0])
        return self._generations.seen() != seen

    async def _bury(self, fields: dict[bytes, bytes]) -> None:
        """Who lives says something new four times a second, whatever the time is by its clock."""
        corpses = fields.items() & self._fields.items()
        self._fields = fields
        if corpses:
            await self._redis.hdel(keys.replicas_key(), *(name for name, _ in corpses))

    def stop(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    async def leave(self) -> None:
        """Raises what redis raises."""
        if self._listed:
            await self._redis.hdel(keys.replicas_key(), self.id)
