"""When the cache stops asking, when it asks again, and how little it says about it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from router.cache import breaker as breakers
from router.cache.breaker import FAILURES_TO_OPEN, Breaker
from router.cache.waiting import Background

ERROR = TimeoutError()


class Server:
    """What is probed; `well` decides."""

    def __init__(self) -> None:
        self.well = False
        self.probes = 0

    async def probe(self) -> None:
        self.probes += 1
        if not self.well:
            raise ERROR


def run(scenario: Callable[[Breaker, Server], Awaitable[None]], **options: Any) -> list[str]:
    """The events that were logged."""

    async def main() -> None:
        background, server = Background(), Server()
        breaker = Breaker("cache", server.probe, background, **options)
        try:
            async with asyncio.timeout(10):
                await scenario(breaker, server)
        finally:
            breaker.close()
            await background.close(0.5)

    structlog.reset_defaults()
    with capture_logs() as lines:
        asyncio.run(main())
    return [line["event"] + ("!" if "comes_and_goes" in line else "") for line in lines]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakers, "PROBE_S", 0.01)
    monkeypatch.setattr(breakers, "LONGEST_PROBE_S", 0.04)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_it_opens_on_count_and_duration() -> None:
    """A stall times out a hundred lookups at once and is no outage; four failures over a second aren't either."""

    async def scenario(breaker: Breaker, server: Server) -> None:
        for _ in range(100):
            breaker.failed(ERROR)
        assert not breaker.open
        await asyncio.sleep(0.06)
        breaker.succeeded()
        for _ in range(FAILURES_TO_OPEN - 1):
            breaker.failed(ERROR)
            await asyncio.sleep(0.02)
        assert not breaker.open
        breaker.failed(ERROR)
        assert breaker.open

    assert run(scenario, seconds=0.05) == ["cache_unavailable"]


def test_a_probe_in_the_background_closes_it() -> None:
    """One line when it opens, one when it closes, however many fail meanwhile."""

    async def scenario(breaker: Breaker, server: Server) -> None:
        breaker.trip(ERROR)
        for _ in range(50):
            breaker.failed(ERROR)
            breaker.trip(ERROR)
        await until(lambda: server.probes >= 3)
        assert breaker.open
        server.well = True
        await until(lambda: not breaker.open)
        await asyncio.sleep(0.05)
        assert server.probes < 10

    assert run(scenario) == ["cache_unavailable", "cache_available"]


def test_what_comes_and_goes_is_probed_less_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is well for the probe and never for the lookups: three lines, and one when it has stayed well."""
    monkeypatch.setattr(breakers, "RELAPSE_S", 0.2)

    async def scenario(breaker: Breaker, server: Server) -> None:
        server.well = True
        pauses = []
        for _ in range(12):
            breaker.trip(ERROR)
            started = asyncio.get_running_loop().time()
            await until(lambda: not breaker.open)
            pauses.append(asyncio.get_running_loop().time() - started)
        assert min(pauses[-3:]) > 0.03 > min(pauses[:2])
        await asyncio.sleep(0.4)

    lines = run(scenario)
    assert lines == ["cache_unavailable", "cache_available", "cache_unavailable!", "cache_available"]


def test_two_outages_far_apart_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its two lines."""
    monkeypatch.setattr(breakers, "RELAPSE_S", 0.05)

    async def scenario(breaker: Breaker, server: Server) -> None:
        server.well = True
        for _ in range(2):
            breaker.trip(ERROR)
            await until(lambda: not breaker.open)
            await asyncio.sleep(0.1)

    assert run(scenario) == ["cache_unavailable", "cache_available"] * 2


def test_one_that_is_closed_for_good_probes_no_more() -> None:
    async def scenario(breaker: Breaker, server: Server) -> None:
        breaker.trip(ERROR)
        breaker.close()
        await asyncio.sleep(0.05)
        assert server.probes == 0
        breaker.trip(ERROR)

    assert run(scenario) == ["cache_unavailable"]
