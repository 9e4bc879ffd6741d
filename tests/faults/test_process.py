"""kill -9 at any moment, SIGTERM, a model or a config that can't be loaded, thousands of requests."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest


def test_every_answered_request_has_its_row_after_kill_9(
    serve: Callable[..., Any],
    simulate: Callable[..., Any],
    with_frontier: Callable[..., str],
    load: Any,
    texts: list[str],
) -> None:
    """Hits, local answers and paid ones, killed under load; the books verify, and a restart serves on."""
    frontier = simulate()
    config = with_frontier(frontier.url, "[budget]\nusd_per_day = 100.0\n")
    service = serve(config)
    mixed = [*texts, *(f"hmm {number}" for number in range(200))]

    async def script(running: Any) -> None:
        await running.answered(120)
        service.process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(service.process.wait)

    traffic = load(service.url, mixed)
    asyncio.run(traffic.run(script, stop_on_error=True))
    ledger = service.state / "ledger.db"
    with sqlite3.connect(ledger) as books:
        recorded = {row[0] for row in books.execute("SELECT request_id FROM inputs")}
    answered = {body["id"] for _, status, body in traffic.replies if status == 200}
    assert len(answered) >= 120
    assert answered <= recorded
    verified = subprocess.run(
        [sys.executable, "-m", "router", "ledger", "verify", "--ledger", str(ledger)], capture_output=True, text=True
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr

    again = serve(config, CROSSOVER_STATE_DIR=str(service.state))
    assert again.answer("I lost my card")["label"] == "lost_or_stolen_card"
    assert again.stop() == 0


def test_sigterm_finishes_what_is_in_flight_and_leaves_nothing_behind(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str], load: Any
) -> None:
    """Exit 0, no request that was taken is dropped, no Redis and no run file stay."""
    frontier = simulate("--latency-ms", "200")
    service = serve(with_frontier(frontier.url))
    redis = service.redis

    async def script(running: Any) -> None:
        await running.answered(4)
        service.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(service.process.wait)

    traffic = load(service.url, [f"hmm {number}" for number in range(100)], workers=4)
    asyncio.run(traffic.run(script, stop_on_error=True))
    assert service.process.returncode == 0, service.output[-2000:]
    assert {status for _, status, _ in traffic.replies} <= {200, 503}
    with sqlite3.connect(service.state / "ledger.db") as books:
        (open_attempts,) = books.execute("SELECT COUNT(*) FROM attempts WHERE state = 'reserved'").fetchone()
    assert open_attempts == 0
    assert not redis.is_running() or redis.status() == "zombie"
    assert list((service.state / "run").glob("*.json")) == []


def test_whoever_stops_sending_to_a_red_replica_sees_no_failure(serve: Callable[..., Any], banking: str) -> None:
    """As a load balancer does it: kept connections, no retries, /ready asked now and then. After SIGTERM requests are
    answered as before, each answer ends its connection, and in the end the exit code is 0."""
    service = serve(banking + "[server]\nleave_s = 3\n")
    red = asyncio.Event()
    answers: list[httpx.Response] = []

    async def balancer(client: httpx.AsyncClient) -> None:
        while (await client.get("/ready")).status_code == 200:
            await asyncio.sleep(1)
        red.set()

    async def sender(client: httpx.AsyncClient, number: int) -> None:
        while not red.is_set():
            answers.append(await client.post("/v1/classify", json={"input": f"I lost my card {number}"}))

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(60):
            clients = [
                await stack.enter_async_context(httpx.AsyncClient(base_url=service.url, timeout=30)) for _ in range(5)
            ]
            async with asyncio.TaskGroup() as group:
                group.create_task(balancer(clients[0]))
                for number, client in enumerate(clients[1:]):
                    group.create_task(sender(client, number))
                while len(answers) < 100:
                    await asyncio.sleep(0.01)
                service.process.send_signal(signal.SIGTERM)
            late = await clients[1].post("/v1/classify", json={"input": "I lost my card"})
            assert (late.status_code, late.headers["connection"]) == (200, "close")
            told = (await clients[1].get("/ready")).json()
            assert told["type"] == "urn:crossover:problem:draining"

    asyncio.run(main())
    assert {answer.status_code for answer in answers} == {200}
    assert service.process.wait(30) == 0


def test_ctrl_c_waits_for_no_load_balancer(serve: Callable[..., Any], banking: str) -> None:
    """leave_s is for SIGTERM."""
    service = serve(banking + "[server]\nleave_s = 600\n")
    assert service.stop(signal.SIGINT) == 0


def test_a_request_that_hangs_holds_up_no_shutdown(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str]
) -> None:
    """drain_s is the most it gets; what it may have cost is in the books."""
    frontier = simulate("--fault", "hang:1.0")
    config = with_frontier(frontier.url, "[server]\ndeadline_ms = 600_000\ndrain_s = 1\n", threshold=1.0)
    service = serve(config)

    async def main() -> None:
        async with httpx.AsyncClient(base_url=service.url, timeout=120) as client:
            asking = asyncio.create_task(client.post("/v1/classify", json={"input": "hmm"}))
            while not await asyncio.to_thread(lambda: frontier.calls):
                await asyncio.sleep(0.01)
            service.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(service.process.wait, 30)
            with contextlib.suppress(httpx.HTTPError):
                assert (await asking).status_code == 503

    asyncio.run(main())
    assert service.process.returncode == 0
    with sqlite3.connect(service.state / "ledger.db") as books:
        assert books.execute("SELECT state FROM attempts").fetchall() == [("uncertain",)]


def test_health_and_readiness_ask_neither_redis_nor_a_provider_nor_for_a_key(
    serve: Callable[..., Any], banking: str
) -> None:
    """All of that can be away: a restart would not bring it back. What does not work is listed."""
    nowhere = """
[cache]
url = "redis://127.0.0.1:1/0"
[providers.away]
kind = "openai"
model = "gpt-6-luna"
base_url = "http://127.0.0.1:1/v1"
[[auth.keys]]
tenant = "t"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
"""
    service = serve(banking + nowhere)
    assert service.client.get("/health").json() == {"status": "ok"}
    service.wait_for(lambda: service.client.get("/ready").json()["degraded"] == ["cache"])
    assert service.client.get("/ready").status_code == 200


def test_a_config_full_of_mistakes_is_refused_at_once_and_shows_no_secret(tmp_path: Path) -> None:
    """Exit 2, all problems in one run, before anything heavy is imported."""
    config = tmp_path / "crossover.toml"
    config.write_text(
        """
[server]
port = 99999
workers = 0
[cache]
url = "redis//:hunter2@host"
[[auth.keys]]
tenant = "t"
sha256 = "not-a-hash-hunter2"
[providers.a]
kind = "anthropic"
model = "claude-haiku-5-5"
api_key_env = "sk-ant-hunter2"
"""
    )
    code = (
        "import sys\nfrom router.cli import main\n"
        f"sys.argv = ['crossover', 'serve', '--config', {str(config)!r}]\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, 'litestar' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout.split() == ["False", "False"]
    for said in (":3: server.port", ":4: server.workers", ":6: cache.url", ":9: auth.keys.0.sha256", ":13: ", "tasks"):
        assert said in done.stderr, said
    assert "hunter2" not in done.stderr


def test_thousands_of_requests_leave_nothing_behind(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str], load: Any
) -> None:
    """Hits, local and paid answers, provider faults, bad requests, callers who leave: descriptors and threads are back
    where they were, and memory has stopped growing."""
    frontier = simulate("--fault", "529:0.1", "--fault", "malformed:0.05", "--fault", "reset:0.05")
    service = serve(with_frontier(frontier.url, "[budget]\nusd_per_day = 0.05\n"))
    process = psutil.Process(service.process.pid)
    known = ["I lost my card", "how do I change my PIN", "has my card arrived", "hmm", "hello there"]

    async def bad(client: httpx.AsyncClient) -> None:
        await client.post("/v1/classify", content=b"{", headers={"content-type": "application/json"})
        await client.post("/v1/classify", json={"input": ["", "word " * 4000]})
        await client.post("/v1/classify", json={"input": "x", "task": "none"})
        await client.get("/metrics")
        with contextlib.suppress(httpx.TimeoutException):
            await client.post("/v1/classify", json={"input": "what about tuesday"}, timeout=0.002)

    def round_of(number: int, count: int) -> None:
        mixed = [*known, *(f"is it raining {number} {i}" for i in range(5))]

        async def script(running: Any) -> None:
            async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
                for _ in range(count // 100):
                    await asyncio.gather(running.answered(100), bad(client))

        traffic = load(service.url, mixed)
        asyncio.run(traffic.run(script))
        assert {status for _, status, _ in traffic.replies} == {200}

    def settled() -> tuple[int, int]:
        """Once its connections are closed."""
        service.client.close()
        service.client = httpx.Client(base_url=service.url, timeout=30)
        service.wait_for(lambda: not [c for c in process.net_connections("tcp") if c.status == "CLOSE_WAIT"])
        return process.num_fds(), process.num_threads()

    round_of(0, 1000)
    baseline, memory = settled(), process.memory_info().rss
    for number in (1, 2):
        round_of(number, 1500)
    after = service.wait_for(lambda: (now := settled())[0] <= baseline[0] + 2 and now)
    assert after[1] <= baseline[1]
    assert process.memory_info().rss - memory < 20_000_000


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_a_damaged_head_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    """Exit 70, one clear line, no traceback."""
    import shutil

    shipped = Path(__file__).resolve().parents[2] / "local_model" / "heads" / "banking77"
    head = tmp_path / "head"
    shutil.copytree(shipped, head)
    for file in head.glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    config = tmp_path / "crossover.toml"
    config.write_text(f'[tasks.t]\nhead = "{head}"\n[cache]\nurl = "off"\n')
    command = [sys.executable, "-m", "router", "serve", "--config", str(config), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 70
    assert ".safetensors" in done.stderr
    assert "Traceback" not in done.stderr
