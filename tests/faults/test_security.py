"""Nobody gets what is not theirs, and nobody spends what is not theirs. docs/operations.md lists what else is tested
where (rows S)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis

from router.cache import inspect
from router.cache.embedded import EmbeddedRedis

KEYS = {name: f"key-of-{name}-CANARY" for name in ("one", "two", "newer", "admin", "stranger")}


def hashed(name: str) -> str:
    return hashlib.sha256(KEYS[name].encode()).hexdigest()


def auth(**tenants: str) -> str:
    """Config text: key name -> its tenant."""
    keys = "".join(f'[[auth.keys]]\ntenant = "{who}"\nsha256 = "{hashed(key)}"\n' for key, who in tenants.items())
    return f'{keys}[auth]\nadmin = ["{hashed("admin")}"]\n'


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"}


# S1 tenants -----------------------------------------------------------------------------------------------------------


def test_identical_texts_of_two_tenants_are_two_computations_even_in_flight(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str]
) -> None:
    """Of twenty at once, ten a tenant, each tenant's share one paid call and neither sees the other's; then each hits
    its own entry, in the memory of the process as in Redis."""
    frontier = simulate("--latency-ms", "500")
    service = serve(with_frontier(frontier.url, auth(one="one", two="two"), threshold=1.0))
    body = {"input": "what about tuesday, then"}

    async def herd() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            names = ["one", "two"] * 10
            return await asyncio.gather(*(client.post("/v1/classify", json=body, headers=bearer(n)) for n in names))

    answers = [reply.json()["results"][0] for reply in asyncio.run(herd())]
    assert {answer["source"] for answer in answers} == {"frontier"}
    assert frontier.calls == 2
    for mine in (answers[::2], answers[1::2]):
        assert sum(not answer["coalesced"] for answer in mine) == 1
        assert sum(answer["cost_usd"] > 0 for answer in mine) == 1

    def ask(text: str, name: str) -> str:
        return str(service.classify(text, headers=bearer(name)).json()["results"][0]["source"])

    service.wait_for(lambda: ask(body["input"], "one") == ask(body["input"], "two") == "cache")
    service.wait_for(lambda: ask("and what about friday", "one") == "cache")
    calls = frontier.calls
    assert ask("and what about friday", "two") == "frontier"
    assert frontier.calls == calls + 1


def test_a_tenant_can_not_be_named_in_the_body(serve: Callable[..., Any], banking: str) -> None:
    """It comes from the key alone."""
    service = serve(banking + auth(one="one"))
    for extra in ({"tenant": "two"}, {"user": "two"}):
        assert service.classify("I lost my card", headers=bearer("one"), **extra).status_code == 422


# S3 what may be kept --------------------------------------------------------------------------------------------------


def test_degraded_answers_and_errors_are_never_kept(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str]
) -> None:
    """With a provider that answers nonsense: nothing of it is found later."""
    frontier = simulate("--fault", "out_of_set:1.0")
    service = serve(with_frontier(frontier.url, threshold=1.0))
    for _ in range(3):
        answer = service.answer("what about tuesday, then")
        assert (answer["source"], answer["degraded"]) == ("local", "provider_unavailable")
        assert service.classify("  ").status_code == 422
    found = service.client.post("/v1/cache/entry", json={"text": "what about tuesday, then"}).json()
    assert found["entries"] == []


# S7 wallet ------------------------------------------------------------------------------------------------------------


def test_traffic_made_to_be_uncertain_spends_no_more_than_the_budget(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str]
) -> None:
    """Three hundred texts at once that all want a frontier: every one has its answer, and the books stop at the limit;
    the simulator was called as often as they say."""
    frontier = simulate()
    limit = 0.004
    service = serve(with_frontier(frontier.url, f"[budget]\nusd_per_day = {limit}\n", threshold=1.0))

    async def attack() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as client:
            texts = [f"neither this nor that, number {number}" for number in range(300)]
            return await asyncio.gather(*(client.post("/v1/classify", json={"input": text}) for text in texts))

    replies = asyncio.run(attack())
    assert {reply.status_code for reply in replies} == {200}
    results = [reply.json()["results"][0] for reply in replies]
    assert {(r["source"], r["degraded"]) for r in results} == {("frontier", None), ("local", "budget")}
    with sqlite3.connect(service.state / "ledger.db") as books:
        spent, attempts = books.execute("SELECT sum(cost_nano), count(*) FROM attempts").fetchone()
    assert 0 < spent <= limit * 1e9
    assert attempts == frontier.calls
    assert service.metric("crossover_spent_today_usd") <= limit
    assert service.metric("crossover_escalations_total") == 300  # what the alarm on escalations looks at


# S8 keys --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(serve: Callable[..., Any], banking: str) -> Any:
    return serve(banking + auth(one="one", newer="one", two="two"))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (bearer("stranger"), 401),
        (bearer("admin"), 401),
        ({"authorization": f"Basic {KEYS['one']}"}, 401),
        ({"authorization": KEYS["one"]}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": f"Bearer {hashed('one')}"}, 401),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": KEYS["one"][:-1]}, 401),
        ({"x-api-key": KEYS["one"].upper()}, 401),
        ({"x-api-key": f"{KEYS['one']}\u00ff".encode("latin-1")}, 401),
        ({"cookie": f"key={KEYS['one']}"}, 401),
        (bearer("one"), 200),
        (bearer("newer"), 200),
        (bearer("two"), 200),
        ({"authorization": f"bearer {KEYS['one']}"}, 200),
        ({"x-api-key": KEYS["newer"]}, 200),
    ],
)  # fmt: skip
def test_who_may_come_in(locked: Any, headers: dict[str, Any], status: int) -> None:
    """Two keys of one tenant are good at the same time; an admin's key is no tenant's, but sees the status; a hash is
    no key."""
    reply = locked.client.post("/v1/classify", json={"input": "I lost my card"}, headers=headers)
    assert reply.status_code == status
    if status == 401:
        assert reply.headers["www-authenticate"] == "Bearer"
    assert locked.client.get("/v1/tasks", headers=headers).status_code == status
    seen = 200 if headers == bearer("admin") else status
    assert locked.client.get("/v1/status", headers=headers).status_code == seen


def test_a_key_in_the_url_is_no_key_and_reaches_no_log(locked: Any) -> None:
    assert locked.client.post(f"/v1/classify?key={KEYS['one']}", json={"input": "x"}).status_code == 401
    assert KEYS["one"] not in locked.output


def test_without_a_key_the_answer_comes_before_the_body(locked: Any) -> None:
    """Of a body of 1 GB that is never sent, none is waited for."""
    host, port = locked.url.removeprefix("http://").split(":")
    head = "POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=2) as client:
        client.sendall(f"{head}content-length: 1000000000\r\n\r\n".encode())
        assert client.recv(65_536).startswith(b"HTTP/1.1 401")


def test_a_key_is_revoked_and_another_let_in_without_a_restart(serve: Callable[..., Any], banking: str) -> None:
    """By SIGHUP: old and new together, then the new one alone. Requests of the other tenant never notice."""
    service = serve(banking + auth(one="one", two="two"))

    def status(name: str) -> int:
        return int(service.classify("I lost my card", headers=bearer(name)).status_code)

    def reloaded(config: str, old: int, new: int) -> None:
        service.config.write_text(config)
        service.process.send_signal(signal.SIGHUP)
        service.wait_for(lambda: status("two") == 200 and (status("one"), status("newer")) == (old, new))

    assert (status("one"), status("newer")) == (200, 401)
    reloaded(banking + auth(one="one", newer="one", two="two"), 200, 200)
    reloaded(banking + auth(newer="one", two="two"), 401, 200)
    assert service.client.get("/v1/status", headers=bearer("one")).status_code == 401


# S9 what is shown -----------------------------------------------------------------------------------------------------

ADMIN_ROUTES = [
    ("GET", "/report"), ("GET", "/v1/cache/stats"), ("GET", "/v1/cache/entries"),
    ("POST", "/v1/cache/entry"), ("POST", "/v1/cache/purge"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
@pytest.mark.parametrize("name", ["one", "stranger"])
def test_admin_routes_have_a_key_of_their_own(locked: Any, method: str, path: str, name: str) -> None:
    reply = locked.client.request(method, path, headers=bearer(name), json={} if method == "POST" else None)
    assert reply.status_code == 401
    assert locked.client.request(method, path, headers=bearer("admin"), json={}).status_code in (200, 422)


def test_no_admin_route_is_left_out(locked: Any) -> None:
    """What the document names and is not open to all or to tenants is in the list above."""
    document = locked.client.get("/schema/openapi.json").json()
    named = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    tenants = {("POST", "/v1/classify"), ("GET", "/v1/tasks"), ("GET", "/v1/status")}
    everybody = {("GET", "/health"), ("GET", "/ready"), ("GET", "/metrics")}
    assert named - tenants - everybody == set(ADMIN_ROUTES)


def test_what_everybody_sees_names_no_tenant_and_no_path(locked: Any) -> None:
    """Probes and metrics need no key: behind the proxy that comes with the deployment only /v1 is reached. They hold
    task names, counts and dollars; no tenant, no label value of a caller's making."""
    for number in range(20):
        locked.client.get(f"/not/there/{number}", headers={"x-request-id": f"CANARYID{number}"})
    locked.classify("I lost my card", headers=bearer("one"), task="CANARYTASK")
    for path in ("/metrics", "/ready", "/health", "/schema/openapi.json"):
        text = locked.client.get(path).text
        for canary in ("CANARY", "/not/there", hashed("one"), 'tenant="one"', str(locked.state)):
            assert canary not in text, (path, canary)


@pytest.mark.parametrize("variable", ["LITESTAR_DEBUG", "LITESTAR_PDB"])
def test_the_environment_can_not_turn_on_stack_traces(serve: Callable[..., Any], banking: str, variable: str) -> None:
    """Litestar's debug page shows source lines and local values; the other one stops at exceptions."""
    service = serve(banking, **{variable: "1"})
    for reply in (
        service.client.get("/not/there", headers={"accept": "text/html"}),
        service.client.get("/v1/cache/entries?limit=x", headers={"accept": "text/html"}),
        service.client.post("/v1/classify", content=b"{broken", headers={"accept": "text/html"}),
    ):
        assert reply.headers["content-type"] == "application/problem+json"
        assert 400 <= reply.status_code < 500
        assert set(reply.json()) == {"type", "title", "status", "detail"}
        assert "Traceback" not in reply.text
        assert ".py" not in reply.text
    assert "(Pdb)" not in service.output


# S10 where texts and keys are sent ------------------------------------------------------------------------------------


def test_a_provider_that_redirects_is_not_followed(
    serve: Callable[..., Any], with_frontier: Callable[..., str]
) -> None:
    """Neither text nor key goes to where somebody else points."""
    lured: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as elsewhere, socket.create_server(("127.0.0.1", 0)) as provider:
        place = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/v1/messages"

        def point() -> None:
            reply = f"HTTP/1.1 307 Temporary Redirect\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n".encode()
            while True:
                try:
                    connection, _ = provider.accept()
                except OSError:
                    return
                with connection:
                    asked = b""
                    while b"\r\n\r\n" not in asked:
                        asked += connection.recv(65_536)
                    lured.append(asked)
                    connection.sendall(reply)

        thread = threading.Thread(target=point, daemon=True)
        thread.start()
        service = serve(with_frontier(f"http://127.0.0.1:{provider.getsockname()[1]}", threshold=1.0))
        answer = service.answer("what about tuesday, then")
        assert (answer["source"], answer["degraded"]) == ("local", "provider_unavailable")
        assert lured
        elsewhere.settimeout(0.2)
        with pytest.raises(TimeoutError):
            elsewhere.accept()
        provider.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_a_plain_address_of_another_machine_is_refused_at_start(banking: str, tmp_path: Any) -> None:
    """Exit 2 before anything is sent; `https` is wanted, or this machine."""
    config = tmp_path / "crossover.toml"
    config.write_text(
        f'{banking}[providers.p]\nkind = "openai"\nmodel = "gpt-6-luna"\nbase_url = "http://192.0.2.1/v1"\n'
    )
    command = [sys.executable, "-m", "router", "check", "--config", str(config)]
    environment = {**os.environ, "OPENAI_API_KEY": "sk-CANARY"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "providers.p.base_url" in done.stderr
    assert "CANARY" not in done.stdout + done.stderr


# S3 the identities are what the mutation test (tests/router/test_keys.py) takes them for ------------------------------


def test_every_part_of_the_running_services_identities_has_its_mutant(locked: Any) -> None:
    with redis.Redis(unix_socket_path=str(EmbeddedRedis(locked.state, 16).socket)) as client:
        now = inspect.current(client, "banking")
        assert now is not None
        parts = [sorted(inspect.parts_of(client, name)) for name in (now.local, now.frontier)]
    local = ["encoder", "engine", "head", "labels", "max_tokens", "multi_label", "temperature", "tokenizer"]
    assert parts == [local, ["prompt and labels", "providers"]]
