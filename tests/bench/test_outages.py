"""Faults are real ones, and what callers met is put into the right while: before the breaker opened, or after."""

from __future__ import annotations

import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry


@pytest.fixture
def outages(script: Callable[[str], Any]) -> Any:
    return script("outages")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="co-") as name:  # a socket's path must be short
        yield Path(name)


@pytest.fixture
def redis(script: Callable[[str], Any], folder: Path) -> Iterator[Any]:
    with script("private_redis").PrivateRedis(folder / "redis") as redis:
        yield redis


@contextmanager
def connected(socket: Path, **options: Any) -> Iterator[Any]:
    with Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0), **options) as client:
        yield client


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("killed", exceptions.ConnectionError),
        ("stopped", exceptions.TimeoutError),
        ("full", exceptions.OutOfMemoryError),
        ("read-only", exceptions.ReadOnlyError),
        ("asks for a password", exceptions.AuthenticationError),
    ],
)
def test_a_fault_is_what_its_name_says_and_has_an_end(
    outages: Any, redis: Any, name: str, error: type[Exception]
) -> None:
    fault = outages.faults(redis, Path("unused"))[name]
    with connected(redis.socket, socket_timeout=0.05) as client:
        client.set("co:known", "value")
        fault.begin()
        with pytest.raises(error):
            client.set("co:new", "value")
        if name in ("full", "read-only"):
            assert client.get("co:known") == b"value"
        fault.end()
        assert client.set("co:new", "value")


def test_a_restarted_redis_is_empty_and_a_corrupt_one_has_noise(outages: Any, redis: Any) -> None:
    faults = outages.faults(redis, Path("unused"))
    with connected(redis.socket) as client:
        client.mset({"co:a": "value", "mine": "value"})
        faults["corrupt"].begin()
        assert client.get("co:a") != b"value"
        assert client.get("mine") == b"value"
        client.close()
        faults["restarted"].begin()
        assert client.get("mine") is None


def test_replies_are_held_back_in_order_for_as_long_as_the_file_says(
    outages: Any, harness: Any, redis: Any, folder: Path
) -> None:
    front, delay = folder / "front.sock", folder / "delay"
    delay.write_text("0")
    program = Path(outages.__file__).with_name("delaying_server.py")
    command = [sys.executable, *map(str, (program, front, redis.socket, delay))]
    with harness.child(command, folder / "log") as process:
        while not front.exists():
            assert process.poll() is None
            time.sleep(0.01)
        with connected(front) as client:
            client.ping()
            delay.write_text("80")
            begun = time.perf_counter()
            client.set("count", 0)
            assert time.perf_counter() - begun >= 0.08
            with client.pipeline(transaction=False) as pipe:
                for _ in range(3):
                    pipe.incr("count")
                assert pipe.execute() == [1, 2, 3]


def test_redis_s_part_of_a_server_s_cpu_and_memory_is_told_apart(harness: Any, redis: Any) -> None:
    """Here the Redis is a child of this process."""
    server = harness.Server("", harness.os.getpid())
    with connected(redis.socket) as client:
        client.eval("local n = 0 for i = 1, 2e7 do n = n + i end return n", 0)
    redis_s = server.cpu_seconds("redis-server")
    assert redis_s > 0
    assert server.cpu_seconds() - redis_s > time.process_time() / 2, "this process's own is in the whole only"
    assert 0 < server.resident_bytes(without="redis-server") < server.resident_bytes()


def reply(load: Any, at: float, took: float = 0.002, source: str = "local", status: int = 200) -> Any:
    body = f'{{"results":[{{"label":"a","source":"{source}"}}]}}'.encode()
    return load.Reply(0, status, body if status == 200 else b"", at, at + took)


def event(name: str, at: float) -> dict[str, Any]:
    """As the log has it; `at` is of perf_counter."""
    moment = datetime.fromtimestamp(at + time.time() - time.perf_counter(), UTC)
    return {"event": name, "timestamp": moment.isoformat().replace("+00:00", "Z")}


def test_latencies_are_split_where_the_breaker_opened(outages: Any, load: Any) -> None:
    now = time.perf_counter()
    replies = [
        reply(load, now - 0.1, source="cache"),
        reply(load, now + 0.1, took=0.012),
        reply(load, now + 0.5, took=0.003),
        reply(load, now + 0.9, took=0.004, status=500),
        reply(load, now + 1.2),
        reply(load, now + 1.4, source="cache"),
    ]
    events = [event(outages.OPENED, now + 0.3), event("cache_available", now + 1.3)]
    seen = outages.judge(replies, events, now, now + 1.0)
    assert seen.early_ms == [pytest.approx(12, abs=0.01)]
    assert seen.open_ms == [pytest.approx(3, abs=0.01), pytest.approx(4, abs=0.01)]
    assert seen.opened_s == pytest.approx(0.3, abs=0.01)
    assert seen.back_s == pytest.approx(0.4, abs=0.01)
    assert (seen.failed, seen.log_lines) == (1, 2)


def test_where_the_breaker_stays_closed_all_of_the_fault_counts_and_of_a_short_one_a_second(
    outages: Any, load: Any
) -> None:
    now = time.perf_counter()
    replies = [reply(load, now + n / 10) for n in range(30)]
    assert len(outages.judge(replies, [], now, now + 2.05).early_ms) == 21
    short = outages.judge(replies, [], now, now + 0.01)
    assert len(short.early_ms) == 10
    assert (short.open_ms, short.opened_s, short.back_s) == ([], None, None)


def test_bars_name_the_worst_fault_and_hits_that_never_came_back_fail(outages: Any) -> None:
    calm = outages.Seen([2.0] * 100, [3.0] * 100, [2.0] * 100, 0, 0.3, 0.5, 2)
    slow = calm._replace(open_ms=[2.2] * 9, early_ms=[9.0])
    stalled = calm._replace(open_ms=[200.0], early_ms=[200.0])
    seen = {"killed": [calm, calm, calm], "stopped": [slow, stalled, slow]}
    held = {bar.name: (round(bar.value, 6), bar.holds) for bar in outages.bars(seen)}
    assert held["breaker open: p99 over that with the cache off: killed"] == (1.5, False)
    assert held["before: p99 more than with the cache off: stopped"] == (7.0, True)
    assert held["failed requests"] == (0, True)
    lost = outages.bars({"full": [calm._replace(back_s=None, opened_s=None, failed=1)]})
    assert [bar.holds for bar in lost] == [False, None, None, True, False, True]


def test_the_lines_of_requests_are_not_log_lines_of_the_fault(outages: Any, tmp_path: Path) -> None:
    log = tmp_path / "router.log"
    log.write_text("before\n")
    since = log.stat().st_size
    lines = [json.dumps({"event": "request"}), json.dumps({"event": "cache_unavailable"}), "Traceback"]
    log.write_text("before\n" + "".join(f"{line}\n" for line in lines))
    assert [event["event"] for event in outages.told(log, since)] == ["cache_unavailable", "Traceback"]


def test_one_text_in_five_is_new_and_no_new_one_comes_twice(outages: Any) -> None:
    known = [f"known {n}" for n in range(10)]
    numbers = itertools.count()
    drawn = [next(outages.mixed(known, numbers, random.Random(n))) for n in range(2000)]
    new = [text for text in drawn if text not in known]
    assert len(new) == len(set(new))
    assert 0.15 < len(new) / len(drawn) < 0.25
