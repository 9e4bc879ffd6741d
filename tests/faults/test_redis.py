"""Redis down, slow, full or lying: nobody notices but the metrics."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_losing_redis_under_load_changes_no_answer_and_fails_no_request(
    serve: Callable[..., Any], banking: str, load: Any, texts: list[str], fault: signal.Signals
) -> None:
    """Killed: refused at once. Stopped: every lookup runs into its deadline, then the breaker opens."""
    service = serve(banking)
    process = service.redis

    async def script(running: Any) -> None:
        await running.answered(100)
        process.send_signal(fault)
        await running.answered(200)

    traffic = load(service.url, texts)
    try:
        asyncio.run(traffic.run(script))
    finally:
        if fault == signal.SIGSTOP:
            process.send_signal(signal.SIGCONT)
    assert traffic.broken == []
    assert {status for _, status, _ in traffic.replies} == {200}
    assert all(len(labels) == 1 for labels in traffic.labels().values())
    sources = [body["results"][0]["source"] for _, _, body in traffic.replies]
    assert "cache" in sources[:100]
    assert "local" in sources[-50:]
    assert service.metric('crossover_cache_lookups_total{result="error"}') > 0
    assert service.client.get("/ready").status_code == 200


def test_a_service_starts_without_its_redis(serve: Callable[..., Any], banking: str, tmp_path: Any) -> None:
    """Ready, answering, and saying that the cache is degraded."""
    service = serve(f'{banking}[cache]\nurl = "unix://{tmp_path}/nobody.sock"\n')
    assert service.client.get("/ready").json() == {"status": "ready", "degraded": ["cache"]}
    assert service.answer("I lost my card")["source"] == "local"
    assert service.answer("I lost my card")["source"] == "local"


def test_redis_is_used_again_when_it_is_back(serve: Callable[..., Any], banking: str) -> None:
    """After SIGCONT the breaker's probe closes it: hits again, without a restart."""
    service = serve(banking)
    service.answer("I lost my card")
    process = service.redis
    process.send_signal(signal.SIGSTOP)
    try:
        service.wait_for(lambda: [service.answer("I lost my card"), service.client.get("/ready").json()][1]["degraded"])
    finally:
        process.send_signal(signal.SIGCONT)
    service.wait_for(lambda: service.client.get("/ready").json()["degraded"] == [])
    service.wait_for(lambda: service.answer("I lost my card")["source"] == "cache")
    service.wait_for(lambda: "cache_available" in service.output)
    states = [line for line in service.output.splitlines() if "cache_available" in line or "cache_unavailable" in line]
    assert len(states) == 2
