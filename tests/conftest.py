"""What all tests share: no keys in the environment, state in temporary folders, and a real service to start."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 180  # the first start on a machine exports and quantizes the encoder

#: The provider keys of every service that is started. Nothing but the provider's socket may ever see them.
PROVIDER_KEYS = {
    "ANTHROPIC_API_KEY": "sk-ant-CANARY-of-anthropic-0123456789",
    "OPENAI_API_KEY": "sk-CANARY-of-openai-0123456789",
}
#: Of a text, what is looked for; a shorter one, or one of fewer different letters, is too common to be recognized.
SHORTEST, LOOKED_FOR, LETTERS = 12, 40, 6
#: Different texts of one service that are looked for: those of a long load are alike.
MOST_TEXTS = 500


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
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def found_in(places: Mapping[str, bytes], canaries: Iterable[str]) -> list[str]:
    """Which canary stands where."""
    return [
        f"{canary!r} stands in {name}"
        for canary in canaries
        for name, data in places.items()
        if canary.encode("utf-8", "surrogatepass") in data
    ]


def held_by_redis(url: str) -> bytes:
    """Every key and value, uncompressed (its files are not); nothing if it does not answer."""
    import redis

    held: list[Any] = []
    try:
        with redis.Redis.from_url(url, socket_timeout=2) as client:
            for key in client.scan_iter(count=1000):
                kind = client.type(key)
                held += [key, client.hgetall(key) if kind == b"hash" else client.get(key)]
    except (redis.ConnectionError, redis.TimeoutError):
        pass
    return b"".join(item if isinstance(item, bytes) else repr(item).encode() for item in held)


@contextlib.contextmanager
def overheard(services: Sequence[Served]) -> Iterator[None]:
    """Whatever is sent with httpx meanwhile, by any client of the tests, is told to the service that it goes to."""
    send, send_async = httpx.Client.send, httpx.AsyncClient.send

    def to(request: httpx.Request) -> list[Served]:
        return [service for service in services if str(request.url).startswith(f"{service.url}/")]

    def heard(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        for service in (listening := to(request)):
            service.overhear(request)
        response = send(client, request, **options)
        for service in listening:
            service.overhear_answer(response)
        return response

    async def heard_async(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        for service in (listening := to(request)):
            service.overhear(request)
        response = await send_async(client, request, **options)
        for service in listening:
            service.overhear_answer(response)
        return response

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.Client, "send", heard)
        patch.setattr(httpx.AsyncClient, "send", heard_async)
        yield


class Simulated(Process):
    """`crossover simulate-frontier`, listening at `url`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = ["simulate-frontier", "--latency-ms", "5", *arguments]
        super().__init__(command, folder, CROSSOVER_STATE_DIR=str(folder))
        self.wait_for(lambda: self.output.endswith("}\n"))
        self.url = json.loads(self.output)["url"]

    @property
    def calls(self) -> int:
        """That have reached it."""
        return int(httpx.get(f"{self.url}/_sim/calls").json()["calls"])

    @property
    def bill(self) -> dict[str, Any]:
        """Totals by format and model in `bill`, each reply in `items`."""
        return dict(httpx.get(f"{self.url}/_sim/bill?items=1").json())


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
        found = re.search(r'^url = "(.*)"', config, re.MULTILINE)
        self.cache_url = found[1] if found else "embedded"
        #: What must be nowhere but where it belongs: all that was sent.
        self.texts: set[str] = set()
        self.keys: set[str] = set()
        self.secrets = {*PROVIDER_KEYS.values(), *re.findall(r"\b[0-9a-f]{64}\b", config)}
        self.said: list[str] = []  # secrets that stood in a response

    def overhear(self, request: httpx.Request) -> None:
        """Its keys and texts."""
        headers = request.headers
        self.keys |= {headers.get("x-api-key", ""), headers.get("authorization", "").rpartition(" ")[2]}
        self.secrets |= {key for key in self.keys if len(key) >= SHORTEST}
        with contextlib.suppress(ValueError, RecursionError, httpx.RequestNotRead):  # not JSON, or sent bit by bit
            body = json.loads(request.content)
            for sent in [body.get("input"), body.get("text")] if isinstance(body, dict) else []:
                new = [text for text in (sent if isinstance(sent, list) else [sent]) if isinstance(text, str)]
                self.texts.update(new[: MOST_TEXTS - len(self.texts)])

    def overhear_answer(self, response: httpx.Response) -> None:
        """No key has anything to look for in it."""
        body = response.read() if response.is_closed else b""  # a stream is the test's own
        body += repr(response.headers.raw).encode()
        self.said += found_in({f"the response of {response.request.url.path}": body}, self.secrets)

    def _status_page(self) -> bytes | None:
        """As the first of those sees it who were let in; None if there were such keys, and it is shown to none."""
        tenants = set(re.findall(r'^sha256 = "([0-9a-f]{64})"', self.config.read_text(), re.MULTILINE))
        good = [key for key in self.keys if hashlib.sha256(key.encode()).hexdigest() in tenants]
        for key in good or [""]:
            with contextlib.suppress(httpx.HTTPError):
                reply = httpx.get(f"{self.url}/v1/status", headers={"x-api-key": key})
                if reply.status_code == 200:
                    return reply.content
        return None if good else b""

    def leaks(self, more: Iterable[str] = ()) -> list[str]:
        """Where a text or a secret of this service stands that should not; `more` is looked for as well. Looks into
        its log, every file of its state folder, every value in its Redis, metrics and status. And whether it could look
        at the status."""
        found: list[str] = []
        places = {"the log": self.log.read_bytes()}
        for path in self.state.rglob("*"):
            if path.is_file() and path.name != "cache.secret":
                with contextlib.suppress(FileNotFoundError):  # a draft, or a journal that is done with
                    places[f"the file {path.relative_to(self.state)}"] = path.read_bytes()
        if self.process.poll() is None:
            for path in ("/metrics", "/ready"):
                with contextlib.suppress(httpx.HTTPError):
                    places[path] = httpx.get(f"{self.url}{path}").content
            if (status := self._status_page()) is None:
                found.append("none of the tenants' keys that were sent opens /v1/status: it was not searched")
            places["/v1/status"] = status or b""
            if self.cache_url != "off":
                places["Redis"] = held_by_redis(self.redis_url)
        secret = self.state / "cache.secret"
        found += found_in(places, {*self.secrets, *more, *([secret.read_text()] if secret.exists() else [])})
        if "store_preview = true" in self.config.read_text():  # then Redis may have texts
            places = {name: data for name, data in places.items() if name != "Redis" and "redis/" not in name}
        texts = {text.strip()[:LOOKED_FOR] for text in self.texts}
        return self.said + found + found_in(places, {t for t in texts if len(t) >= SHORTEST and len(set(t)) >= LETTERS})

    def classify(self, text: str | list[str], headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return self.client.post("/v1/classify", json={"input": text, **body}, headers=headers)

    def answer(self, text: str, **body: Any) -> dict[str, Any]:
        """The one result; fails unless it is an answer."""
        response = self.classify(text, **body)
        assert response.status_code == 200, response.text
        (result,) = response.json()["results"]
        return result

    @property
    def redis_url(self) -> str:
        """Of the Redis that it uses."""
        from router.cache.embedded import EmbeddedRedis

        return EmbeddedRedis(self.state, 16).url if self.cache_url == "embedded" else self.cache_url

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
    """`serve(config)` starts the service with a fresh state folder; all are ended after the module, and all they have
    left anywhere is searched for texts and secrets."""
    started: list[Served] = []

    def start(config: str, *arguments: str, **environment: str) -> Served:
        folder = tmp_path_factory.mktemp("served")
        environment.setdefault("CROSSOVER_STATE_DIR", str(folder / "state"))
        environment.setdefault("HF_HUB_OFFLINE", "1")
        environment = {**PROVIDER_KEYS, **environment}
        service = Served(config, folder, *arguments, **environment)
        started.append(service)
        return service

    with overheard(started):
        yield start
    leaks = [leak for service in started for leak in service.leaks()]
    with contextlib.ExitStack() as ending:  # one that does not end keeps no other from it
        for service in started:
            ending.callback(service.stop)
            ending.callback(service.client.close)
    leaks += [leak for service in started for leak in service.leaks()]  # what is written last
    assert leaks == [], "\n".join(sorted(set(leaks)))


@pytest.fixture(scope="module")
def simulate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Simulated]]:
    """`simulate(*arguments)` starts the simulated frontier."""
    started: list[Simulated] = []

    def start(*arguments: str) -> Simulated:
        started.append(Simulated(tmp_path_factory.mktemp("simulated"), *arguments))
        return started[-1]

    yield start
    for process in started:
        process.stop()
        assert found_in({"the simulator's output": process.log.read_bytes()}, PROVIDER_KEYS.values()) == []


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
