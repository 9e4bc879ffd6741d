"""Claims on what is bought, on a real Redis: one owner at a time, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import redis

from router.cache import breaker, herd, keys
from router.cache.client import RedisCache
from router.cache.embedded import EmbeddedRedis
from router.cache.entry import Entry
from router.cache.types import Slot

SECRET = b"s" * 32
SLOT = Slot("tenant", "task", b"\x01" * 16, "frontier", "identity", frozenset({"a"}))
ENTRY = Entry("", "frontier", 1.0, "a", None, (), "m", 5, 7, False)


def run(url: str, scenario: Callable[..., Awaitable[None]], processes: int = 2) -> None:
    """`scenario` gets one cache for each process that it plays."""

    async def main() -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(20):
            caches = [RedisCache(url, ttl_s=60, lookup_s=1.0, secret=SECRET) for _ in range(processes)]
            for cache in caches:
                stack.push_async_callback(cache.close)
                await cache.lookup([SLOT])
            await scenario(*caches)

    asyncio.run(main())


def later(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


class Shop:
    """Counts what is bought; `paid` lets the buyer have it."""

    def __init__(self) -> None:
        self.bought = 0
        self.asked = asyncio.Event()
        self.paid = asyncio.Event()

    async def buy(self, cache: RedisCache, seconds: float = 10.0) -> Entry | None:
        """What another bought; None: this one bought it itself."""
        async with cache.sole(SLOT, until=later(seconds)) as elsewhere:
            if elsewhere is None:
                self.bought += 1
                self.asked.set()
                await self.paid.wait()
                cache.store(SLOT, ENTRY)
            return elsewhere


def claims(raw: redis.Redis) -> dict[bytes, bytes]:
    return {name: raw.get(name) for name in raw.keys("*:claim")}


def test_one_buys_and_the_others_get_it(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """Thirty who want it, in three processes: one call; the claim is gone afterwards."""

    async def scenario(*caches: RedisCache) -> None:
        shop = Shop()
        asking = [asyncio.create_task(shop.buy(cache)) for cache in caches for _ in range(10)]
        await shop.asked.wait()
        await asyncio.sleep(0.1)
        assert shop.bought == 1
        shop.paid.set()
        found = await asyncio.gather(*asking)
        assert (shop.bought, found.count(None)) == (1, 1)
        assert {entry.label for entry in found if entry} == {"a"}
        while claims(raw):
            await asyncio.sleep(0)

    run(server.url, scenario, processes=3)


def test_who_comes_after_the_last_owner_finished_finds_its_answer(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """Its own lookup was before the answer was there; with the claim in hand it looks once more."""

    async def scenario(one: RedisCache, other: RedisCache) -> None:
        shop = Shop()
        shop.paid.set()
        assert await other.lookup([SLOT]) == [None]
        assert await shop.buy(one) is None
        while claims(raw):
            await asyncio.sleep(0)
        assert await shop.buy(other) is not None
        assert shop.bought == 1

    run(server.url, scenario)


def test_a_claim_is_renewed_while_its_owner_lives_and_frees_itself_when_it_does_not(
    server: EmbeddedRedis, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call may take longer than a claim lasts; a killed owner's claim is another's within a second."""
    monkeypatch.setattr(herd, "CLAIM_MS", 300)
    monkeypatch.setattr(herd, "RENEW_S", 0.1)

    async def scenario(one: RedisCache, other: RedisCache) -> None:
        shop = Shop()
        owner = asyncio.create_task(shop.buy(one))
        await shop.asked.wait()
        waiting = asyncio.create_task(shop.buy(other))
        await asyncio.sleep(0.8)
        assert shop.bought == 1
        one._herd._mine.clear()  # as if it were killed: nobody renews, nobody releases
        while shop.bought == 1:
            await asyncio.sleep(0.001)
        owner.cancel()
        shop.paid.set()
        assert await waiting is None
        await asyncio.gather(owner, return_exceptions=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(herd.Herd, "release", lambda self, name, token: self._mine.pop(token, None))
        run(server.url, scenario)


def test_nobody_ends_the_claim_of_another(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """A claim that was lost (its owner stood still too long) and taken by another: the first neither renews nor
    releases it."""

    async def scenario(one: RedisCache, other: RedisCache) -> None:
        shop = Shop()
        first = asyncio.create_task(shop.buy(one))
        await shop.asked.wait()
        (name,) = claims(raw)
        raw.set(name, "another's token", px=900)
        await asyncio.sleep(0.4)
        assert raw.pttl(name) < 700, "not renewed"
        shop.paid.set()
        await first
        while not (await other.lookup([SLOT]))[0]:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)  # the release goes out with the answer, right behind it
        assert claims(raw) == {name: b"another's token"}

    run(server.url, scenario)


def test_a_lost_claim_that_is_ours_again_is_the_second_owners(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """Redis was flushed, and another flight of the same process claims the same name: the first to end neither ends the
    second's claim nor fails."""

    async def scenario(cache: RedisCache) -> None:
        first, second = Shop(), Shop()
        asking = [asyncio.create_task(first.buy(cache))]
        await first.asked.wait()
        raw.flushall()
        asking.append(asyncio.create_task(second.buy(cache)))
        await second.asked.wait()
        (claim,) = claims(raw).items()
        first.paid.set()
        assert await asking[0] is None
        await asyncio.sleep(1.2)
        assert claims(raw) == dict([claim]), "renewed for longer than a claim lasts"
        second.paid.set()
        assert await asking[1] is None
        while claims(raw):
            await asyncio.sleep(0)

    run(server.url, scenario, processes=1)


def test_a_redis_that_forbids_scripts_takes_claims_and_writes(
    server: EmbeddedRedis, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ACL without EVAL: a claim is not released and ends by itself; the breaker of the writes stays closed."""
    monkeypatch.setattr(herd, "CLAIM_MS", 200)
    monkeypatch.setattr("router.cache.client.WRITES_FAIL_S", 0.0)
    raw.acl_setuser("narrow", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all"], commands=["-eval"])

    async def scenario(cache: RedisCache) -> None:
        for _ in range(breaker.FAILURES_TO_OPEN + 1):
            async with cache.sole(SLOT, until=later(10)):
                pass
            assert claims(raw)
            while claims(raw):
                await asyncio.sleep(0.001)
        assert cache.degradations() == []
        shop = Shop()
        shop.paid.set()
        assert await shop.buy(cache) is None
        while not (await cache.lookup([SLOT]))[0]:
            await asyncio.sleep(0)

    try:
        run(f"unix://narrow@{server.socket}?password=secret", scenario, processes=1)
    finally:
        raw.acl_deluser("narrow")


def test_who_waits_waits_for_half_of_its_time_at_most(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """Then it buys for itself, with the other half."""

    async def scenario(one: RedisCache, other: RedisCache) -> None:
        shop = Shop()
        patient = asyncio.create_task(shop.buy(one))
        await shop.asked.wait()
        started = time.monotonic()
        hasty = asyncio.create_task(shop.buy(other, seconds=0.4))
        while shop.bought == 1:
            await asyncio.sleep(0.001)
        assert time.monotonic() - started > 0.19
        shop.paid.set()
        assert await hasty is None
        await patient

    run(server.url, scenario)


def test_an_owner_that_fails_makes_room_for_the_next(
    server: EmbeddedRedis, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is raised in the block, the claim is released; whoever waited tries its own luck."""
    monkeypatch.setattr(herd, "CLAIM_MS", 60_000)  # it does not end by itself

    async def scenario(one: RedisCache, other: RedisCache) -> None:
        shop = Shop()
        owner = asyncio.create_task(shop.buy(one))
        await shop.asked.wait()
        waiting = asyncio.create_task(shop.buy(other))
        await asyncio.sleep(0.05)
        owner.cancel()
        while shop.bought == 1:
            await asyncio.sleep(0.001)
        shop.paid.set()
        assert await waiting is None

    run(server.url, scenario)


def test_a_caller_who_leaves_while_it_waits_leaves_no_claim(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """At any of the points where it waits."""

    async def scenario(cache: RedisCache) -> None:
        shop = Shop()
        for turns in range(60):
            task = asyncio.create_task(shop.buy(cache))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert cache._herd._mine == {}
        while claims(raw):
            await asyncio.sleep(0.01)

    run(server.url, scenario, processes=1)


def test_without_redis_everyone_buys_at_once(tmp_path: Path) -> None:
    """Nobody can tell: refused at once, tried twice, not waited for; and with the breaker open not asked at all."""

    async def scenario(cache: RedisCache) -> None:
        shop = Shop()
        shop.paid.set()
        assert await shop.buy(cache, seconds=60) is None
        cache.breaker.trip(ConnectionError())
        assert await shop.buy(cache) is None
        assert shop.bought == 2

    run(f"unix://{tmp_path}/nobody.sock", scenario, processes=1)


def test_losing_redis_while_waiting_ends_the_wait(tmp_path: Path) -> None:
    """A lost reply or two do not; the breaker does, long before half of the time."""
    server = EmbeddedRedis(tmp_path, 16)
    server.start()

    async def scenario(one: RedisCache, other: RedisCache) -> None:
        shop = Shop()
        owner = asyncio.create_task(shop.buy(one))
        await shop.asked.wait()
        waiting = asyncio.create_task(shop.buy(other, seconds=60))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(server.stop)
        while shop.bought == 1:
            await asyncio.sleep(0.001)
        shop.paid.set()
        assert await asyncio.gather(owner, waiting) == [None, None]

    try:
        run(server.url, scenario)
    finally:
        server.stop()


def test_claims_of_one_turn_are_one_round_trip(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """A request of many texts claims them together."""

    async def scenario(cache: RedisCache) -> None:
        async def hold(number: int) -> None:
            slot = SLOT._replace(text=number.to_bytes(16, "big"))
            async with cache.sole(slot, until=later(10)):
                await asyncio.sleep(0.05)

        clients = raw.info("clients")["connected_clients"]
        await asyncio.gather(*(hold(number) for number in range(100)))
        assert raw.info("clients")["connected_clients"] <= clients + 3

    run(server.url, scenario, processes=1)


def test_a_claim_is_no_entry(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """`crossover cache` neither shows nor counts it."""
    from router.cache import inspect

    raw.set(keys.claim_key(keys.entry_key("t", "task", "12345678", b"x" * 16, "i")), "token")
    assert list(inspect.entries(raw, SECRET)) == []
