"""Several processes on one port: what a killed one takes along, who pays, who speaks for all, who is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from local_model.engines import cores
from local_model.types import LoadError
from router import local_tier
from router.cli.worker import Adopt, Begin, Opened, Took, pack, receive
from router.cli.workers import Child, Workers
from router.config_file import Loaded
from router.config_file import load as load_config
from router.reload import Adopted, RefusedError
from router.siblings import Place
from router.wiring import model_settings, task_specs

UNSURE = ["hmm", "hello there", "what about tuesday", "is it raining", "thanks", "blue or green"]


def told_of_workers(service: Any) -> list[dict[str, Any]]:
    """By /v1/status. On a connection of its own: one that is kept may lead to a worker that is dead by now."""
    return httpx.get(f"{service.url}/v1/status", timeout=10).json()["workers"]


def all_ready(service: Any) -> list[dict[str, Any]]:
    """Once they are."""

    def ready() -> Any:
        told = told_of_workers(service)
        return told if all(each.get("state") == "ready" for each in told) else None

    return service.wait_for(ready)


def gone(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def test_a_killed_worker_breaks_only_its_own_connections_and_nobody_sees_a_503(
    serve: Callable[..., Any], banking: str, load: Any, texts: list[str]
) -> None:
    """It is replaced, and the new one takes connections only once it is warm."""
    service = serve(banking, "--workers", "2")
    first, second = all_ready(service)

    fresh: list[int] = []

    def replaced() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            fresh.append(httpx.post(f"{service.url}/v1/classify", json={"input": texts[0]}, timeout=30).status_code)
            other = told_of_workers(service)[1]
            return other.get("state") == "ready" and other["pid"] != second["pid"]
        return False

    async def script(running: Any) -> None:
        await running.answered(100)
        psutil.Process(second["pid"]).send_signal(signal.SIGKILL)
        while not await asyncio.to_thread(replaced):
            pass
        await running.answered(100)

    traffic = load(service.url, texts)
    asyncio.run(traffic.run(script))
    assert {status for _, status, _ in traffic.replies} == {200}
    assert set(fresh) == {200}
    assert len(traffic.broken) <= traffic.workers, "a connection breaks once"
    assert all_ready(service)[0]["pid"] == first["pid"]
    assert '"worker":1,"why":"a worker ended: signal 9"' in service.output


@pytest.mark.parametrize(
    "limits", ["usd_per_day = {}", "usd_per_day = 1\ntasks = {{ banking = {} }}"], ids=["day", "task"]
)
def test_a_budget_holds_across_three_workers_and_a_restart(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str], load: Any, limits: str
) -> None:
    """Spend never exceeds the limit, and the ledger is the simulator's bill, token by token."""
    frontier = simulate()
    limit = 0.01
    more = f'[budget]\n{limits.format(limit)}\n[cache]\nurl = "off"\n'
    config = with_frontier(frontier.url, more, threshold=1.0)
    service = serve(config, "--workers", "3")
    all_ready(service)

    async def script(running: Any) -> None:
        async with asyncio.timeout(120):
            while {body["results"][0]["degraded"] for _, _, body in running.replies[-60:]} != {"budget"}:
                await running.answered(20)

    traffic = load(service.url, UNSURE, workers=12)
    asyncio.run(traffic.run(script))
    assert traffic.broken == []
    metrics = httpx.get(f"{service.url}/metrics").text.splitlines()
    paid = [line for line in metrics if line.startswith("crossover_provider_attempts_total{") and "answered" in line]
    assert len(paid) > 1, "more than one worker has paid"
    assert service.stop() == 0

    bill = sum(map(Counter, frontier.bill["bill"].values()), Counter())  # the second fits where the first won't
    with sqlite3.connect(service.state / "ledger.db") as books:
        total = "SELECT COUNT(*), SUM(cost_nano), SUM(input), SUM(output) FROM attempts WHERE state = 'settled'"
        count, spent, tokens_in, tokens_out = books.execute(total).fetchone()
        (others,) = books.execute("SELECT COUNT(*) FROM attempts WHERE state NOT IN ('settled', 'unbilled')").fetchone()
    assert others == 0
    assert 0.5 * limit * 1e9 < spent <= limit * 1e9
    assert (bill["calls"], bill["input"], bill["output"]) == (count, tokens_in, tokens_out)

    again = serve(config, "--workers", "3", CROSSOVER_STATE_DIR=str(service.state))
    assert {again.answer(f"{text} again")["degraded"] for text in UNSURE * 3} == {"budget"}
    assert sum(map(Counter, frontier.bill["bill"].values()), Counter()) == bill


def test_whichever_worker_is_asked_speaks_for_all(serve: Callable[..., Any], banking: str) -> None:
    """Each sample names its worker; one that does not answer is told as down, within a second."""
    service = serve(banking, "--workers", "2")
    told = all_ready(service)
    assert len({each["config"] for each in told}) == 1
    for _ in range(20):  # a connection each: the kernel spreads them
        httpx.post(f"{service.url}/v1/classify", json={"input": "I lost my card"})
    lines = httpx.get(f"{service.url}/metrics").text.splitlines()
    requests = [line.split() for line in lines if line.startswith("crossover_requests_total")]
    answered = {name: float(value) for name, value in requests}
    assert set(answered) == {f'crossover_requests_total{{status="200",worker="{n}"}}' for n in (0, 1)}
    assert sum(answered.values()) == 20
    assert lines.count("# TYPE crossover_requests_total counter") == 1
    assert {'crossover_worker_up{worker="0"} 1.0', 'crossover_worker_up{worker="1"} 1.0'} <= set(lines)

    stalled = psutil.Process(told[1]["pid"])
    stalled.suspend()
    try:

        def down() -> bool:
            with contextlib.suppress(httpx.TimeoutException):  # where the stalled one was asked itself
                text = httpx.get(f"{service.url}/metrics", timeout=2).text
                return {'crossover_worker_up{worker="0"} 1.0', 'crossover_worker_up{worker="1"} 0.0'} <= set(
                    text.splitlines()
                )
            return False

        service.wait_for(down)
    finally:
        stalled.resume()


def test_the_parent_is_who_is_found_and_asked_to_end(serve: Callable[..., Any], banking: str) -> None:
    """Run file, one Redis for all, a share of the cores each; after SIGTERM nothing is left, and the exit code is 0."""
    service = serve(banking, "--workers", "2")
    all_ready(service)
    (note,) = (service.state / "run").glob("*.json")
    assert note.stem == str(service.process.pid)
    encoders = httpx.get(f"{service.url}/v1/status").json()["model"]["encoders"]
    assert [encoder["threads"] for encoder in encoders] == [max(1, cores() // 2)]
    family = psutil.Process(service.process.pid).children(recursive=True)
    redis = service.redis
    assert sorted(member.pid for member in family if "redis" in member.name()) == [redis.pid]
    assert redis.ppid() == service.process.pid

    redis.kill()  # only the parent can start it again

    def started_again() -> bool:
        with contextlib.suppress(psutil.NoSuchProcess, ValueError):  # its file is being written
            return service.redis.pid != redis.pid and service.redis.is_running()
        return False

    service.wait_for(started_again)
    family = psutil.Process(service.process.pid).children(recursive=True)
    assert service.stop() == 0
    assert all(gone(member) for member in family)
    assert list((service.state / "run").glob("*.json")) == []
    assert service.output.count('"event":"worker_died"') == 0


def test_a_model_that_can_not_be_loaded_is_told_once(tmp_path: Path) -> None:
    """Exit 70, as from one process."""
    folder = tmp_path / "head"
    shipped = Path(__file__).resolve().parents[2] / "local_model" / "heads" / "banking77"
    folder.mkdir()
    for file in shipped.iterdir():
        (folder / file.name).write_bytes(file.read_bytes() if file.suffix != ".safetensors" else b"no weights")
    config = tmp_path / "crossover.toml"
    config.write_text(f'[tasks.t]\nhead = "{folder}"\n[cache]\nurl = "off"\n')
    command = [sys.executable, "-m", "router", "serve", "--config", str(config), "--port", "0", "--workers", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 70
    assert done.stderr.count("crossover: ") == 1
    assert ".safetensors" in done.stderr.split("crossover: ")[1]
    assert done.stderr.count('"event":"load_failed"') == 1
    assert "Traceback" not in done.stderr


def test_workers_whose_parent_was_killed_drain(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str]
) -> None:
    """What is in flight is answered, then they end: no orphan keeps the port."""
    frontier = simulate("--latency-ms", "700")
    service = serve(with_frontier(frontier.url), "--workers", "2")
    all_ready(service)
    parent = psutil.Process(service.process.pid)
    orphans = [child for child in parent.children() if "router.cli.worker" in child.cmdline()]
    redis = service.redis
    assert len(orphans) == 2

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
            asking = asyncio.create_task(client.post("/v1/classify", json={"input": "hmm"}))
            while not await asyncio.to_thread(lambda: frontier.calls):
                await asyncio.sleep(0.01)
            parent.kill()
            return await asking

    try:
        assert asyncio.run(main()).json()["results"][0]["source"] == "frontier"
        deadline = time.monotonic() + 20
        while not all(gone(orphan) for orphan in orphans):
            assert time.monotonic() < deadline, "still there"
            time.sleep(0.05)
    finally:
        redis.kill()  # the next service of this state folder would have taken it over


def test_the_parent_holds_neither_a_model_library_nor_a_web_framework() -> None:
    """It is small, and has nothing that could break."""
    code = (
        "import sys, router.cli.serve, router.cli.workers, router.telemetry, router.logs, router.cache.embedded\n"
        "print(*sorted({'torch', 'onnxruntime', 'transformers', 'numpy', 'litestar', 'uvicorn', 'anthropic', 'openai'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(("device", "gpus", "of"), [("auto", 1, 2), ("cuda:1", 8, 2), ("cuda", 2, 3)])
def test_more_workers_than_gpus_are_refused_with_the_memory_they_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, of: int
) -> None:
    """One worker keeps a GPU busy. (No GPU here: what the driver says is played.)"""
    path = tmp_path / "crossover.toml"
    path.write_text(f'[tasks.t]\nhead = "banking77"\n[model]\ndevice = "{device}"\n')
    loaded = load_config(path, {})
    monkeypatch.setattr(local_tier.engines, "has_cuda", lambda: True)
    monkeypatch.setattr(local_tier, "_gpus", lambda: gpus)
    settings, specs = model_settings(loaded, of), task_specs(loaded)
    with pytest.raises(LoadError, match=r"server\.workers = \d, but \d GPU.* about \d\.\d GB .*together \d\.\d GB"):
        local_tier.on_a_gpu_of_its_own(settings, specs, Place(0, of))
    if device == "auto":
        monkeypatch.setattr(local_tier, "_gpus", lambda: of)
        assert local_tier.on_a_gpu_of_its_own(settings, specs, Place(1, of)).device == "cuda:1"
        monkeypatch.setattr(local_tier.engines, "has_cuda", lambda: False)
        assert local_tier.on_a_gpu_of_its_own(settings, specs, Place(1, of)).device == "auto"


def test_each_of_several_workers_gets_its_share_of_the_cores(tmp_path: Path) -> None:
    """A number of threads in the config is each worker's own."""
    path = tmp_path / "crossover.toml"
    path.write_text('[tasks.t]\nhead = "banking77"\n')
    shares = [model_settings(load_config(path, {}), of).threads for of in (1, 2, 10 * (os.cpu_count() or 1))]
    assert shares == [0, max(1, cores() // 2), 1]
    named = load_config(path, {"CROSSOVER_MODEL__THREADS": "3"})
    assert model_settings(named, 4).threads == 3


def test_a_worker_that_stands_still_is_replaced(serve: Callable[..., Any], banking: str) -> None:
    """The kernel would go on giving it connections."""
    service = serve(banking, "--workers", "2")
    stuck = all_ready(service)[1]["pid"]
    psutil.Process(stuck).suspend()

    def replaced() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            other = httpx.get(f"{service.url}/v1/status", timeout=2).json()["workers"][1]
            return other.get("state") == "ready" and other["pid"] != stuck
        return False

    service.wait_for(replaced)
    assert '"event":"worker_stalled"' in service.output
    assert service.stop() == 0


# a reload that goes wrong in one of them ------------------------------------------------------------------------------


def key(name: str) -> str:
    """Of the tenant: "a-key-that-" and its name."""
    digest = hashlib.sha256(f"a-key-that-{name}".encode()).hexdigest()
    return f'[[auth.keys]]\ntenant = "{name}"\nsha256 = "{digest}"\n'


def test_a_worker_that_can_not_take_a_config_over_is_replaced(serve: Callable[..., Any], banking: str) -> None:
    """Or a key that was taken out would be good there for ever, while the log says `reloaded`."""
    service = serve(banking + key("stays") + key("goes"), "--workers", "2")

    def served() -> list[dict[str, Any]]:
        """By both of them, once they are ready."""
        reply = httpx.get(f"{service.url}/v1/status", headers={"x-api-key": "a-key-that-stays"}, timeout=10)
        workers = reply.json().get("workers", [])
        return workers if [each.get("state") for each in workers] == ["ready", "ready"] else []

    before = service.wait_for(served)
    usual = resource.prlimit(before[1]["pid"], resource.RLIMIT_NOFILE)
    resource.prlimit(before[1]["pid"], resource.RLIMIT_NOFILE, (3, usual[1]))  # it can open nothing more
    service.config.write_text(banking + key("stays"))
    service.wait_for(lambda: '"event":"reloaded"' in service.output)
    assert '"event":"reload_failed","level":"error"' in service.output.replace('"worker":1,', "")
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(before[1]["pid"], resource.RLIMIT_NOFILE, usual)

    def replaced() -> Any:
        after = served()
        return after if after and after[1]["pid"] != before[1]["pid"] else None

    after = service.wait_for(replaced)
    assert after[0]["pid"] == before[0]["pid"]
    assert {each["config"] for each in after} == {after[0]["config"]} != {before[0]["config"]}
    for _ in range(20):  # a connection each: the kernel spreads them
        reply = httpx.get(f"{service.url}/v1/tasks", headers={"x-api-key": "a-key-that-goes"})
        assert reply.status_code == 401


@contextlib.asynccontextmanager
async def played(workers: Workers, loaded: Loaded) -> AsyncIterator[tuple[Child, Any, Any]]:
    """A child of `workers` that serves `loaded`, and both ends of the worker's side, which the test plays."""
    mine, theirs = socket.socketpair()
    with subprocess.Popen([sys.executable, "-c", ""]) as process:  # noqa: ASYNC220 - it ends at once
        child = Child(process, Place(0, 2), loaded)
        attended = asyncio.create_task(child.attend(mine, 0, workers._has_opened))
        reader, writer = await asyncio.open_unix_connection(sock=theirs)
        try:
            assert isinstance(await receive(reader), Begin)
            async with workers._adopting:  # the others are being told of a new config, while this one opens
                writer.write(pack(Opened()))
                while not child.open:
                    await asyncio.sleep(0)
                yield child, reader, writer
            async with asyncio.timeout(10):
                await asyncio.gather(*workers._catching_up)
        finally:
            writer.close()
            await attended


@pytest.fixture
def configs(tmp_path: Path, banking: str) -> list[Loaded]:
    path = tmp_path / "crossover.toml"
    path.write_text(banking)
    return [load_config(path, {}) for _ in range(2)]


def test_a_worker_that_dies_of_a_reload_holds_up_no_other(configs: list[Loaded], tmp_path: Path) -> None:
    """It opens while a reload is under way, is told of it, and dies of it: whoever would tell it once more does not
    wait for an answer that never comes."""
    old, new = configs

    async def main() -> None:
        workers = Workers(new, 0, str(tmp_path), None, lambda: None)
        async with played(workers, old) as (child, reader, writer):
            adopting = asyncio.create_task(child.adopt(new))
            assert isinstance(await receive(reader), Adopt)
            writer.close()
            with pytest.raises(RefusedError, match="died of it"):
                await adopting
        with pytest.raises(RefusedError, match="gone"):
            async with asyncio.timeout(10):
                await child.adopt(new)

    asyncio.run(main())


def test_a_worker_that_opens_during_a_reload_is_told_of_it_once(configs: list[Loaded], tmp_path: Path) -> None:
    old, new = configs

    async def main() -> None:
        workers = Workers(new, 0, str(tmp_path), None, lambda: None)
        async with played(workers, old) as (child, reader, writer):
            adopting = asyncio.create_task(child.adopt(new))
            assert isinstance(await receive(reader), Adopt)
            writer.write(pack(Took(Adopted([], 0.0, [], []))))
            await adopting

    asyncio.run(main())
