"""What all tests share: no keys in the environment, state in temporary folders, and a real service to start."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 180  # the first start on a machine exports and quantizes the encoder


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key of the person who runs the tests is used, and nothing is written to their state folder."""
    for name in list(os.environ):
        if name.endswith("_API_KEY") or (name.startswith("CROSSOVER_") and name != "CROSSOVER_CACHE_DIR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CROSSOVER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


class Process:
    """A `crossover` command that runs until the test is over. `output` is everything it wrote, both streams."""

    def __init__(self, arguments: list[str], folder: Path, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.state = Path(environment.get("CROSSOVER_STATE_DIR") or os.environ["CROSSOVER_STATE_DIR"])
        self.log = folder / f"{arguments[0]}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "router", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env={**os.environ, **environment},
            )
        self.url = ""

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, what: Callable[[], Any]) -> Any:
        """Poll until `what()` is true; fails with the process's output when it ends or time is up."""
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            with contextlib.suppress(httpx.HTTPError):
                if found := what():
                    return found
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        pytest.fail(f"ended or too slow (exit {self.process.poll()}):\n{self.output}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


class Served(Process):
    """`crossover serve`, ready to answer."""

    def __init__(self, config: str, folder: Path, *arguments: str, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "crossover.toml"
        self.config.write_text(config, encoding="utf-8")
        command = ["serve", "--config", str(self.config), "--port", "0", *arguments]
        super().__init__(command, folder, **environment)
        self.wait_for(lambda: "listening on " in self.output)
        self.url = self.output.split("listening on ")[1].split()[0]
        self.wait_for(lambda: httpx.get(f"{self.url}/ready").status_code == 200)
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def classify(self, text: str | list[str], headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return self.client.post("/v1/classify", json={"input": text, **body}, headers=headers)

    def answer(self, text: str, **body: Any) -> dict[str, Any]:
        """The one result; fails unless it is an answer."""
        response = self.classify(text, **body)
        assert response.status_code == 200, response.text
        (result,) = response.json()["results"]
        return result

    @property
    def redis(self) -> psutil.Process:
        """The embedded Redis of this service."""
        return psutil.Process(int((self.state / "redis" / "redis.pid").read_text()))

    def metric(self, start: str) -> float:
        """The sum of the metrics whose line starts so."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    """`serve(config)` starts the service with a fresh state folder; all are ended after the module."""
    started: list[Served] = []

    def start(config: str, *arguments: str, **environment: str) -> Served:
        folder = tmp_path_factory.mktemp("served")
        environment.setdefault("CROSSOVER_STATE_DIR", str(folder / "state"))
        environment.setdefault("HF_HUB_OFFLINE", "1")
        service = Served(config, folder, *arguments, **environment)
        started.append(service)
        return service

    yield start
    for service in started:
        service.client.close()
        service.stop()


@pytest.fixture(scope="module")
def simulate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Process]]:
    """`simulate(*arguments)` starts the simulated frontier; `.url` is where."""
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        folder = tmp_path_factory.mktemp("simulated")
        process = Process(
            ["simulate-frontier", "--latency-ms", "5", *arguments], folder, CROSSOVER_STATE_DIR=str(folder)
        )
        process.wait_for(lambda: process.output.endswith("}\n"))
        process.url = json.loads(process.output)["url"]
        started.append(process)
        return process

    yield start
    for process in started:
        process.stop()


BANKING = '[tasks.banking]\nhead = "banking77"\n'


@pytest.fixture(scope="module")
def with_frontier() -> Callable[..., str]:
    """A config text: the banking task and two providers at a simulator's URL."""

    def config(url: str, more: str = "", threshold: float = 0.8) -> str:
        return f"""{BANKING}
[tasks.banking.policy]
threshold = {threshold}
[providers.first]
kind = "anthropic"
model = "claude-haiku-5-5"
base_url = "{url}"
[providers.second]
kind = "openai"
model = "gpt-6-luna"
base_url = "{url}/v1"
{more}"""

    return config


@pytest.fixture(scope="module")
def banking() -> str:
    """A config text: the shipped task, nothing else."""
    return BANKING


def pytest_report_header() -> str:
    import anthropic
    import onnxruntime
    import openai
    import redis

    versions = {"redis-py": redis.__version__, "onnxruntime": onnxruntime.__version__}
    versions |= {"anthropic": anthropic.__version__, "openai": openai.__version__}
    return "real parts: " + ", ".join(f"{name} {version}" for name, version in versions.items())
