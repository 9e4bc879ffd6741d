"""The cache on a real Redis."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from router.cache import inspect, keys
from router.cache.client import RedisCache
from router.cache.embedded import EmbeddedRedis, EmbeddedRedisError
from router.cache.entry import Entry, encode
from router.cache.purge import purge
from router.cache.types import Slot
from router.cache.waiting import within

LABELS = frozenset({"a", "b"})
SECRET = b"s" * 32
SLOT = Slot("tenant", "task", b"\x01" * 16, "local", "identity", LABELS)
ENTRY = Entry("", "local", 1.0, "a", 0.9, (("a", 0.9), ("b", 0.1)), "m", 5, 7, False)


def with_cache(url: str, scenario: Callable[[RedisCache, list[str]], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        results: list[str] = []
        settings = {"ttl_s": 60, "lookup_s": 1.0, "secret": SECRET, **options}
        cache = RedisCache(url, on_lookup=results.append, **settings)
        try:
            async with asyncio.timeout(30):
                await scenario(cache, results)
        finally:
            await cache.close()

    asyncio.run(main())


async def stored(cache: RedisCache, slot: Slot = SLOT, entry: Entry = ENTRY) -> None:
    """Store, and wait until it is there."""
    await cache.lookup([slot])  # the generation is known from here on
    cache.store(slot, entry)
    while (await cache.lookup([slot]))[0] is None:
        await asyncio.sleep(0)


def test_what_is_stored_is_found_and_expires(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """With the configured time to live."""

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        await stored(cache)
        (found,) = await cache.lookup([SLOT])
        assert found is not None
        assert (found.label, found.cost_nano) == ("a", 5)
        (name,) = [key for key in raw.keys("co:*") if inspect.parse(key.decode())]
        assert 0 < raw.ttl(name) <= 60

    with_cache(server.url, scenario)


@pytest.mark.parametrize("part", ["tenant", "task", "text", "identity"])
def test_another_tenant_task_text_or_identity_is_a_miss(server: EmbeddedRedis, raw: redis.Redis, part: str) -> None:
    """Each part of the key holds by itself."""

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        await stored(cache)
        other = SLOT._replace(**{part: b"\x02" * 16 if part == "text" else "other"})
        assert await cache.lookup([SLOT, other, SLOT]) != [None] * 3
        assert (await cache.lookup([other]))[0] is None

    with_cache(server.url, scenario)


def test_lookups_of_one_turn_of_the_loop_are_one_command(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """64 callers, one MGET."""

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        await stored(cache)
        raw.config_resetstat()
        found = await asyncio.gather(*(cache.lookup([SLOT]) for _ in range(64)))
        assert all(entry is not None for (entry,) in found)
        assert raw.info("commandstats")["cmdstat_mget"]["calls"] == 1

    with_cache(server.url, scenario)


def test_a_purge_is_seen_by_the_next_lookup(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """The generation is read with every lookup: what was stored before is gone, what is stored after is found."""

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        await stored(cache)
        purge(raw, SECRET, inspect.Selection(task="task"))
        assert (await cache.lookup([SLOT]))[0] is None
        await stored(cache)

    with_cache(server.url, scenario)


@pytest.mark.parametrize("wanted", [inspect.Selection(task="task"), inspect.Selection(tenant="tenant")])
@pytest.mark.parametrize("heard", [True, False])
def test_an_answer_begun_before_a_purge_is_not_kept(
    server: EmbeddedRedis, raw: redis.Redis, wanted: inspect.Selection, heard: bool
) -> None:
    """Whether the process has heard of the purge when the answer is there, or hears of it as it writes."""

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        await cache.lookup([SLOT])
        since = cache.generation("task")
        purge(raw, SECRET, wanted)
        if heard:
            await cache.lookup([SLOT])
        cache.store(SLOT, ENTRY, since=since)
        other = SLOT._replace(text=b"\x02" * 16)
        while not (await cache.lookup([other]))[0]:
            cache.store(other, ENTRY, since=cache.generation("task"))  # goes out behind it
        assert await cache.lookup([SLOT]) == [None]
        while len([key for key in raw.keys("co:*") if inspect.parse(key.decode())]) > 1:
            await asyncio.sleep(0)

    with_cache(server.url, scenario, memory_bytes=1 << 20)


def test_a_write_that_waits_during_a_purge_is_dropped(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """It was put before; by the time it goes out this process has heard."""

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        await cache.lookup([SLOT])
        cache.store(SLOT, ENTRY)
        cache._generations.heard("task", "12345678", time.monotonic())
        raw.config_resetstat()
        while cache._writer._running:
            await asyncio.sleep(0)
        assert "cmdstat_set" not in raw.info("commandstats")

    with_cache(server.url, scenario)


def test_a_flushed_redis_gets_a_new_generation(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """A missing one is made; two processes agree on it."""

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        await stored(cache)
        raw.flushall()
        await stored(cache)
        other = RedisCache(server.url, ttl_s=60, lookup_s=1.0, secret=SECRET)
        assert (await other.lookup([SLOT]))[0] is not None
        await other.close()

    with_cache(server.url, scenario)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff\xfe",
        b"{}",
        b"\x9b" + b"\x01" * 11,
        encode(ENTRY, SECRET),  # a valid entry, but of another key
        encode(ENTRY, SECRET)[:-3],
    ],
)
def test_a_damaged_value_is_a_miss_counted_and_removed(server: EmbeddedRedis, raw: redis.Redis, damage: bytes) -> None:
    """Never an exception, never an answer."""

    async def scenario(cache: RedisCache, results: list[str]) -> None:
        await stored(cache)
        (name,) = [key for key in raw.keys("co:*") if inspect.parse(key.decode())]
        raw.set(name, damage)
        assert (await cache.lookup([SLOT]))[0] is None
        assert results == ["corrupt"]
        while raw.exists(name):
            await asyncio.sleep(0)

    with_cache(server.url, scenario)


def test_a_value_of_another_type_is_a_miss(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """A list where a string belongs."""

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        await stored(cache)
        (name,) = [key for key in raw.keys("co:*") if inspect.parse(key.decode())]
        raw.delete(name)
        raw.lpush(name, "x")
        assert (await cache.lookup([SLOT]))[0] is None

    with_cache(server.url, scenario)


def test_a_full_redis_loses_the_entry_and_nothing_else(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """Out of memory is an error reply to SET; nobody notices."""
    before = raw.config_get("maxmemory*")
    raw.config_set("maxmemory-policy", "noeviction")
    raw.config_set("maxmemory", "1")
    try:

        async def scenario(cache: RedisCache, _: list[str]) -> None:
            assert (await cache.lookup([SLOT]))[0] is None
            cache.store(SLOT, ENTRY)
            assert (await cache.lookup([SLOT]))[0] is None

        with_cache(server.url, scenario)
    finally:
        for name, value in before.items():
            raw.config_set(name, value)


def test_a_redis_that_is_not_there_is_a_miss_and_opens_the_breaker(tmp_path: Path) -> None:
    """Refused at once, counted, and after a while not asked any more."""

    async def scenario(cache: RedisCache, results: list[str]) -> None:
        while not cache.breaker.open:
            assert (await cache.lookup([SLOT]))[0] is None
            await asyncio.sleep(0.01)
        assert set(results) == {"error"}

    with_cache(f"unix://{tmp_path}/nobody.sock", scenario)


def test_the_breaker_closes_when_redis_answers_again(tmp_path: Path) -> None:
    """A probe in the background finds out; no request has to."""
    server = EmbeddedRedis(tmp_path, 16)

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        while not cache.breaker.open:
            await cache.lookup([SLOT])
            await asyncio.sleep(0.01)
        await asyncio.to_thread(server.start)
        while cache.breaker.open:
            await asyncio.sleep(0.01)
        await stored(cache)

    try:
        with_cache(server.url, scenario)
    finally:
        server.stop()


def test_something_else_under_a_generations_key_is_replaced(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """Another type, or text that is none of ours: it would end up in every key."""

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        await stored(cache)
        for tamper in (
            lambda: raw.lpush(keys.generation_key("task"), "x"),
            lambda: raw.set(keys.generation_key("task"), "a:b"),
        ):
            raw.delete(keys.generation_key("task"))
            tamper()
            await stored(cache)
            assert keys.is_generation((raw.get(keys.generation_key("task")) or b"").decode())

    with_cache(server.url, scenario)


def test_what_is_written_together_does_not_expire_together(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """Between 0.9 of the time to live and all of it, evenly."""

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        await stored(cache)
        for number in range(100):
            cache.store(SLOT._replace(text=keys.text_digest(SECRET, "tenant", str(number))), ENTRY)

    with_cache(server.url, scenario, ttl_s=1000)
    left = sorted(raw.ttl(key) for key in raw.keys("co:*") if inspect.parse(key.decode()))
    assert 890 <= left[0] < 920
    assert 980 < left[-1] <= 1000
    assert 940 < left[len(left) // 2] < 960


def test_a_burst_of_writes_takes_no_lookups_place(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """Hundreds of entries go out on one connection, none is lost."""

    async def scenario(cache: RedisCache, results: list[str]) -> None:
        await stored(cache)
        before = raw.info("clients")["connected_clients"]
        slots = [SLOT._replace(text=number.to_bytes(16, "big")) for number in range(500)]
        for slot in slots:
            cache.store(slot, ENTRY)
        while None in await cache.lookup(slots):
            await asyncio.sleep(0)
        assert raw.info("clients")["connected_clients"] <= before + 1
        assert results == []

    with_cache(server.url, scenario)


def test_an_answer_is_kept_although_nobody_looked_for_one_before(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """All callers want it afresh: the generation is made for the first answer."""

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        cache.store(SLOT, ENTRY)
        while not [key for key in raw.keys("co:*") if inspect.parse(key.decode())]:
            await asyncio.sleep(0.001)

    with_cache(server.url, scenario)


def test_writes_that_fail_for_seconds_are_shown_and_lookups_go_on(
    server: EmbeddedRedis, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that is full or read-only is still read; nothing is written to it until it takes writes again."""
    monkeypatch.setattr("router.cache.client.WRITES_FAIL_S", 0.1)

    async def scenario(cache: RedisCache, results: list[str]) -> None:
        await stored(cache)
        raw.replicaof("127.0.0.1", "1")
        try:
            while not cache.writes.open:
                cache.store(SLOT, ENTRY)
                await asyncio.sleep(0.01)
                assert (await cache.lookup([SLOT]))[0] is not None
            assert cache.degradations() == ["cache_writes"]
            cache.store(SLOT, ENTRY)
            assert not cache._writer._queue, "nothing is sent to be refused"
            async with cache.sole(SLOT, until=asyncio.get_running_loop().time() + 60) as elsewhere:
                assert elsewhere is None
        finally:
            raw.replicaof("NO", "ONE")
        while cache.writes.open:
            await asyncio.sleep(0.01)
        assert results == []

    with_cache(server.url, scenario)


def test_a_cancelled_lookup_never_gives_its_answer_to_another(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """The incident of redis-py in March 2023: replies must not slip to the next caller."""

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        slots = [SLOT._replace(text=bytes([number]) * 16) for number in range(20)]
        for number, slot in enumerate(slots):
            await stored(cache, slot, Entry("", "local", float(number), "a", 0.9, (), "m", number, 7, False))
        for round_ in range(1500):  # 10,000 cancelled, of 30,000
            tasks = [asyncio.create_task(cache.lookup([slot])) for slot in slots]
            await asyncio.sleep(0)
            for task in tasks[round_ % 3 :: 3]:
                task.cancel()
            for number, result in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
                if not isinstance(result, BaseException):
                    assert result[0] is None or result[0].cost_nano == number

    with_cache(server.url, scenario)


def test_an_answer_that_is_already_here_is_taken_although_the_loop_was_late() -> None:
    """A stall of the event loop is not the cache's fault."""

    async def main() -> str:
        one, other = socket.socketpair()
        _, server_side = await asyncio.open_connection(sock=one)
        reader, client_side = await asyncio.open_connection(sock=other)
        reading = asyncio.ensure_future(within(reader.readexactly(2), 0.01))
        await asyncio.sleep(0)
        server_side.write(b"ok")
        await server_side.drain()
        time.sleep(0.05)  # the stall
        answer = (await reading).decode()
        for side in (server_side, client_side):
            side.close()
            await side.wait_closed()
        return answer

    assert asyncio.run(main()) == "ok"


@pytest.mark.parametrize("reply", [b":1\r\n", b"*1\r\n$-1\r\n", b"*3\r\n:1\r\n:2\r\n:3\r\n", b"+OK\r\n"])
def test_a_reply_of_the_wrong_shape_is_a_miss(tmp_path: Path, reply: bytes) -> None:
    """Whatever stands at the other end of the socket: nobody waits for ever, nothing is raised."""

    async def main() -> None:
        async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                ours = b"MGET" in data or b"GET" in data
                writer.write(reply if ours else b"+OK\r\n" * data.count(b"*"))
            writer.close()

        server = await asyncio.start_unix_server(lie, tmp_path / "liar.sock")
        cache = RedisCache(f"unix://{tmp_path}/liar.sock", ttl_s=60, lookup_s=1.0, secret=SECRET)
        async with asyncio.timeout(10):
            assert await cache.lookup([SLOT]) == [None]
            await cache.close()
        server.close()
        await server.wait_closed()

    asyncio.run(main())


def test_what_is_no_redis_and_asked_for_a_password_is_a_miss(tmp_path: Path) -> None:
    """redis-py looks into the reply to its greeting, whatever that is."""

    async def main() -> None:
        async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(65536):
                writer.write(b":1\r\n")
            writer.close()

        server = await asyncio.start_unix_server(lie, tmp_path / "liar.sock")
        url = f"unix://{tmp_path}/liar.sock?password=secret"
        cache = RedisCache(url, ttl_s=60, lookup_s=1.0, secret=SECRET, memory_bytes=1 << 20)
        cache._generations.heard("task", "12345678", 0.0)  # so that it polls, and has a list to leave
        async with asyncio.timeout(10):
            await cache.open()
            assert cache.degradations() == ["cache"]
            await cache.close()
        server.close()
        await server.wait_closed()

    asyncio.run(main())


def test_what_takes_too_long_is_cut() -> None:
    """`within` raises TimeoutError and cancels."""

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await within(asyncio.Event().wait(), 0.01)

    asyncio.run(main())


def test_to_connect_may_take_longer_than_an_answer_may(tmp_path: Path) -> None:
    """As through TLS, to another city: the first lookups are misses, they connect, the later ones are answered."""

    async def main() -> None:
        async def far(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65_536):
                if b"HELLO" in data:
                    await asyncio.sleep(0.04)
                    writer.write(b"%1\r\n+proto\r\n:3\r\n")
                elif b"MGET" in data:
                    writer.write(b"*2\r\n$8\r\n12345678\r\n$-1\r\n")
                else:
                    writer.write(b"+OK\r\n" * data.count(b"*"))
            writer.close()

        server = await asyncio.start_unix_server(far, tmp_path / "far.sock")
        results: list[str] = []
        cache = RedisCache(
            f"unix://{tmp_path}/far.sock", ttl_s=60, lookup_s=0.01, secret=SECRET, on_lookup=results.append
        )
        await cache.lookup([SLOT])
        while results:
            results.clear()
            await asyncio.sleep(0.01)
            await cache.lookup([SLOT])
            assert not cache.breaker.open, "its probe would connect"
        await cache.close()
        server.close()
        await asyncio.sleep(0.05)  # its connections end

    asyncio.run(asyncio.wait_for(main(), 5))


def test_entries_survive_a_restart_of_the_embedded_server(tmp_path: Path) -> None:
    """It saves when it is asked to end."""

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        await stored(cache)

    async def later(cache: RedisCache, _: list[str]) -> None:
        assert (await cache.lookup([SLOT]))[0] is not None

    for step in (scenario, later):
        with EmbeddedRedis(tmp_path, 16) as server:
            with_cache(server.url, step)


def leave(server: EmbeddedRedis) -> None:
    """What the kernel does when the owner is killed: the lock is gone, the server stays."""
    assert server._lock is not None
    os.close(server._lock)
    server._lock = None


def test_the_server_of_a_killed_owner_is_taken_over(tmp_path: Path) -> None:
    """Not a second one beside it."""
    first = EmbeddedRedis(tmp_path, 16)
    first.start()
    pid = first.pid
    leave(first)
    with EmbeddedRedis(tmp_path, 16) as second:
        assert second.pid == pid
    assert first._process is not None
    first._process.wait(5)


def test_a_second_process_shares_the_server_and_does_not_stop_it(tmp_path: Path) -> None:
    """Only the owner does."""
    with EmbeddedRedis(tmp_path, 16) as owner:
        with EmbeddedRedis(tmp_path, 16) as guest:
            assert guest.url == owner.url
            assert guest.pid is None
        assert owner._answers()


def test_when_the_owner_leaves_who_stays_starts_the_server_again(tmp_path: Path) -> None:
    """And when it is killed, its owner does: the breaker's probe asks for it, the entries are still there."""
    owner, guest = EmbeddedRedis(tmp_path, 16), EmbeddedRedis(tmp_path, 16)
    owner.start()
    guest.start()

    async def until_it_is_back(cache: RedisCache, slot: Slot) -> None:
        while not cache.breaker.open:
            await cache.lookup([slot])
            await asyncio.sleep(0.01)
        while cache.breaker.open:
            await asyncio.sleep(0.01)

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        await stored(cache)
        await asyncio.to_thread(owner.stop)
        await until_it_is_back(cache, SLOT)
        assert guest.pid is not None
        assert (await cache.lookup([SLOT]))[0] is not None
        assert guest._process is not None
        guest._process.kill()
        guest._process.wait()
        await until_it_is_back(cache, SLOT)
        await stored(cache)

    async def revive() -> None:
        await asyncio.to_thread(guest.ensure)

    try:
        with_cache(guest.url, scenario, revive=revive)
    finally:
        guest.stop()


def test_a_folder_that_can_not_be_used_is_a_clear_error(tmp_path: Path) -> None:
    """Named; the service then starts without its cache."""
    (tmp_path / "redis" / "redis.log").mkdir(parents=True)
    with pytest.raises(EmbeddedRedisError, match=r"redis\.log"):
        EmbeddedRedis(tmp_path, 16).start()


def test_a_miss_is_explained_by_the_part_that_changed(server: EmbeddedRedis, raw: redis.Redis) -> None:
    """Another head: the identity's part of that name; a purge: the generation."""

    async def scenario(cache: RedisCache, _: list[str]) -> None:
        await stored(cache)

    with_cache(server.url, scenario)
    import msgspec

    raw.set(keys.identity_key("identity"), msgspec.json.encode({"head": "1", "labels": "x"}))
    raw.set(keys.identity_key("newer"), msgspec.json.encode({"head": "2", "labels": "x"}))
    (found,) = inspect.entries(raw, SECRET)
    generation = inspect.generation(raw, "task")
    assert inspect.why_not(raw, found, inspect.Current("identity", "f"), generation) == []
    (reason,) = inspect.why_not(raw, found, inspect.Current("newer", "f"), generation)
    assert "head changed" in reason
    (reason,) = inspect.why_not(raw, found, inspect.Current("identity", "f"), "another")
    assert "purged" in reason


def test_the_secret_file_is_not_the_digests_only_protection_when_configured(tmp_path: Path) -> None:
    """A configured secret makes the same digests on every host."""
    one = keys.load_secret("shared", tmp_path / "a")
    other = keys.load_secret("shared", tmp_path / "b")
    assert one == other
    assert not (tmp_path / "a").exists()
