"""The cache on Redis, with what this process remembers in front of it. Redis may be down, slow, full or lying: then a
lookup is a miss within `lookup_ms`, a write is lost, a paid call is not shared, and nobody notices but the metrics.
Nothing here raises to the pipeline.

Lookups of one turn of the event loop become one MGET (measured: 12 times a GET each). redis-py's defaults are replaced
one by one: it would retry ten times over seconds, its pool raises at once when it is empty, and its timeouts are none.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from router.cache import keys
from router.cache.breaker import Breaker
from router.cache.entry import Corrupt, Entry, decode, encode
from router.cache.generations import Generations
from router.cache.herd import ANSWER_S, Herd
from router.cache.memory import Memory
from router.cache.replica import Replica
from router.cache.types import Slot
from router.cache.waiting import Background, Together, within
from router.cache.writer import Writer

#: Seconds to connect. No lookup waits for it: it goes on while they are misses.
CONNECT_S = 0.25
#: Writes that fail this long, in seconds, are shown: Redis is full or read-only. Lookups go on.
WRITES_FAIL_S = 2.0
#: Seconds for what no request waits for: writes, claims, polls. A busy machine is no outage.
PATIENCE_S = 1.0
#: A lookup reads again, with the new key, when a purge came between; so often.
READS = 3


def connect(url: str, answer_s: float) -> Redis:
    """A client whose every wait is bounded: 20 ms for a connection, `answer_s` for an answer, no retries."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=8,
        timeout=0.020,
        socket_timeout=answer_s,
        socket_connect_timeout=CONNECT_S,
        retry=Retry(NoBackoff(), 0),
        protocol=3,
        client_name="crossover",
    )
    return Redis.from_pool(pool)  # owns it: closing the client closes the connections


class RedisCache:
    """Implements `router.cache.types.Cache`. `on_lookup` is told "error" and "corrupt" (a damaged entry).
    `revive` is awaited before each probe of a Redis that did not answer. `memory_bytes` 0: nothing is remembered here.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: bytes,
        ttl_s: int,
        lookup_s: float,
        memory_bytes: int = 0,
        on_lookup: Callable[[str], None] = lambda _result: None,
        revive: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._redis = connect(url, max(0.050, lookup_s))
        patient = self._patient = connect(url, PATIENCE_S)  # for what no request waits for
        self._secret = secret
        self._ttl_s = ttl_s
        self._lookup_s = lookup_s
        self._on_lookup = on_lookup
        self._revive = revive
        self._background = Background()
        self._generations = Generations()
        self._memory = Memory(memory_bytes) if memory_bytes else None
        self._replica = Replica(patient, self._generations, self._memory) if self._memory is not None else None
        self._reading = Together(partial(self._answer, self._redis, lookup_s, True), self._background)
        self._looking = Together(partial(self._answer, patient, ANSWER_S, False), self._background)
        self.breaker = Breaker("cache", self._probe, self._background)
        self.writes = Breaker("cache_writes", self._probe_write, self._background, seconds=WRITES_FAIL_S)
        self._writer = Writer(patient, self.writes, self._generations, self._background)
        self._herd = Herd(patient, self._writer, self.breaker, self.writes, self._background)

    # read ------------------------------------------------------------------------------------------------------------

    def recall(self, slots: Sequence[Slot]) -> list[Entry | None]:
        memory = self._memory
        if memory is None:
            return [None] * len(slots)
        now = time.monotonic()
        trusted = self._generations.trusted
        return [memory.get(slot, value, now) if (value := trusted(slot.task, now)) else None for slot in slots]

    async def lookup(self, slots: Sequence[Slot]) -> list[Entry | None]:
        if self.breaker.open:
            self._on_lookup("error")
            return [None] * len(slots)
        return await self._reading.ask(slots)

    async def _answer(
        self, redis: Redis, seconds: float, counts: bool, asked: Sequence[Sequence[Slot]]
    ) -> list[list[Entry | None]]:
        """One MGET for all of them. `counts`: these are lookups. What the herd looks for has more time: that it arrives
        says nothing about how well lookups do."""
        slots = [slot for some in asked for slot in some]
        try:
            found = await within(self._read(redis, slots), seconds, late=self._background)
        except Exception as error:  # noqa: BLE001 - a reply of the wrong shape raises anything; somebody waits for this
            self.breaker.failed(error)
            for _ in asked if counts else ():
                self._on_lookup("error")
            found = [None] * len(slots)
        else:
            if counts:
                self.breaker.succeeded()
        rest = iter(found)
        return [[next(rest) for _ in some] for some in asked]

    async def _read(self, redis: Redis, slots: Sequence[Slot]) -> list[Entry | None]:
        tasks = list({slot.task: None for slot in slots})
        for _ in range(READS):
            tokens = {task: keys.token_of(self._generations.value(task)) for task in tasks}
            names = [self._name(slot, tokens[slot.task]) for slot in slots]
            asked = time.monotonic()
            replies: list[Any] = await redis.mget([keys.generation_key(task) for task in tasks] + names)
            values = {task: keys.generation_in(reply) for task, reply in zip(tasks, replies, strict=False)}
            for task, value in values.items():
                self._generations.heard(task, value, asked)
            missing = [task for task, value in values.items() if not value]
            if not missing and all(tokens[task] == keys.token_of(value) for task, value in values.items()):
                found = zip(slots, names, replies[len(tasks) :], strict=True)
                return [self._found(slot, name, reply, values[slot.task]) for slot, name, reply in found]
            # The first lookup of a task, a purge, or a flushed Redis.
            if missing and not all([await self._make_generation(task) for task in missing]):
                break
        return [None] * len(slots)

    def _name(self, slot: Slot, token: str) -> str:
        return keys.entry_key(slot.tenant, slot.task, token, slot.text, slot.identity)

    def _found(self, slot: Slot, name: str, reply: bytes | None, generation: str) -> Entry | None:
        if reply is None:
            return None
        try:
            entry = decode(reply, name, slot.kind, slot.labels, self._secret)
        except Corrupt:
            self._on_lookup("corrupt")
            self._writer.put("UNLINK", name)
            return None
        self._remember(slot, generation, entry)
        return entry

    async def _make_generation(self, task: str) -> bool:
        """For a task that has none; of two processes that make one, the first wins. False: Redis takes no writes."""
        name, new = keys.generation_key(task), keys.new_generation()
        asked = time.monotonic()
        try:
            await self._redis.set(name, new, nx=True)
            (reply,) = await self._redis.mget([name])
            value = keys.generation_in(reply)
            if not value:  # something else stands there
                value = new
                await self._redis.set(name, new)
        except ResponseError as error:
            self.writes.failed(error)
            return False
        self._generations.heard(task, value, asked)
        return True

    # write -----------------------------------------------------------------------------------------------------------

    def generation(self, task: str) -> str:
        return self._generations.value(task)

    def store(self, slot: Slot, entry: Entry, *, since: str = "") -> None:
        generation = self._generations.value(slot.task)
        if not generation:
            if not self.breaker.open:  # nobody has looked anything up for this task yet
                self._background.start(self._store_later(slot, entry, since))
            return
        if since not in ("", generation):
            return
        name = self._name(slot, keys.token_of(generation))
        entry = msgspec.structs.replace(entry, key=name)
        self._remember(slot, generation, entry)
        if not self.breaker.open:
            milliseconds = max(1, round(self._lives(slot) * 1000))
            data = encode(entry, self._secret)
            self._writer.put("SET", name, data, "PX", milliseconds, task=slot.task, generation=generation)

    async def _store_later(self, slot: Slot, entry: Entry, since: str) -> None:
        await self.lookup([slot])
        if self._generations.value(slot.task):
            self.store(slot, entry, since=since)

    def _remember(self, slot: Slot, generation: str, entry: Entry) -> None:
        if self._memory is not None:
            left = min(entry.at + self._lives(slot) - time.time(), self._ttl_s)
            self._memory.put(slot, generation, entry, left)

    def _lives(self, slot: Slot) -> float:
        """Seconds from 0.9 of the time to live up to all of it, so that what was written together does not expire
        together. By the text's digest: every process comes to the same."""
        return self._ttl_s * (1.0 - 0.1 * int.from_bytes(slot.text[:4], "little") / 2**32)

    def publish(self, values: Mapping[str, bytes]) -> None:
        """Leave notes for `crossover cache` (router.cache.inspect): what the identities of today's requests are."""
        for name, value in values.items():
            self._writer.put("SET", name, value)

    # buy once --------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def sole(self, slot: Slot, *, until: float) -> AsyncIterator[Entry | None]:
        found: Entry | None = None

        async def look() -> bool:
            nonlocal found
            (found,) = await self._looking.ask([slot])
            return found is not None

        name = keys.claim_key(self._name(slot, "any"))  # who does not know the generation yet takes part
        token = await self._herd.lead(name, look, until=until)
        try:
            yield found
        finally:
            if token is not None:
                self._herd.release(name, token)

    # health ----------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Ask once: a Redis that is not there is not asked by the first requests. Then keep what is remembered true."""
        if self._replica is not None:
            self._background.start(self._replica.run())
        try:
            await within(self._redis.ping(), PATIENCE_S)
        except Exception as error:  # noqa: BLE001 - what is no Redis makes redis-py raise anything while it logs in
            self.breaker.trip(error)

    async def _probe(self) -> None:
        if self._revive is not None:
            await self._revive()
        await self._redis.ping()  # connects
        await within(
            self._redis.mget([keys.generation_key(task) for task in self._generations.seen()] + [keys.probe_key()]),
            self._lookup_s,
        )

    async def _probe_write(self) -> None:
        await self._patient.set(keys.probe_key(), b"", px=1)

    def degradations(self) -> list[str]:
        """What does not work: "cache", or "cache_writes" alone."""
        return ["cache"] if self.breaker.open else ["cache_writes"] if self.writes.open else []

    @property
    def memory_bytes(self) -> int:
        """What is remembered here."""
        return self._memory.bytes if self._memory is not None else 0

    async def close(self) -> None:
        """Let pending writes finish, for half a second."""
        self.breaker.close()
        self.writes.close()
        if self._replica is not None:
            self._replica.stop()
        await self._background.close(0.5)
        with contextlib.suppress(Exception):  # as in `open`
            if self._replica is not None:
                await within(self._replica.leave(), 0.5)
        for client in (self._redis, self._patient):
            with contextlib.suppress(Exception):
                await client.aclose()
