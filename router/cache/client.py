"""The cache on Redis. It may be down, slow, full or lying: then a lookup is a miss within `lookup_ms`, a write is lost,
and nobody notices but the metrics. Nothing here raises to the pipeline.

Lookups of one turn of the event loop become one MGET (measured: 12 times a GET each). redis-py's defaults are replaced
one by one: it would retry ten times over seconds, its pool raises at once when it is empty, and its timeouts are none.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from router.cache import keys
from router.cache.embedded import EmbeddedRedisError
from router.cache.entry import Corrupt, Entry, decode, encode
from router.cache.types import Slot

log = structlog.get_logger("crossover.cache")

#: The breaker opens after this many failed lookups in a row, if they span this long: one stall of the event loop times
#: out everything in flight together and is no outage.
FAILURES_TO_OPEN = 5
SECONDS_TO_OPEN = 0.25
PROBE_SECONDS = 1.0
WRITES_IN_FLIGHT = 1024


def connect(url: str) -> Redis:
    """A client whose every wait is bounded: 20 ms for a connection, 50 ms for an answer, no retries."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=8,
        timeout=0.020,
        socket_timeout=0.050,
        socket_connect_timeout=0.050,
        retry=Retry(NoBackoff(), 0),
        protocol=3,
        client_name="crossover",
    )
    return Redis.from_pool(pool)  # owns it: closing the client closes the connections


class RedisCache:
    """Implements `router.cache.types.Cache`. `on_lookup` is told "error" and "corrupt" (a damaged entry).
    `revive` is awaited before each probe of a Redis that did not answer."""

    def __init__(
        self,
        redis: Redis,
        *,
        secret: bytes,
        ttl_s: int,
        lookup_s: float,
        on_lookup: Callable[[str], None] = lambda _result: None,
        revive: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._redis = redis
        self._secret = secret
        self._ttl_s = ttl_s
        self._lookup_s = lookup_s
        self._on_lookup = on_lookup
        self._generations: dict[str, str] = {}
        self._waiting: list[tuple[Sequence[Slot], asyncio.Future[list[Entry | None]]]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writes = 0
        self.breaker = Breaker(self._redis.ping, self._spawn, lookup_s, revive)

    async def lookup(self, slots: Sequence[Slot]) -> list[Entry | None]:
        if self.breaker.open:
            self._on_lookup("error")
            return [None] * len(slots)
        future: asyncio.Future[list[Entry | None]] = asyncio.get_running_loop().create_future()
        self._waiting.append((slots, future))
        if len(self._waiting) == 1:  # what else asks in this turn of the loop rides along
            asyncio.get_running_loop().call_soon(self._flush)
        return await future

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._spawn(self._read_together(waiting))

    async def _read_together(self, waiting: list[tuple[Sequence[Slot], asyncio.Future[list[Entry | None]]]]) -> None:
        slots = [slot for some, _ in waiting for slot in some]
        try:
            found = await within(self._read(slots), self._lookup_s)
        except Exception as error:  # noqa: BLE001 - a reply of the wrong shape raises anything; somebody waits for this
            self.breaker.failed(error)
            for _ in waiting:
                self._on_lookup("error")
            found = [None] * len(slots)
        else:
            self.breaker.succeeded()
        start = 0
        for some, future in waiting:
            if not future.done():  # its caller may have left
                future.set_result(found[start : start + len(some)])
            start += len(some)

    async def _read(self, slots: Sequence[Slot]) -> list[Entry | None]:
        tasks = list({slot.task: None for slot in slots})
        for task in tasks:
            if task not in self._generations:
                self._generations[task] = await self._generation(task)
        while True:
            names = [self._key(slot) for slot in slots]
            values: list[Any] = await self._redis.mget([keys.generation_key(task) for task in tasks] + names)
            stale = False
            for task, current in zip(tasks, values, strict=False):
                if _text(current) != self._generations[task]:
                    self._generations[task] = _text(current) or await self._generation(task)
                    stale = True
            if not stale:  # else a purge, or a flushed Redis: what was read belongs to the past
                break
        entries: list[Entry | None] = []
        for slot, name, value in zip(slots, names, values[len(tasks) :], strict=True):
            entries.append(self._decode(slot, name, value))
        return entries

    def _decode(self, slot: Slot, name: str, value: bytes | None) -> Entry | None:
        if value is None:
            return None
        try:
            entry = decode(value, name, slot.kind, slot.labels, self._secret)
        except Corrupt:
            self._on_lookup("corrupt")
            self._spawn(self._quietly(self._redis.unlink(name)))
            return None
        return entry

    async def _generation(self, task: str) -> str:
        """The task's generation, made if there is none; of two processes that make one, the first wins."""
        name = keys.generation_key(task)
        await self._redis.set(name, keys.new_generation(), nx=True)
        value = await self._redis.get(name)
        return _text(value) if value else keys.new_generation()

    def _key(self, slot: Slot) -> str:
        return keys.entry_key(slot.tenant, slot.task, self._generations[slot.task], slot.text, slot.identity)

    def store(self, slot: Slot, entry: Entry) -> None:
        if self.breaker.open or slot.task not in self._generations or self._writes >= WRITES_IN_FLIGHT:
            return
        name = self._key(slot)
        self._writes += 1
        self._spawn(self._write(name, encode(msgspec.structs.replace(entry, key=name), self._secret)))

    async def _write(self, name: str, value: bytes) -> None:
        try:
            await self._quietly(self._redis.set(name, value, ex=self._ttl_s))
        finally:
            self._writes -= 1

    async def _quietly(self, command: Any) -> None:
        """Run a command whose failure costs nothing but the entry (out of memory, read-only, loading...)."""
        try:
            await command
        except (RedisError, OSError, TimeoutError) as error:
            log.debug("cache_write_failed", error=type(error).__name__)

    async def check(self) -> None:
        """Ask once, at start: a Redis that is not there is not asked by the first requests."""
        try:
            await within(self._redis.ping(), 1.0)
        except (RedisError, OSError, TimeoutError) as error:
            self.breaker.trip(error)

    def publish(self, values: Mapping[str, bytes]) -> None:
        """Leave notes for `crossover cache` (router.cache.inspect): what the identities of today's requests are."""
        for name, value in values.items():
            self._spawn(self._quietly(self._redis.set(name, value)))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop keeps only a weak reference
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Let pending writes finish, for half a second."""
        self.breaker.close()
        if pending := [task for task in self._tasks if not task.done()]:
            await asyncio.wait(pending, timeout=0.5)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        with contextlib.suppress(RedisError, OSError):
            await self._redis.aclose()


def _text(value: Any) -> str:
    """Replies are bytes; whatever else stands there is no generation of ours."""
    return value.decode("ascii", "replace") if isinstance(value, bytes) else ""


class Breaker:
    """Stops asking a Redis that does not answer; a PING in the background, once a second, finds out when it does."""

    def __init__(
        self,
        probe: Callable[[], Any],
        spawn: Callable[[Any], None],
        seconds: float,
        revive: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self.open = False
        self._seconds = seconds
        self._revive = revive
        self._probe = probe
        self._spawn = spawn
        self._failures = 0
        self._since = 0.0
        self._closed = asyncio.Event()

    def failed(self, error: BaseException) -> None:
        now = time.monotonic()
        if self._failures == 0:
            self._since = now
        self._failures += 1
        enough = self._failures >= FAILURES_TO_OPEN and now - self._since >= SECONDS_TO_OPEN
        if enough:
            self.trip(error)

    def succeeded(self) -> None:
        self._failures = 0

    def trip(self, error: BaseException) -> None:
        """Open now; the log says so once, here and when it closes again."""
        if not self.open and not self._closed.is_set():
            self.open = True
            log.warning("cache_unavailable", error=type(error).__name__, failures=self._failures)
            self._spawn(self._recover())

    def close(self) -> None:
        self._closed.set()

    async def _recover(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), PROBE_SECONDS * random.uniform(0.8, 1.2))
            try:
                if self._revive is not None:
                    await self._revive()
                await within(self._probe(), self._seconds)
            except (RedisError, OSError, TimeoutError, EmbeddedRedisError):
                continue
            self._failures = 0
            self.open = False
            log.info("cache_available")
            return


async def within(awaitable: Any, seconds: float) -> Any:
    """As `asyncio.timeout`, but an answer that is already here is taken: when the loop itself was late, timers fire
    before the replies that came in meanwhile have been read."""
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait({task}, timeout=seconds)
        for _ in range(3):
            if task.done():
                break
            await asyncio.sleep(0)
    finally:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
    if task.cancelled():
        raise TimeoutError
    return task.result()
