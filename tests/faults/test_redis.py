"""Redis down, slow, full or lying: nobody notices but the metrics."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import redis

from router.cache.client import RedisCache
from router.cache.embedded import EmbeddedRedis
from router.cache.entry import Entry
from router.cache.types import Slot

FRESH = (f"a text that nobody has seen, number {number}" for number in itertools.count())


class SlowLine:
    """A proxy to Redis. `with SlowLine(path_of_redis, path) as line:` listens at `path`; replies take `line.seconds`
    longer from then on. It is latency, not bandwidth. On a thread with a loop of its own."""

    def __init__(self, to: Path, path: Path) -> None:
        self.seconds = 0.0
        self._to, self._path = to, path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    def __enter__(self) -> Self:
        self._thread.start()
        listening = asyncio.start_unix_server(self._connected, self._path)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result(5)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there, to = await asyncio.open_unix_connection(self._to)
            try:
                await asyncio.gather(self._pass(reader, to), self._pass(there, writer, delayed=True))
            finally:
                to.close()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, delayed: bool = False) -> None:
        def send(data: bytes) -> None:
            if not writer.is_closing():
                writer.write(data)

        at = 0.0  # of the last: nothing overtakes it
        while data := await reader.read(65_536):
            at = max(at + 1e-6, self._loop.time() + (self.seconds if delayed else 0.0))
            if at > self._loop.time():
                self._loop.call_at(at, send, data)
            else:
                send(data)
        writer.close()


class Patient:
    """A Redis with a service that uses it through a slow line, and the faults it can be given."""

    def __init__(self, server: EmbeddedRedis, line: SlowLine, service: Any) -> None:
        self.server, self.line, self.service = server, line, service
        self.admin = redis.Redis(unix_socket_path=str(server.socket), socket_timeout=5)
        self.healthy_since = 0.0

    def signal(self, number: int) -> None:
        assert self.server.pid is not None
        os.kill(self.server.pid, number)

    def start(self) -> None:
        self.admin.close()
        self.server.start()
        self.admin = redis.Redis(unix_socket_path=str(self.server.socket), socket_timeout=5)

    def slow(self, seconds: float) -> None:
        self.line.seconds = seconds

    def fill(self, limit: str) -> None:
        self.admin.config_set("maxmemory-policy", "noeviction")
        self.admin.config_set("maxmemory", limit)

    def lock(self, password: str) -> None:
        """A password from now on; who is connected must connect again."""
        self.admin.config_set("requirepass", password)
        self.admin.execute_command("CLIENT KILL TYPE normal SKIPME yes")

    def spoil(self) -> None:
        """All that lies there, in one of five ways each."""
        for number, key in enumerate(self.admin.keys("co:*")):
            if number % 5 == 0:
                self.admin.delete(key)
                self.admin.lpush(key, "a list")
            else:
                value = self.admin.get(key) or b"x"
                at = number % len(value)
                flipped = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
                self.admin.set(key, [b"", b"\xff\xfe\x00", value[:-1], flipped][number % 5 - 1])

    def works(self) -> bool:
        """Nothing is degraded, and what is answered now is found a moment later."""
        if self.service.client.get("/ready").json()["degraded"] != []:
            return False
        text = next(FRESH)
        self.service.answer(text)
        return any(self.service.answer(text)["source"] == "cache" for _ in range(5))

    def notices(self) -> list[str]:
        """What the service logged but its requests."""
        return [line for line in self.service.output.splitlines() if '"event":"request"' not in line]


@pytest.fixture(scope="module")
def patient(serve: Callable[..., Any], banking: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    """Remembers nothing itself: every hit is Redis'. Every answer is good enough to be kept."""
    config = banking + '[tasks.banking.policy]\nthreshold = 0.0\n[cache]\nurl = "{}"\nmemory_bytes = 0\n'
    folder = tmp_path_factory.mktemp("redis")
    with EmbeddedRedis(folder, 64) as server, SlowLine(server.socket, folder / "line.sock") as line:
        patient = Patient(server, line, serve(config.format(line.url)))
        yield patient
        patient.service.stop()  # it hangs up before the line does
        patient.admin.close()


#: What begins and ends each fault, and for how long it lasts (seconds).
FAULTS: dict[str, tuple[Callable[[Patient], object], Callable[[Patient], object], float]] = {
    "killed": (lambda p: p.signal(signal.SIGKILL), lambda p: p.start(), 1.5),
    "stopped": (lambda p: p.signal(signal.SIGSTOP), lambda p: p.signal(signal.SIGCONT), 1.5),
    "slow by 5 ms": (lambda p: p.slow(0.005), lambda p: p.slow(0), 1.5),
    "slow by 20 ms": (lambda p: p.slow(0.02), lambda p: p.slow(0), 3.0),
    "slow by 100 ms": (lambda p: p.slow(0.1), lambda p: p.slow(0), 1.5),
    "slow by 500 ms": (lambda p: p.slow(0.5), lambda p: p.slow(0), 1.5),
    "full": (lambda p: p.fill("1"), lambda p: p.fill("64mb"), 3.5),
    "read-only": (lambda p: p.admin.replicaof("127.0.0.1", "1"), lambda p: p.admin.replicaof("NO", "ONE"), 3.5),
    "corrupt": (lambda p: p.spoil(), lambda _: None, 1.0),
    "requiring a password": (lambda p: p.lock("secret"), lambda p: p.lock(""), 1.5),
    "restarted": (lambda p: (p.server.stop(), p.start()), lambda _: None, 0.5),
    "flushed again and again": (lambda p: [p.admin.flushall() for _ in range(20)], lambda _: None, 0.5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_happens_to_redis_no_request_fails(patient: Patient, load: Any, texts: list[str], fault: str) -> None:
    """Under load: every answer is a label, the same one for the same text; ten lines in the log at most; two seconds
    after the fault is over, answers are kept and found again."""
    begin, end, seconds = FAULTS[fault]
    assert patient.works()
    before = len(patient.notices())
    recovered = []

    async def script(running: Any) -> None:
        await running.answered(100)
        await asyncio.sleep(max(0.0, patient.healthy_since + 4 - time.monotonic()))  # an outage of its own
        await asyncio.to_thread(begin, patient)
        await asyncio.sleep(seconds)
        await running.answered(50)
        await asyncio.to_thread(end, patient)
        ended = time.monotonic()
        while not await asyncio.to_thread(patient.works):
            assert time.monotonic() - ended < 10, "never again"
            await asyncio.sleep(0.02)
        patient.healthy_since = time.monotonic()
        recovered.append(patient.healthy_since - ended)
        await running.answered(50)

    half_of_them_new = [text for number in range(5000) for text in (next(FRESH), texts[number % len(texts)])]
    traffic = load(patient.service.url, half_of_them_new, workers=4)
    asyncio.run(traffic.run(script))
    assert traffic.broken == []
    assert {status for _, status, _ in traffic.replies} == {200}
    assert all(len(labels) == 1 for labels in traffic.labels().values())
    assert recovered[0] <= 2.0
    noticed = patient.notices()[before:]
    assert len(noticed) <= 10, noticed
    if fault in ("full", "read-only"):
        assert sum("cache_writes_unavailable" in line for line in noticed) == 1
        assert sum("cache_writes_available" in line for line in noticed) == 1


def test_what_is_bought_does_not_hide_that_lookups_are_late(tmp_path: Path) -> None:
    """At 60 ms every lookup is late; who looks for what another buys has more time. Those looks neither keep the
    breaker closed nor count as lookups."""
    slot = Slot("t", "task", b"x" * 16, "frontier", "identity", frozenset({"a"}))
    told: list[str] = []

    async def main(line: SlowLine) -> tuple[bool, int]:
        cache = RedisCache(line.url, ttl_s=60, lookup_s=0.01, secret=b"s" * 32, on_lookup=told.append)
        while not cache.generation(slot.task):
            await cache.lookup([slot])
        await asyncio.gather(*(cache._patient.ping() for _ in range(8)))  # connects
        told.clear()
        line.seconds = 0.06
        asked = 0
        while not cache.breaker.open and asked < 60:
            for _ in range(3):
                await cache.lookup([slot])
                asked += 1
            async with cache.sole(slot, until=asyncio.get_running_loop().time() + 10):
                pass
        opened = cache.breaker.open
        line.seconds = 1.0
        assert await cache._looking.ask([slot]) == [None], "too late even for a look"
        await cache.close()
        return opened, asked

    with EmbeddedRedis(tmp_path, 16) as server, SlowLine(server.socket, tmp_path / "line.sock") as line:
        opened, asked = asyncio.run(main(line))
    assert opened
    assert told == ["error"] * asked


def test_losing_the_embedded_redis_under_load_fails_no_request(
    serve: Callable[..., Any], banking: str, load: Any, texts: list[str]
) -> None:
    """With what the process remembers in front: served from there while that is certain, a second; then it computes.
    The service starts its Redis again."""
    service = serve(banking)
    process = service.redis
    # From memory only once a purge would wait for this process too.
    service.wait_for(lambda: service.answer(texts[0]).get("cache_tier") == "memory")

    async def script(running: Any) -> None:
        await running.answered(100)
        process.send_signal(signal.SIGKILL)
        await running.answered(100)
        pid_file = service.state / "redis" / "redis.pid"
        await asyncio.to_thread(service.wait_for, lambda: int(pid_file.read_text() or process.pid) != process.pid)
        await asyncio.to_thread(service.wait_for, lambda: service.client.get("/ready").json()["degraded"] == [])
        await running.answered(100)

    traffic = load(service.url, texts)
    asyncio.run(traffic.run(script))
    assert traffic.broken == []
    assert {status for _, status, _ in traffic.replies} == {200}
    assert all(len(labels) == 1 for labels in traffic.labels().values())
    tiers = [body["results"][0].get("cache_tier") for _, _, body in traffic.replies]
    assert tiers[50:100].count("memory") > 40
    assert set(tiers[-20:]) <= {"memory", "redis"}


def test_a_service_starts_without_its_redis(serve: Callable[..., Any], banking: str, tmp_path: Path) -> None:
    """Ready, answering, and saying that the cache is degraded."""
    service = serve(f'{banking}[cache]\nurl = "unix://{tmp_path}/nobody.sock"\n')
    assert service.client.get("/ready").json() == {"status": "ready", "degraded": ["cache"]}
    assert service.answer("I lost my card")["source"] == "local"
    assert service.answer("I lost my card")["source"] == "local"


def test_ten_thousand_cancelled_commands_give_nobody_anothers_answer(tmp_path: Path) -> None:
    """The incident of redis-py in March 2023: a reply that nobody read any more went to the next caller. Each command
    here is cut somewhere between being sent and being answered, by its deadline."""
    number = 20
    slots = [Slot("t", "task", bytes([n]) * 16, "local", "identity", frozenset({"a"})) for n in range(number)]
    dice = random.Random(7)

    async def main(url: str) -> tuple[int, int]:
        cache = RedisCache(url, ttl_s=600, lookup_s=1.0, secret=b"s" * 32)
        await cache.lookup(slots)
        for n, slot in enumerate(slots):
            cache.store(slot, Entry("", "local", 1.0, "a", 0.9, (), "m", n, 7, False))
        while None in await cache.lookup(slots):
            await asyncio.sleep(0.001)
        cut = answered = 0

        async def read(n: int) -> None:
            nonlocal cut, answered
            reading = asyncio.create_task(cache._read(cache._redis, [slots[n]]))
            await asyncio.wait({reading}, timeout=dice.uniform(0.0, 0.004))
            reading.cancel()
            try:
                (entry,) = await reading
            except (asyncio.CancelledError, redis.RedisError):
                cut += 1
                return
            assert entry is None or entry.cost_nano == n
            answered += 1

        while cut < 10_000:
            await asyncio.gather(*(read(n) for n in range(number)))
        await cache.close()
        return cut, answered

    with EmbeddedRedis(tmp_path, 16) as server:
        cut, answered = asyncio.run(main(server.url))
    assert cut >= 10_000
    assert answered > 100


def test_a_redis_that_answers_to_nothing_but_pings_does_not_open_and_close_the_breaker(tmp_path: Path) -> None:
    """The probe asks for what the lookups ask for: the breaker opens once and stays open until they are in time."""

    async def main() -> list[bool]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65_536):
                if b"MGET" in data and slow:
                    await asyncio.sleep(0.1)
                writer.write(b"*0\r\n" if b"MGET" in data else b"+PONG\r\n" if b"PING" in data else b"+OK\r\n")
            writer.close()

        slow = True
        path = tmp_path / "late.sock"
        server = await asyncio.start_unix_server(answer, path)
        cache = RedisCache(f"unix://{path}", ttl_s=60, lookup_s=0.01, secret=b"s" * 32)
        await cache.open()
        slot = Slot("t", "task", b"x" * 16, "local", "identity", frozenset({"a"}))
        states = [cache.breaker.open]
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            await cache.lookup([slot])
            await asyncio.sleep(0.01)
            if states[-1] != cache.breaker.open:
                states.append(cache.breaker.open)
        await cache.close()
        server.close()
        await asyncio.sleep(0.15)  # its connections end
        return states

    assert asyncio.run(main()) == [False, True]
