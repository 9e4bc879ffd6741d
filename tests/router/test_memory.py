"""What a process remembers: how much, how long, and that a purge reaches it."""

from __future__ import annotations

import asyncio
import gc
import secrets
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import redis

from router.cache import keys
from router.cache.client import RedisCache
from router.cache.embedded import EmbeddedRedis
from router.cache.entry import Entry, decode, encode
from router.cache.generations import Generations
from router.cache.inspect import Selection, replicas
from router.cache.memory import Memory
from router.cache.purge import purge
from router.cache.types import Slot

SECRET = b"s" * 32
LABELS = frozenset(f"a_label_of_usual_length_{number}" for number in range(20))
FIRST, *OTHERS = sorted(LABELS)
SLOT = Slot("tenant", "task", b"\x01" * 16, "local", "identity", LABELS)


def slot(number: int) -> Slot:
    return SLOT._replace(text=number.to_bytes(16, "big"))


def entry(scores: int = 10, at: float = 0.0) -> Entry:
    pairs = tuple((label, 0.01) for label in sorted(LABELS)[:scores])
    return Entry("co:1:tenant:task:12345678:" + "0" * 49, "local", at, FIRST, 0.9, pairs, "task@12345678", 5, 7, False)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_answers_used_last_are_kept_and_no_more_bytes_than_configured() -> None:
    """Whatever is looked up moves to the end of the queue; what is larger than everything is not kept at all."""
    memory = Memory(20_000, Clock())
    for number in range(100):
        memory.put(slot(number), "g", entry(), 60)
        memory.get(slot(0), "g", 100.0)
        assert memory.bytes <= 20_000
    kept = [number for number in range(100) if memory.get(slot(number), "g", 100.0)]
    assert kept == [0, *range(100 - len(kept) + 1, 100)]
    assert 5 < len(kept) < 30
    tiny = Memory(500)
    tiny.put(SLOT, "g", entry(), 60)
    assert (len(tiny), tiny.bytes) == (0, 0)


def test_an_answer_expires_and_belongs_to_its_generation() -> None:
    """What is found too late, or for another generation, is gone for good; so are its bytes."""
    clock = Clock()
    memory = Memory(10_000, clock)
    memory.put(SLOT, "g", entry(), 60)
    assert memory.get(SLOT, "g", 159.9) is not None
    assert memory.get(SLOT, "g", 160.0) is None
    memory.put(SLOT, "g", entry(), 60)
    assert memory.get(SLOT, "g.1", 100.0) is None
    assert (len(memory), memory.bytes) == (0, 0)
    memory.put(SLOT, "g", entry(), 0)
    assert len(memory) == 0


def test_an_answer_that_is_put_again_is_counted_once() -> None:
    memory = Memory(10_000)
    memory.put(SLOT, "g", entry(10), 60)
    memory.put(SLOT, "g", entry(0), 60)
    once = Memory(10_000)
    once.put(SLOT, "g", entry(0), 60)
    assert memory.bytes == once.bytes


@pytest.mark.parametrize(("scores", "shared"), [(0, False), (10, False), (10, True)])
def test_bytes_are_counted_honestly(scores: int, shared: bool) -> None:
    """Against tracemalloc: within a quarter for entries as they come from Redis, each with strings of its own. Of
    entries made here labels and numbers may be shared; then up to three times too much is counted, never too little."""
    memory = Memory(1 << 40)
    data = encode(entry(scores), SECRET)
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(3000):
            text = secrets.token_bytes(16)
            made = decode(data, entry().key, "local", LABELS, SECRET) if not shared else entry(scores)
            memory.put(SLOT._replace(text=text), "g", made, 60)
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counted = memory.bytes
    if shared:
        assert used * 0.8 <= counted <= used * 3
    else:
        assert used * 0.8 <= counted <= used * 1.25


def test_thousands_of_answers_are_nothing_for_the_garbage_collector() -> None:
    """A full collection walks what is tracked; with every entry tracked it would stop the loop for milliseconds."""
    memory = Memory(1 << 30)
    gc.collect()
    before = len(gc.get_objects())
    for number in range(2000):
        memory.put(slot(number), "g", decode(encode(entry(), SECRET), entry().key, "local", LABELS, SECRET), 60)
    gc.collect()
    gc.collect()  # a tuple of tuples is let go a round later
    assert len(gc.get_objects()) - before < 100


def test_a_generation_is_trusted_for_a_second() -> None:
    clock = Clock()
    generations = Generations(clock)
    assert generations.trusted("t", clock()) == ""
    generations.heard("t", "aaaaaaaa", asked=100.0, confirmed=True)
    assert generations.trusted("t", 101.0) == "aaaaaaaa"
    assert generations.trusted("t", 101.1) == ""
    assert generations.value("t") == "aaaaaaaa"
    generations.heard("t", "aaaaaaaa", asked=101.0, confirmed=True)
    assert generations.trusted("t", 101.1) == "aaaaaaaa"


def test_a_generation_is_not_trusted_before_this_process_is_in_the_list_of_replicas() -> None:
    """A purge would not wait for it."""
    generations = Generations(Clock())
    generations.heard("t", "aaaaaaaa", asked=100.0)
    assert (generations.value("t"), generations.trusted("t", 100.0)) == ("aaaaaaaa", "")
    generations.heard("t", "aaaaaaaa", asked=99.9, confirmed=True)
    assert generations.trusted("t", 100.0) == "aaaaaaaa"
    generations.heard("t", "bbbbbbbb", asked=101.0)
    assert generations.trusted("t", 101.0) == ""


def test_a_reply_that_was_overtaken_brings_no_purged_generation_back() -> None:
    """It was asked for before the new one came in. What was asked for after that is believed, even an older one: a
    Redis that was restored from a snapshot."""
    clock = Clock()
    generations = Generations(clock)
    generations.heard("t", "aaaaaaaa", asked=99.0)
    clock.now = 101.0
    generations.heard("t", "bbbbbbbb", asked=100.0)
    generations.heard("t", "aaaaaaaa", asked=100.5)
    assert generations.value("t") == "bbbbbbbb"
    generations.heard("t", "aaaaaaaa", asked=101.5)
    assert generations.value("t") == "aaaaaaaa"


# on a real Redis ------------------------------------------------------------------------------------------------------


def with_replicas(server: EmbeddedRedis, scenario: Callable[[RedisCache, RedisCache], Awaitable[None]]) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"secret": SECRET, "ttl_s": 60, "lookup_s": 1.0, "memory_bytes": 1 << 20}
        one, other = (RedisCache(server.url, **options) for _ in range(2))
        try:
            async with asyncio.timeout(20):
                await one.open()
                await other.open()
                await scenario(one, other)
        finally:
            await one.close()
            await other.close()

    asyncio.run(main())


async def recalled(cache: RedisCache) -> Entry:
    """A process remembers from its first poll on: then a purge waits for it."""
    while (found := cache.recall([SLOT])[0]) is None:
        await asyncio.sleep(0.01)
    return found


async def both_remember(one: RedisCache, other: RedisCache) -> None:
    await one.lookup([SLOT])
    one.store(SLOT, entry(at=time.time()))
    assert one.recall([SLOT]) == [None], "not yet in the list of replicas"
    await recalled(one)
    while not (await other.lookup([SLOT]))[0]:
        await asyncio.sleep(0)
    await recalled(other)


@pytest.mark.parametrize("wanted", [Selection(task="task"), Selection(tenant="tenant")], ids=["task", "tenant"])
def test_a_purge_returns_once_every_process_has_forgotten(
    server: EmbeddedRedis, raw: redis.Redis, wanted: Selection
) -> None:
    """It knows by name who confirmed."""

    async def scenario(one: RedisCache, other: RedisCache) -> None:
        await both_remember(one, other)
        while len(replicas(raw)) < 2:
            await asyncio.sleep(0.01)
        done = await asyncio.to_thread(purge, raw, SECRET, wanted)
        assert (len(done.confirmed), done.unconfirmed) == (2, ())
        assert one.recall([SLOT]) == other.recall([SLOT]) == [None]
        assert (await one.lookup([SLOT]))[0] is None

    with_replicas(server, scenario)


def test_nothing_is_remembered_longer_than_redis_can_confirm_it(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """A process that is cut off can't know of a purge: after a second it serves nothing from memory; once it is
    connected again, what is still valid."""

    async def scenario(one: RedisCache, other: RedisCache) -> None:
        await both_remember(one, other)
        raw.client_pause(1600, all=True)
        started = time.monotonic()
        while one.recall([SLOT])[0] is not None:
            await asyncio.sleep(0.01)
        assert 0.7 < time.monotonic() - started < 1.6
        while one.recall([SLOT])[0] is None:  # the poll goes on by itself
            await asyncio.sleep(0.01)

    with_replicas(server, scenario)


def test_who_closes_leaves_the_list_and_corpses_are_removed(
    server: EmbeddedRedis, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The field of a process that was killed is removed by whoever polls, whatever either's clock says."""
    monkeypatch.setattr(keys, "CORPSE_S", 1.0)

    async def scenario(one: RedisCache, other: RedisCache) -> None:
        now = round(time.time() * 1000)
        raw.hset(keys.replicas_key(), "corpse, an hour ahead", msgspec.json.encode({"at": now + 3_600_000}))
        raw.hset(keys.replicas_key(), "garbage", b"\xff")
        await both_remember(one, other)
        while len(fields := raw.hgetall(keys.replicas_key())) > 2:
            late = msgspec.json.encode({"at": round(time.time() * 1000) - 3_600_000})
            raw.hset(keys.replicas_key(), "alive, an hour behind", late)
            if len(fields) == 3:
                break
            await asyncio.sleep(0.01)
        assert b"alive, an hour behind" in fields
        raw.hdel(keys.replicas_key(), "alive, an hour behind")
        (seen,) = {it.seen["task"] for it in replicas(raw).values() if it.seen}
        assert seen == raw.get(keys.generation_key("task")).decode()
        assert {it.memory["entries"] for it in replicas(raw).values() if it.seen} == {1}

    with_replicas(server, scenario)
    assert raw.hkeys(keys.replicas_key()) == []


def test_without_bytes_nothing_is_remembered_and_nobody_polls(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """`memory_bytes = 0`."""

    async def main() -> None:
        cache = RedisCache(server.url, secret=SECRET, ttl_s=60, lookup_s=1.0)
        await cache.open()
        await cache.lookup([SLOT])
        cache.store(SLOT, entry(at=time.time()))
        assert cache.recall([SLOT]) == [None]
        while not (await cache.lookup([SLOT]))[0]:
            await asyncio.sleep(0)
        assert cache.recall([SLOT]) == [None]
        await cache.close()

    asyncio.run(main())
    assert raw.hgetall(keys.replicas_key()) == {}
