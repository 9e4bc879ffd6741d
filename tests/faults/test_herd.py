"""A herd is one computation: what several processes want to buy at once is bought once."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from router.cache import inspect, keys
from router.cache.embedded import EmbeddedRedis
from router.cache.inspect import Selection
from router.cache.purge import purge


class Cluster(NamedTuple):
    """Services that share a Redis and a frontier; each has its own state folder, as on hosts of their own."""

    redis: EmbeddedRedis
    simulator: Any
    config: str
    services: list[Any]

    @property
    def calls(self) -> int:
        return int(self.simulator.calls)

    def order(self, *faults: str) -> None:
        httpx.post(f"{self.simulator.url}/_sim/faults", json={"next": faults}).raise_for_status()

    def wait_for_call(self, number: int) -> None:
        self.simulator.wait_for(lambda: self.calls >= number)


@pytest.fixture(scope="module")
def cluster(
    serve: Callable[..., Any], simulate: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    simulator = simulate("--latency-ms", "700")
    with EmbeddedRedis(tmp_path_factory.mktemp("shared"), 16) as redis:
        config = f"""
[tasks.banking]
head = "banking77"
[tasks.banking.policy]
threshold = 1.0
[providers.only]
kind = "anthropic"
model = "claude-haiku-5-5"
base_url = "{simulator.url}"
[cache]
url = "{redis.url}"
secret = "shared by all"
[budget]
usd_per_day = 100.0
"""
        yield Cluster(redis, simulator, config, [serve(config) for _ in range(3)])


class Asking:
    """Requests for one text, on their way. `answers` waits for all of them."""

    def __init__(self, text: str, services: list[Any], each: int = 1, **headers: str) -> None:
        self._text, self._urls, self._headers = text, [service.url for service in services] * each, headers

    async def _ask(self, client: httpx.AsyncClient, url: str) -> dict[str, Any]:
        response = await client.post(f"{url}/v1/classify", json={"input": self._text}, headers=self._headers)
        assert response.status_code == 200, response.text
        (answer,) = response.json()["results"]
        return dict(answer)

    async def answers(self) -> list[dict[str, Any]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            return await asyncio.gather(*(self._ask(client, url) for url in self._urls))


async def meanwhile(what: Callable[[], Any], *asking: Asking) -> list[list[dict[str, Any]] | BaseException]:
    """The answers of `asking`, while `what` runs on a thread."""
    tasks = [asyncio.create_task(some.answers()) for some in asking]
    await asyncio.to_thread(what)
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_two_hundred_identical_cold_requests_over_three_processes_are_one_call(cluster: Cluster) -> None:
    """One of them pays; all get its answer, and the next finds it in the cache."""
    before = cluster.calls
    answers = asyncio.run(Asking("what everybody wants to know", cluster.services, each=67).answers())
    assert len(answers) == 201
    assert cluster.calls == before + 1
    assert {(answer["source"], answer["degraded"]) for answer in answers} == {("frontier", None)}
    assert len({answer["label"] for answer in answers}) == 1
    paid = [answer for answer in answers if not answer["coalesced"]]
    assert len(paid) == 1
    assert all(answer["cost_usd"] < paid[0]["cost_usd"] / 10 for answer in answers if answer["coalesced"])
    assert {service.answer("what everybody wants to know")["source"] for service in cluster.services} == {"cache"}


def test_who_has_little_time_buys_for_itself(cluster: Cluster) -> None:
    """It waits for half of its time; then it makes its own call, and answers in the other half."""
    before = cluster.calls
    cluster.order("hang")
    owner, hasty = cluster.services[:2]
    text = "what is asked in a hurry"

    def script() -> None:
        cluster.wait_for_call(before + 1)
        started = time.monotonic()
        (answer,) = asyncio.run(Asking(text, [hasty], **{"X-Deadline-Ms": "4000"}).answers())
        assert (answer["source"], answer["degraded"], answer["coalesced"]) == ("frontier", None, False)
        assert 1.9 < time.monotonic() - started < 4.0

    asyncio.run(meanwhile(script, Asking(text, [owner], **{"X-Deadline-Ms": "6000"})))
    assert cluster.calls == before + 2


@pytest.mark.parametrize("by", ["task", "text"])
def test_what_is_being_bought_during_a_purge_is_not_kept(cluster: Cluster, tmp_path: Path, by: str) -> None:
    """Who asked gets it; who asks later buys anew."""
    before = cluster.calls
    text = f"what is to be forgotten, by {by}"
    wanted = Selection(task="banking") if by == "task" else Selection(text=text)

    def script() -> None:
        cluster.wait_for_call(before + 1)
        with inspect.connected(cluster.redis.url) as client:
            purge(client, keys.load_secret("shared by all", tmp_path), wanted)

    one = cluster.services[0]
    asyncio.run(meanwhile(script, Asking(text, [one])))
    assert cluster.calls == before + 1
    assert one.answer(text)["source"] == "frontier"
    assert cluster.calls == before + 2


def test_redis_killed_while_they_wait_costs_nobody_an_answer(cluster: Cluster) -> None:
    """Nobody can tell any more who buys: each of the three does, none waits until its time is over."""
    before = cluster.calls
    text = "what nobody can agree on"

    def script() -> None:
        cluster.wait_for_call(before + 1)
        assert cluster.redis.pid is not None
        os.kill(cluster.redis.pid, signal.SIGKILL)

    started = time.monotonic()
    (answers,) = asyncio.run(meanwhile(script, Asking(text, cluster.services, each=5)))
    try:
        assert not isinstance(answers, BaseException)
        assert time.monotonic() - started < 6
        assert {(answer["source"], answer["degraded"]) for answer in answers} == {("frontier", None)}
        assert before + 1 <= cluster.calls <= before + 3
    finally:
        cluster.redis.start()
    for service in cluster.services:
        service.wait_for(lambda service=service: service.client.get("/ready").json()["degraded"] == [])


def test_an_owner_killed_in_the_middle_of_its_call_costs_one_more(cluster: Cluster, serve: Callable[..., Any]) -> None:
    """Its claim ends within a second; one of those who waited takes over, the others get that one's answer."""
    before = cluster.calls
    cluster.order("hang")
    victim, *others = serve(cluster.config), *cluster.services
    text = "what one of us died for"
    killed = 0.0

    def script() -> None:
        nonlocal killed
        cluster.wait_for_call(before + 1)
        waiting = asyncio.run(meanwhile(kill, Asking(text, others, each=20)))[0]
        took = time.monotonic() - killed
        assert not isinstance(waiting, BaseException)
        assert {(answer["source"], answer["degraded"]) for answer in waiting} == {("frontier", None)}
        assert [answer["coalesced"] for answer in waiting].count(False) == 1
        assert took < 5, "a second until the claim is free, and the call"

    def kill() -> None:
        nonlocal killed
        time.sleep(0.5)  # they wait for it
        killed = time.monotonic()
        victim.stop(signal.SIGKILL)

    asyncio.run(meanwhile(script, Asking(text, [victim])))
    assert cluster.calls == before + 2
