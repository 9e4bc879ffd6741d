"""The adapters, unchanged, against a server that is not ours: LiteLLM's proxy with mocked answers.

    python bench/compatibility.py

Chat, Responses and, without tools, Anthropic Messages. For Decisions LiteLLM has a route and no mock: there it passes
the call on to our simulator, so what is somebody else's is the proxy's reading of request and reply. Nothing may leave
the machine: every proxy variable leads to a loopback port that counts who comes, and a leak fails the bar.
"""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import harness
import litellm_proxy
import psutil
from harness import Bar
from litellm_proxy import Proxy

from providers.build import build
from providers.settings import Settings
from providers.simulator import Simulator
from providers.types import Answer, BadAnswer, Label, ProviderError, Question, RateLimited

NAME = "compatibility"
LABELS = ("card_arrival", "lost_or_stolen_card", "exchange_rate")
ANSWER = "lost_or_stolen_card"
TEXT = "I lost my card yesterday"
CALLS = 20
TIMEOUT_S = 30.0
#: What LiteLLM is told to answer.
MOCKS = {
    "an answer": json.dumps({"label": ANSWER}),
    "a label outside the set": json.dumps({"label": "not_in_the_set"}),
    "prose": f"I think it is {ANSWER}.",
    "a 429": "litellm.RateLimitError",
}
NONSENSE = {"a label outside the set": BadAnswer, "prose": BadAnswer}


class Kind(NamedTuple):
    """A wire format: its path on the proxy, LiteLLM's model, what follows the proxy's address, and what our adapter
    must make of the mocks that are no answer."""

    path: str
    model: str
    suffix: str
    errors: Mapping[str, type[ProviderError]]


KINDS = {
    "openai-chat": Kind("/v1/chat/completions", "openai/gpt-6-luna", "/v1", {**NONSENSE, "a 429": RateLimited}),
    "openai": Kind("/v1/responses", "openai/gpt-6-luna", "/v1", NONSENSE),  # no mock of a 429: it is said as an answer
    "anthropic": Kind("/v1/messages", "anthropic/claude-haiku-5-5", "", {**NONSENSE, "a 429": RateLimited}),
    "openai-decisions": Kind("/v1/decisions", "openai/gpt-6-luna", "/v1", {}),
}


class Seen(NamedTuple):
    """What became of one kind's calls; errors by name."""

    answers: list[Answer | ProviderError]
    errors: dict[str, str]  # by mock
    wrong_key: str  # without a database LiteLLM tells it with a 400
    wire_calls: int  # that LiteLLM's access log has of `answers`


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="crossover-bench-") as name:
        try:
            return asyncio.run(compare(Path(name)))
        except (OSError, SystemExit) as error:
            why = str(error)
    bars = [bar for kind in KINDS for bar in bars_of(kind, None)]
    return harness.finish(NAME, bars=bars, not_run={"LiteLLM's proxy": why})


async def compare(folder: Path) -> int:
    """Raises `OSError` or `SystemExit`: LiteLLM is not installed, or it does not start."""
    async with Simulator() as simulator:
        with counted() as (trap, url), litellm_proxy.running(folder, config(simulator.url), **no_way_out(url)) as proxy:
            at_start = trap.count
            with watched(proxy.server.pid) as strangers:
                seen = {kind: await ask(proxy, kind) for kind in KINDS}
            leaks = trap.count - at_start
    bars = [bar for kind, each in seen.items() for bar in bars_of(kind, each)]
    outside = leaks + len(strangers)
    bars.append(Bar("connections to anything but loopback", outside, "= 0", "", outside == 0))
    notes = [f"{kind}: {told(each)}" for kind, each in seen.items()]
    tried = f"{at_start} times while it started, and {leaks} times after"
    notes.append(f"LiteLLM {litellm_proxy.version()} tried to reach something outside {tried}")
    return harness.finish(NAME, bars=bars, rows=[row(kind, each) for kind, each in seen.items()], notes=notes)


def config(simulator: str) -> str:
    """LiteLLM's. A model with a mock has an address where nobody listens: a mock that is not one fails."""
    dead = f"http://127.0.0.1:{free_port()}"
    models = []
    for name, kind in KINDS.items():
        for mock in ("an answer", *kind.errors):
            given: dict[str, Any] = {"model": kind.model, "api_key": "none", "api_base": dead + kind.suffix}
            given |= {"mock_response": MOCKS[mock]} if kind.errors else {"api_base": simulator + kind.suffix}
            models.append({"model_name": named(name, mock), "litellm_params": given})
    # LiteLLM itself must not try again: one call is one call.
    settings = {"num_retries": 0, "telemetry": False}
    return json.dumps({"model_list": models, "litellm_settings": settings, "router_settings": {"num_retries": 0}})


def named(name: str, mock: str) -> str:
    return f"{name}-{mock}".replace(" ", "-")


def no_way_out(trap: str) -> dict[str, str]:
    ways = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    variables = {name: trap for way in ways for name in (way, way.lower())}
    return {**variables, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}


async def ask(proxy: Proxy, name: str) -> Seen:
    path, _, suffix, errors = KINDS[name]
    question = Question("bank", TEXT, tuple(Label(label) for label in LABELS), "Messages to a bank.")

    async def call(mock: str, key: str = proxy.key) -> Answer | ProviderError:
        url = proxy.server.url + suffix
        settings = Settings(base_url=url)
        provider = build(cast("Any", name), name="litellm", model=named(name, mock), api_key=key, settings=settings)
        try:
            return await provider.ask(question, timeout=TIMEOUT_S)
        except ProviderError as error:
            return error
        finally:
            await provider.close()

    before = logged(proxy, path)
    answers = [await call("an answer") for _ in range(CALLS)]
    wire_calls = logged(proxy, path, at_least=before + CALLS) - before
    found = {mock: type(await call(mock)).__name__ for mock in errors}
    wrong_key = type(await call("an answer", "sk-this-is-no-key")).__name__
    return Seen(answers, found, wrong_key, wire_calls)


def logged(proxy: Proxy, path: str, *, at_least: int = 0) -> int:
    """Calls of the path in LiteLLM's access log, which is written a little later than they are answered."""
    until = time.monotonic() + 5
    while True:
        count = proxy.log.read_text(errors="replace").count(f'"POST {path} ')
        if count >= at_least or time.monotonic() > until:
            return count
        time.sleep(0.05)


def plausible(answer: Answer) -> bool:
    """Each bucket a count, something was read and something written."""
    used = answer.usage
    buckets = (used.input, used.cache_read, used.cache_write_5m, used.cache_write_1h)
    return min(*buckets, used.output) >= 0 and sum(buckets) > 0 and used.output > 0


def bars_of(kind: str, seen: Seen | None) -> list[Bar]:
    """None: not run."""
    good = [each for each in seen.answers if isinstance(each, Answer)] if seen else []
    checks = [
        ("answers in the set", sum(each.label == ANSWER for each in good), CALLS),
        ("usage in plausible buckets", sum(map(plausible, good)), CALLS),
        ("wire calls", seen.wire_calls if seen else 0, CALLS),
    ]
    if wanted := KINDS[kind].errors:
        right = sum(seen.errors[mock] == error.__name__ for mock, error in wanted.items()) if seen else 0
        checks.append(("what is no answer is an error of its kind", right, len(wanted)))
    return [
        Bar(f"{kind}: {name}", value if seen else None, f"= {target}", "", value == target if seen else None)
        for name, value, target in checks
    ]


def row(kind: str, seen: Seen) -> dict[str, Any]:
    first = next((each for each in seen.answers if isinstance(each, Answer)), None)
    usage = None if first is None else {name: getattr(first.usage, name) for name in first.usage.__struct_fields__}
    return {
        "kind": kind,
        "usage_of_an_answer": usage,
        "model": None if first is None else first.model,
        **seen._asdict(),
        "answers": dict(Counter(type(each).__name__ for each in seen.answers)),
    }


def told(seen: Seen) -> str:
    found = row("", seen)
    usage = found["usage_of_an_answer"] or {}
    buckets = ", ".join(f"{name} {count}" for name, count in usage.items() if count and name != "estimated")
    booked = "booked as estimated: a call can't have used what the mock says" if usage.get("estimated") else "believed"
    errors = ", ".join(f"{mock}: {error}" for mock, error in {**seen.errors, "a wrong key": seen.wrong_key}.items())
    return f"{found['answers']} from {found['model']}; usage {buckets}, {booked}; {errors}"


# what must not happen -------------------------------------------------------------------------------------------------


class Trap:
    """Counts who connects."""

    def __init__(self) -> None:
        self.count = 0


@contextmanager
def counted() -> Iterator[tuple[Trap, str]]:
    """A loopback port that takes connections, counts them, and hangs up."""
    trap = Trap()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            trap.count += 1
            connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield trap, f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # or accept would wait on
        listener.close()
        thread.join()


@contextmanager
def watched(pid: int) -> Iterator[set[str]]:
    """Addresses beyond loopback that the process and its children are seen connected to, looked at all the time."""
    found: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            found.update(outside(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def outside(pid: int) -> Sequence[str]:
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        remote = [c.raddr.ip for each in family for c in each.net_connections("inet") if c.raddr]
    except psutil.Error:
        return []
    return [ip for ip in remote if not ip.startswith("127.") and ip not in ("::1", "::ffff:127.0.0.1")]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    raise SystemExit(main())
