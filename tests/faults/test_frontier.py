"""Providers down: a label, marked degraded. Text marked local never reaches a provider's socket."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest

from providers.settings import Kind

UNSURE = ["hmm", "hello there", "what about tuesday", "is it raining", "thanks", "blue or green", "I am hungry"]


class Tripwire:
    """A socket that counts who connects; no byte may ever reach it."""

    def __init__(self) -> None:
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            connection.close()

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        self._listener.close()


MODELS = {
    "anthropic": "claude-haiku-5-5",
    "openai": "gpt-6-luna",
    "openai-decisions": "gpt-6-luna",
    "openai-chat": "gpt-6-luna",
}


@pytest.fixture
def tripwires() -> Iterator[dict[str, Tripwire]]:
    """One for each kind of adapter."""
    wires = {kind: Tripwire() for kind in get_args(Kind)}
    yield wires
    for wire in wires.values():
        wire.close()


def test_killing_every_provider_under_load_gives_degraded_local_answers_and_no_5xx(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str], load: Any
) -> None:
    """Both adapters, real SDKs, a real socket that goes away."""
    frontier = simulate()
    more = '[cache]\nurl = "off"\n[budget]\nusd_per_day = 100.0\n'
    service = serve(with_frontier(frontier.url, more, threshold=1.0))

    async def script(running: Any) -> None:
        await running.answered(30)
        frontier.stop(signal.SIGKILL)
        await running.answered(80)

    traffic = load(service.url, UNSURE)
    asyncio.run(traffic.run(script))
    assert traffic.broken == []
    assert {status for _, status, _ in traffic.replies} == {200}
    results = [body["results"][0] for _, _, body in traffic.replies]
    assert {result["source"] for result in results[:20]} == {"frontier"}
    last = results[-30:]
    assert {(result["source"], result["degraded"]) for result in last} == {("local", "provider_unavailable")}
    assert all(result["label"] for result in last)
    assert service.classify("hmm", strict=True).status_code == 503


@pytest.mark.parametrize(
    ("policy", "body", "key"),
    [
        ('escalate = "never"', {}, ""),
        ("", {"route": "local"}, ""),
        ("", {}, 'escalate = "never"'),
    ],
    ids=["task", "request", "tenant"],
)
def test_what_may_not_leave_the_house_does_not(
    serve: Callable[..., Any], tripwires: dict[str, Tripwire], policy: str, body: dict[str, str], key: str
) -> None:
    """Not one connection to a provider of any kind, for texts that would otherwise be escalated; and they are not
    degraded."""
    digest = hashlib.sha256(b"a-key").hexdigest()
    providers = "".join(
        f'[providers.{kind}]\nkind = "{kind}"\nmodel = "{MODELS[kind]}"\nbase_url = "{wire.url}"\n'
        for kind, wire in tripwires.items()
    )
    service = serve(
        f"""
[tasks.banking]
head = "banking77"
over_length = "escalate"
[tasks.banking.policy]
threshold = 1.0
{policy}
{providers}
[budget]
usd_per_day = 100
[[auth.keys]]
tenant = "t"
sha256 = "{digest}"
{key}
"""
    )
    headers = {"x-api-key": "a-key"}
    long = "word " * 2000
    response = service.classify([*UNSURE, long], headers=headers, **body)
    *answers, refused = response.json()["results"]
    assert {(a["source"], a["degraded"]) for a in answers} == {("local", None)}
    assert refused["error"]["type"] == "urn:crossover:problem:over-length"
    assert {kind: wire.connections for kind, wire in tripwires.items()} == dict.fromkeys(get_args(Kind), 0)
    live = serve(service.config.read_text().replace('"never"', '"auto"'))  # the wires are live: else nothing is shown
    for number in range(60):  # who is left alone after failures makes room for the next of the chain
        live.classify(f"{UNSURE[0]} {number}", headers=headers)
        if all(wire.connections for wire in tripwires.values()):
            break
    assert 0 not in {wire.connections for wire in tripwires.values()}


def test_a_spent_budget_stops_paid_calls_and_not_answers(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str]
) -> None:
    """Local label, marked; the books never exceed the limit."""
    frontier = simulate()
    service = serve(with_frontier(frontier.url, "[budget]\nusd_per_day = 0.004\n", threshold=1.0))
    answers = [service.answer(f"{text} {number}") for text in UNSURE for number in range(20)]
    reasons = [answer["degraded"] for answer in answers]
    assert reasons[0] is None
    assert reasons[-1] == "budget"
    assert service.client.get("/v1/status").json()["budget"]["spent_today_usd"] <= 0.004
    paid = sum(answer["source"] == "frontier" for answer in answers)
    assert frontier.calls == paid > 0


def test_every_dollar_has_a_row(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str]
) -> None:
    """Calls at the simulator, attempts in the ledger, costs in the answers: one number each way."""
    frontier = simulate("--fault", "529:0.2", "--fault", "malformed:0.1", "--seed", "3")
    more = '[cache]\nurl = "off"\n[budget]\nusd_per_day = 100.0\n'
    service = serve(with_frontier(frontier.url, more, threshold=1.0))
    answers = [service.answer(f"{text} {number}") for text in UNSURE for number in range(6)]
    with sqlite3.connect(service.state / "ledger.db") as books:
        attempts = books.execute("SELECT state, cost_nano FROM attempts").fetchall()
        (rows,) = books.execute("SELECT SUM(cost_nano - local_nano) FROM inputs").fetchone()
    assert len(attempts) == frontier.calls
    assert not [state for state, _ in attempts if state == "reserved"]
    paid = sum(cost for _, cost in attempts)
    assert rows == paid > 0
    assert round(sum(answer["cost_usd"] for answer in answers) * 1e9) >= paid


def test_an_unwritable_ledger_stops_paid_calls_and_not_answers(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str]
) -> None:
    """Held locked by another process: no money is spent unrecorded, the service stays up and says so."""
    frontier = simulate()
    service = serve(with_frontier(frontier.url))
    assert service.answer("hmm")["source"] == "frontier"
    blocker = sqlite3.connect(service.state / "ledger.db", isolation_level=None)
    try:
        blocker.execute("BEGIN EXCLUSIVE")
        before = frontier.calls
        answer = service.answer("hello there")
        assert (answer["source"], answer["degraded"]) == ("local", "provider_unavailable")
        assert frontier.calls == before
        ready = service.client.get("/ready")
        assert ready.status_code == 200
        assert "ledger" in ready.json()["degraded"]
        blocker.execute("ROLLBACK")
    finally:
        blocker.close()
    service.wait_for(lambda: service.answer("what about tuesday")["source"] in ("frontier", "cache"))
