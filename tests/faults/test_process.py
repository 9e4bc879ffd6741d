"""kill -9 at any moment, SIGTERM, a model that can't be loaded."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
