"""Providers in trouble, seen from outside: a real service with every adapter, and the books it leaves behind."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
import struct
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, get_args

import httpx
import pytest

from cost.verify import verify
from providers.settings import Kind

MODELS = {
    "anthropic": "claude-haiku-5-5",
    "openai": "gpt-6-luna",
    "openai-decisions": "gpt-6-luna",
    "openai-chat": "gemini-3.8-flash",
}
UNSURE = ["hmm", "hello there", "what about tuesday", "is it raining", "thanks", "blue or green", "I am hungry"]


def config(url: str, *kinds: str, threshold: float = 1.0, more: str = "", lane: str = "") -> str:
    """The banking task with a provider of each kind, all at one simulator, without a cache."""
    tables = [
        f"""
[providers.{kind}]
kind = "{kind}"
model = "{MODELS[kind]}"
base_url = "{url}{"" if kind == "anthropic" else "/v1"}"
{lane}
"""
        for kind in kinds or get_args(Kind)
    ]
    return f"""
[tasks.banking]
head = "banking77"
[tasks.banking.policy]
threshold = {threshold}
[cache]
url = "off"
[budget]
usd_per_day = 100.0
{"".join(tables)}
{more}
"""


def attempts(service: Any) -> list[sqlite3.Row]:
    with closing(sqlite3.connect(service.state / "ledger.db")) as books:
        books.row_factory = sqlite3.Row
        return books.execute("SELECT * FROM attempts ORDER BY id").fetchall()


def test_p10_with_every_provider_away_every_answer_is_local_and_says_why(serve: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    service = serve(config(f"http://127.0.0.1:{port}"))
    for number in range(30):
        answer = service.answer(f"{UNSURE[number % len(UNSURE)]} {number}")
        assert (answer["source"], answer["degraded"]) == ("local", "provider_unavailable")
        assert answer["label"]
    assert service.classify("hmm", strict=True).status_code == 503
    status = service.client.get("/v1/status").json()["providers"]
    assert [lane["name"] for lane in status] == list(get_args(Kind))
    assert {lane["last_error"] for lane in status} == {"Unavailable"}
    assert {lane["breaker"] for lane in status} <= {"open", "half_open"}
    assert {row["state"] for row in attempts(service)} == {"unbilled"}


def test_p9_while_every_provider_hangs_local_answers_go_on_and_few_calls_are_in_flight(
    serve: Callable[..., Any], simulate: Callable[..., Any]
) -> None:
    frontier = simulate("--fault", "hang:1.0")
    service = serve(config(frontier.url, threshold=0.8, lane="max_in_flight = 2"))
    sure = "why was I charged a fee for the cash withdrawal"

    async def main() -> tuple[list[httpx.Response], list[float]]:
        headers = {"x-deadline-ms": "2500"}
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=service.url, timeout=30, limits=limits) as client:

            async def ask(text: str) -> httpx.Response:
                return await client.post("/v1/classify", json={"input": text}, headers=headers)

            assert (await ask(sure)).json()["results"][0]["source"] == "local"
            hanging = [asyncio.create_task(ask(f"{UNSURE[i % len(UNSURE)]} {i}")) for i in range(120)]
            took = []
            for _ in range(20):
                started = time.monotonic()
                answer = (await ask(sure)).json()["results"][0]
                took.append(time.monotonic() - started)
                assert (answer["source"], answer["degraded"]) == ("local", None)
            for lane in (await client.get("/v1/status")).json()["providers"]:
                assert lane["in_flight"] <= lane["max_in_flight"] == 2
            return list(await asyncio.gather(*hanging)), took

    hung, took = asyncio.run(main())
    assert {response.status_code for response in hung} == {200}
    results = [response.json()["results"][0] for response in hung]
    assert {result["source"] for result in results} == {"local"}
    assert {result["degraded"] for result in results} <= {"overload", "deadline", "provider_unavailable", None}
    assert sum(result["degraded"] is not None for result in results) > 60
    assert sorted(took)[len(took) // 2] < 0.5
    rows = attempts(service)
    assert len(rows) == frontier.calls <= 4 * 2 * 3
    assert {row["state"] for row in rows} == {"uncertain"}


@pytest.mark.parametrize("kind", list(get_args(Kind)))
def test_p12_a_client_who_hangs_up_stops_neither_the_call_nor_its_settling(
    serve: Callable[..., Any], simulate: Callable[..., Any], kind: str
) -> None:
    """The call ends with what it used: nothing of it stays uncertain, and the books equal the bill."""
    frontier = simulate("--latency", "fixed:500")
    service = serve(config(frontier.url, kind))
    body = json.dumps({"input": "hmm"}).encode()
    host, _, port = service.url.removeprefix("http://").partition(":")
    head = f"POST /v1/classify HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        service.wait_for(lambda: frontier.calls == 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST instead of FIN
    started = time.monotonic()
    service.wait_for(lambda: [row for row in attempts(service) if row["state"] != "reserved"])
    assert time.monotonic() - started < 3
    (row,) = attempts(service)
    (item,) = frontier.bill["items"]
    assert (row["state"], row["error"], row["estimated"]) == ("settled", None, 0)
    assert row["reply_id"] == item["reply_id"]
    told = {name: row[name] for name in ("input", "cache_read", "cache_write_5m", "output")}
    assert told == {name: item["usage"][name] for name in told}


def test_p6_p7_what_is_no_answer_is_neither_returned_nor_kept(
    serve: Callable[..., Any], simulate: Callable[..., Any]
) -> None:
    """With a cache: the same text again is asked again, and says again that it was."""
    frontier = simulate("--fault", "out_of_set:0.4", "--fault", "html:0.5", "--fault", "refusal:1.0")
    service = serve(config(frontier.url).replace('url = "off"', 'url = "embedded"'))
    labels = set(service.client.get("/v1/tasks").json()[0]["labels"])
    for _ in range(2):
        answer = service.answer("hmm")
        assert (answer["source"], answer["degraded"]) == ("local", "provider_unavailable")
        assert answer["label"] in labels
    assert frontier.calls == len(attempts(service)) == 2 * len(get_args(Kind))


def test_under_all_faults_at_once_no_request_fails_and_every_call_has_its_row(
    serve: Callable[..., Any], simulate: Callable[..., Any]
) -> None:
    # What closes a provider for long (401, a Retry-After of an hour) has its own tests.
    menu = ["429", "500", "529", "reset", "half_close", "hang", "slow_drip", "malformed", "html"]
    menu += ["nulls", "gzip_bomb", "out_of_set", "refusal", "truncated", "no_usage", "absurd_usage"]
    frontier = simulate("--seed", "7", *[word for fault in menu for word in ("--fault", f"{fault}:0.03")])
    service = serve(config(frontier.url))
    headers = {"x-deadline-ms": "1500"}

    async def main() -> list[tuple[int, Any, float]]:
        places = asyncio.Semaphore(8)
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:

            async def ask(text: str) -> tuple[int, Any, float]:
                async with places:
                    started = time.monotonic()
                    response = await client.post("/v1/classify", json={"input": text}, headers=headers)
                    return response.status_code, response.json(), time.monotonic() - started

            return await asyncio.gather(*[ask(f"{UNSURE[i % len(UNSURE)]} {i}") for i in range(200)])

    replies = asyncio.run(main())
    assert {status for status, _, _ in replies} == {200}
    results = [body["results"][0] for _, body, _ in replies]
    assert all(result["label"] for result in results)
    assert {result["source"] for result in results} == {"frontier", "local"}
    assert max(took for _, _, took in replies) < 1.5 + 1
    service.wait_for(lambda: not [row for row in attempts(service) if row["state"] == "reserved"])
    rows = attempts(service)
    assert len(rows) == frontier.calls > 200
    assert [finding for finding in verify(service.state / "ledger.db") if finding.severity == "error"] == []
    with closing(sqlite3.connect(service.state / "ledger.db")) as books:
        (paid,) = books.execute("SELECT sum(cost_nano - local_nano) FROM inputs").fetchone()
    assert paid == sum(row["cost_nano"] for row in rows)
