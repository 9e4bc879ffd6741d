"""The demo, as a newcomer runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from router import runfile


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "router", "demo", "--out", str(out), *more]


def family(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


def test_the_demo_shows_all_three_sources_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Exit 0; answers, totals and report printed; page and chart written; no process stays."""
    done = subprocess.run(command(tmp_path / "out"), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("simulated frontier", "from cache", "from local", "from frontier", "0 degraded", "SIMULATED"):
        assert word in done.stdout, done.stdout
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.lower().startswith("<!doctype html")
    mine = str(tmp_path)
    assert not [
        p.pid for p in psutil.process_iter(["environ"]) if mine in str(p.info["environ"]) and p.pid != os.getpid()
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_kept_up_it_can_be_asked_and_found_and_ended(tmp_path: Path, number: signal.Signals) -> None:
    """`--keep`: the service answers, its run file is in the usual place, and Ctrl-C ends everything."""
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command(tmp_path / "out", "--keep"), stdout=output, stderr=subprocess.STDOUT)
    children: list[psutil.Process] = []
    try:
        while "stays up until Ctrl-C" not in log.read_text():
            assert process.poll() is None, log.read_text()
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        (note,) = runfile.running()
        answer = httpx.post(f"{note.url}/v1/classify", json={"input": "I lost my card"}).json()["results"][0]
        assert answer["label"] == "lost_or_stolen_card"
        children = family(psutil.Process(process.pid))
        assert len(children) >= 3  # frontier, service, Redis
    finally:
        process.send_signal(number)
        process.wait(60)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    assert runfile.running() == []
