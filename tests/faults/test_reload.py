"""A running service follows its config file: keys, policy, budgets; what is wrong in it changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from local_model.types import QueueFull
from router.config_file import load as load_config
from router.local_tier import LocalTier
from router.siblings import ALONE

UNSURE = ["hmm", "hello there", "what about tuesday", "is it raining", "thanks", "blue or green"]


def key(name: str) -> str:
    """Of the tenant: "a-key-that-" and its name."""
    digest = hashlib.sha256(f"a-key-that-{name}".encode()).hexdigest()
    return f'[[auth.keys]]\ntenant = "{name}"\nsha256 = "{digest}"\n'


def test_a_key_that_is_taken_out_of_the_file_is_refused_without_a_restart(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str]
) -> None:
    """What it has in flight ends; other keys notice nothing."""
    frontier = simulate("--latency-ms", "3000")
    config = with_frontier(frontier.url)
    service = serve(config + key("stays") + key("goes"))
    assert service.classify("I lost my card", headers={"x-api-key": "a-key-that-goes"}).status_code == 200

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
            headers = {"x-api-key": "a-key-that-goes"}
            asking = asyncio.create_task(client.post("/v1/classify", json={"input": "hmm"}, headers=headers))
            while not await asyncio.to_thread(lambda: frontier.calls):
                await asyncio.sleep(0.01)
            service.config.write_text(config + key("stays"))
            async with asyncio.timeout(10):
                while (await client.post("/v1/classify", json={"input": "I lost my card"}, headers=headers)).is_success:
                    await asyncio.sleep(0.02)
            assert not asking.done()
            return await asking

    answer = asyncio.run(main())
    assert answer.json()["results"][0]["source"] == "frontier"
    assert service.classify("I lost my card", headers={"x-api-key": "a-key-that-goes"}).status_code == 401
    assert service.classify("I lost my card", headers={"x-api-key": "a-key-that-stays"}).status_code == 200


def test_a_threshold_reload_keeps_every_answer_that_was_paid_for(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str]
) -> None:
    """Up and down again: not one call is made twice, and the model is not loaded anew."""
    frontier = simulate()
    service = serve(with_frontier(frontier.url, threshold=1.0))
    bought = {text: service.answer(text) for text in UNSURE}
    assert {answer["source"] for answer in bought.values()} == {"frontier"}
    before = frontier.calls
    for threshold, source in ((0.0, "local"), (0.99, "cache")):
        count = service.output.count('"event":"reloaded"')
        service.config.write_text(with_frontier(frontier.url, threshold=threshold))
        service.wait_for(lambda count=count: service.output.count('"event":"reloaded"') > count)
        again = {text: service.answer(text) for text in UNSURE}
        assert {answer["source"] for answer in again.values()} <= {source, "cache"}
        if threshold:
            assert {text: a["label"] for text, a in again.items()} == {text: a["label"] for text, a in bought.items()}
            assert {answer["answered_by"] for answer in again.values()} == {"frontier"}
    assert frontier.calls == before
    assert "the old model is closed" not in service.output


def test_a_bad_file_is_told_once_with_its_line_and_the_old_config_serves_on(
    serve: Callable[..., Any], banking: str
) -> None:
    """Not TOML, an unknown key, a wrong unit, out of range, cut in the middle."""
    service = serve(banking)
    digest = service.client.get("/v1/status").json()["config"]
    for number, (text, said) in enumerate(
        [
            (banking + "[budget\n", "crossover.toml:3: not valid TOML"),
            (banking + "[budget]\nusd_per_dya = 5\n", "crossover.toml:4: budget.usd_per_dya: unknown key"),
            (banking + '[server]\ndeadline_ms = "10s"\n', "crossover.toml:4: server.deadline_ms"),
            (banking + "[tasks.banking.policy]\nthreshold = 80\n", "crossover.toml:4: tasks.banking.policy.threshold"),
            (banking[: len(banking) // 2], "crossover.toml:2: not valid TOML"),
        ],
        1,
    ):
        service.config.write_text(text)
        service.wait_for(lambda said=said: said in service.output)
        assert service.answer("I lost my card")["label"] == "lost_or_stolen_card"
        assert service.metric('crossover_config_reloads_total{result="refused"}') == number
        assert service.metric("crossover_config_refused") == 1
    os.utime(service.config)
    service.wait_for(lambda: service.metric('crossover_config_reloads_total{result="refused"}') > number)
    assert service.client.get("/v1/status").json()["config"] == digest

    service.config.write_text(banking + "[tasks.banking.policy]\nthreshold = 0.5\n[cache]\nttl_s = 60\n")
    service.wait_for(lambda: '"event":"reloaded"' in service.output)
    assert service.output.count('"event":"reload_failed"') == number, "the same mistake is not told again"
    assert '"needs_restart":"cache.ttl_s"' in service.output
    assert service.metric("crossover_config_refused") == 0
    status = service.client.get("/v1/status").json()
    assert status["config"] != digest
    assert (status["tasks"]["banking"]["threshold"], status["cache"]["ttl_s"]) == (0.5, 604_800)
    assert service.metric("crossover_config_info") == 1


def test_every_worker_takes_a_new_config_over_and_so_does_one_that_comes_later(
    serve: Callable[..., Any], banking: str
) -> None:
    """A bad one is told once; /v1/status says what each serves."""
    service = serve(banking, "--workers", "2")

    def told() -> list[dict[str, Any]]:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{service.url}/v1/status", timeout=10).json()["workers"]
        return [{}]

    def all_serve(*wanted: str) -> bool:
        each = told()
        return all(one.get("state") == "ready" for one in each) and (
            not wanted or {one["config"] for one in each} == {*wanted}
        )

    service.wait_for(all_serve)
    (before,) = {one["config"] for one in told()}
    service.config.write_text(banking + "[server]\nport = 1\n[budget]\nusd_per_day = 2.5\n")
    service.process.send_signal(signal.SIGHUP)
    service.wait_for(lambda: service.output.count('"event":"reloaded"') == 1)
    (after,) = {one["config"] for one in told()}
    assert after != before
    lines = httpx.get(f"{service.url}/metrics").text.splitlines()
    assert {'crossover_budget_usd{worker="0"} 2.5', 'crossover_budget_usd{worker="1"} 2.5'} <= set(lines)
    assert "needs_restart" not in service.output, "--port stands above the file"

    service.config.write_text(banking + '[tasks.other]\nhead = "/nowhere"\n')
    service.wait_for(lambda: service.output.count('"event":"reload_failed"') == 1)
    victim = told()[1]["pid"]
    psutil.Process(victim).kill()
    service.wait_for(lambda: all_serve(after) and victim not in {one["pid"] for one in told()})
    lines = httpx.get(f"{service.url}/metrics").text.splitlines()
    assert 'crossover_config_refused{worker="0"} 1.0' in lines


def test_half_of_the_queue_is_a_tenants_as_soon_as_there_are_two(tmp_path: Path) -> None:
    """And all of it when there is one again. The model is not loaded anew for it; nor for another head at that time."""
    head = tmp_path / "head"
    shutil.copytree(Path(__file__).resolve().parents[2] / "local_model" / "heads" / "banking77", head)
    path = tmp_path / "crossover.toml"
    long = ["word " * 250] * 100

    async def main() -> None:
        tier = LocalTier(ALONE, on_death=lambda _: None, on_batch=lambda _: None)

        async def load(*tenants: str, tokens: int = 40_000) -> None:
            text = f'[tasks.t]\nhead = "{head}"\n[model]\nqueue_tokens = {tokens}\n'
            path.write_text(text + "".join(key(name) for name in tenants))
            await tier.load(load_config(path, {}), secret=b"s" * 32, chain="")

        async def ask(*sizes: int) -> None:
            """So many long texts of one tenant, at once; none of them waits any more afterwards."""
            assert tier.model is not None
            waiting = []
            try:
                for size in sizes:
                    waiting += tier.model.submit("t", long[:size], truncate=True, deadline=None, tenant="one")
            finally:
                for future in waiting:
                    future.cancel()
                while tier.model.stats()["waiting_tokens"]:
                    await asyncio.sleep(0)

        try:
            await load("one")
            first = tier.model
            await ask(100, 40)
            await load("one", "two")
            assert tier.model is first
            await ask(60)
            with pytest.raises(QueueFull):
                await ask(100, 40)
            await load("one", tokens=20_000)
            assert tier.model is first
            with pytest.raises(QueueFull):
                await ask(60, 40)
            await load("one")
            await ask(100, 40)
            os.utime(head / "manifest.json", (1, 1))
            await load("one", "two")
            assert tier.model is not first
            await asyncio.gather(*tier._retiring)
            assert first.healthy, "its encoder serves on"
            with pytest.raises(QueueFull):
                await ask(100, 40)
        finally:
            await tier.close()

    asyncio.run(main())
