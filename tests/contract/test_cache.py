"""Every cache keeps the same promises: the one on Redis and the one in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from router.cache.client import RedisCache
from router.cache.embedded import EmbeddedRedis
from router.cache.entry import Entry
from router.cache.fake import MemoryCache
from router.cache.types import Cache, NoCache, Slot

SLOTS = [Slot("tenant", "task", bytes([number]) * 16, "frontier", "identity", frozenset({"a"})) for number in range(3)]
ENTRY = Entry("", "frontier", time.time(), "a", None, (), "m", 5, 7, False)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), 16) as server:
        yield server.url


@asynccontextmanager
async def opened(kind: str, url: str) -> Any:
    if kind == "memory":
        yield MemoryCache()
        return
    memory = 1 << 20 if kind == "redis and memory" else 0
    cache = RedisCache(url, ttl_s=60, lookup_s=1.0, secret=b"s" * 32, memory_bytes=memory)
    await cache.open()
    await cache._redis.flushall()
    yield cache
    await cache.close()


async def settled(cache: Cache, slot: Slot) -> Entry | None:
    """What is found once a write in the background had its chance."""
    for _ in range(200):
        (entry,) = await cache.lookup([slot])
        if entry is not None:
            return entry
        await asyncio.sleep(0.001)
    return None


@pytest.mark.parametrize("kind", ["memory", "redis", "redis and memory"])
def test_a_cache(kind: str, url: str) -> None:
    """Answers in order, None for what it lacks, the last write wins, `key` is filled in, no slots is no answer."""

    async def main() -> None:
        async with opened(kind, url) as cache:
            assert await cache.lookup([]) == []
            assert await cache.lookup(SLOTS) == [None, None, None]
            cache.store(SLOTS[1], ENTRY)
            found = await settled(cache, SLOTS[1])
            assert found is not None
            assert found.key
            assert (found.label, found.kind, found.cost_nano) == ("a", "frontier", 5)
            assert [entry is not None for entry in await cache.lookup(SLOTS)] == [False, True, False]
            other = SLOTS[1]._replace(tenant="other")
            assert await cache.lookup([other]) == [None]
            assert cache.recall([]) == []
            assert cache.recall([other, SLOTS[0]]) == [None, None]
            assert cache.recall(SLOTS)[1] in (None, found)
            async with cache.sole(other, until=asyncio.get_running_loop().time() + 10) as elsewhere:
                assert elsewhere is None
                cache.store(other, ENTRY)
            assert await settled(cache, other) is not None

    asyncio.run(main())


def test_no_cache_finds_nothing_keeps_nothing_and_waits_for_nobody() -> None:
    """`cache.url = "off"`."""

    async def main() -> None:
        cache: Cache = NoCache()
        cache.store(SLOTS[0], ENTRY)
        assert cache.recall(SLOTS) == await cache.lookup(SLOTS) == [None] * 3
        async with cache.sole(SLOTS[0], until=0.0) as elsewhere:
            assert elsewhere is None

    asyncio.run(main())
