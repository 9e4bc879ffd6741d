"""Nothing about texts, keys or machines goes where it should not.

That is looked for after every module of the suite: the fixture `serve` searches all that its services left anywhere
(log, ledger, Redis, metrics, audit and run files) for every text and every key that was sent. Here it is shown that the
search finds what there is to find, and what happens to texts that somebody asked to keep."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from router.cache.embedded import EmbeddedRedis
from router.paths import cache_dir


def test_onnxruntime_keeps_no_telemetry(tmp_path: Path) -> None:
    """Since 1.31 it writes a device id and events under the home folder unless it is told not to."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-m", "router", "classify", "I lost my card"],
        capture_output=True,
        text=True,
        env={**environment, "HOME": str(home), "CROSSOVER_CACHE_DIR": str(cache_dir())},
    )
    assert done.returncode == 0, done.stderr
    assert [path for path in home.rglob("*") if path.is_file()] == []


# the search itself ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(serve: Callable[..., Any], banking: str) -> Any:
    return serve(banking)


def raw(service: Any) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(EmbeddedRedis(service.state, 16).socket))


def test_the_search_looks_into_every_place(service: Any) -> None:
    """The name of the task stands in all of them: it is found in all of them."""
    text = "I lost my card on the bus"
    service.answer(text, route="local")
    service.wait_for(lambda: service.answer(text, route="local")["source"] == "cache")
    service.client.post("/v1/cache/purge", json={"task": "banking", "yes": True})
    service.answer(text, route="local")
    places = {leak.split(" stands in ")[1] for leak in service.leaks(["banking"])}
    assert {"the log", "Redis", "/metrics", "/v1/status", "the file audit.log"} <= places
    assert any(place.startswith("the file ledger.db") for place in places)
    assert any(leak.split(" stands in ")[1].startswith("the file run/") for leak in service.leaks([service.url]))


@pytest.mark.parametrize("place", ["log", "ledger", "redis", "hash", "audit", "file"])
def test_a_text_that_leaks_is_found(service: Any, place: str) -> None:
    """Put there on purpose; and gone again afterwards."""
    text = f"please do not tell anybody about {place}"
    service.answer(text)
    assert service.leaks() == []
    if place == "log":
        before = service.log.stat().st_size
        with service.log.open("a") as log:
            log.write(json.dumps({"event": "request", "input": text}) + "\n")
    elif place == "ledger":
        with sqlite3.connect(service.state / "ledger.db") as books:
            books.execute("CREATE TABLE leak AS SELECT ? AS text", (text,))
    elif place == "redis":
        raw(service).set("co:leak", text)
    elif place == "hash":
        raw(service).hset("co:leak", "field", text)
    else:
        (service.state / f"{place}.log").write_text(text)
    (found, *_) = service.leaks()
    assert text[:40] in found
    if place == "log":
        with service.log.open("a") as log:
            log.truncate(before)
    elif place == "ledger":
        with sqlite3.connect(service.state / "ledger.db", isolation_level=None) as books:
            books.execute("PRAGMA secure_delete = ON")
            books.execute("DROP TABLE leak")
            books.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    elif place in ("redis", "hash"):
        raw(service).unlink("co:leak")
    else:
        (service.state / f"{place}.log").unlink()
    assert service.leaks() == []


@pytest.mark.parametrize("way", ["classify", "client", "httpx", "load", "inspection"])
def test_a_text_is_looked_for_however_it_was_sent(service: Any, load: Any, way: str) -> None:
    text = f"whom I owe what I sent by way of {way}"
    if way == "classify":
        service.classify([text])
    elif way == "client":
        service.client.post("/v1/classify", json={"input": text})
    elif way == "httpx":
        httpx.post(f"{service.url}/v1/classify", json={"input": text})
    elif way == "load":
        asyncio.run(load(service.url, [text], workers=1).run(lambda running: running.answered(1)))
    else:
        service.client.post("/v1/cache/entry", json={"text": text})
    assert service.leaks() == []
    leak = service.state / "leak.log"
    leak.write_text(text)
    (found,) = service.leaks()
    leak.unlink()
    assert found == f"{text[:40]!r} stands in the file leak.log"


def test_the_redis_of_somebody_else_is_searched_too(
    serve: Callable[..., Any], banking: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The one that the service uses."""
    with EmbeddedRedis(tmp_path_factory.mktemp("elsewhere"), 16) as server:
        service = serve(f'{banking}[cache]\nurl = "{server.url}"\n')
        text = "please do not tell anybody elsewhere"
        service.answer(text)
        assert service.leaks() == []
        with redis.Redis.from_url(server.url) as client:
            client.set("co:leak", text)
            assert service.leaks() == [f"{text!r} stands in Redis"]
            client.unlink("co:leak")


def test_the_status_is_searched_where_there_are_keys(keeping: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tenant's, among those that open nothing; that it could not be searched is a finding."""
    for key, status in (("key-of-a-stranger-CANARY", 401), (KEYS["admin"], 200), ("", 401)):
        assert keeping.client.get("/v1/status", headers={"x-api-key": key}).status_code == status
    assert "'banking' stands in /v1/status" in keeping.leaks(["banking"])
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        monkeypatch.setattr(keeping, "url", f"http://127.0.0.1:{nobody.getsockname()[1]}")
    (found,) = keeping.leaks()
    assert "/v1/status" in found


def test_a_key_in_a_response_is_found(service: Any) -> None:
    """The caller's own, and a provider's."""
    for secret in ("a-callers-own-key", "sk-ant-CANARY-of-anthropic-0123456789"):
        request = httpx.Request("GET", service.url, headers={"x-api-key": "a-callers-own-key"})
        service.overhear(request)
        service.overhear_answer(httpx.Response(200, request=request, content=f"<p>{secret}</p>".encode()))
        (found,) = service.leaks()
        assert secret in found
        service.said.clear()


# texts that are kept, because somebody asked for it -------------------------------------------------------------------

KEYS = {name: f"key-of-{name}-CANARY" for name in ("one", "two", "admin")}
TEXTS = ["my card was swallowed by the machine", "how do I change the PIN of my card"]


@pytest.fixture
def keeping(serve: Callable[..., Any], banking: str) -> Any:
    """A service of two tenants that keeps previews, asked for both texts by both."""
    hashes = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    tenants = "".join(f'[[auth.keys]]\ntenant = "{name}"\nsha256 = "{hashes[name]}"\n' for name in ("one", "two"))
    service = serve(f'{banking}[cache]\nstore_preview = true\n{tenants}[auth]\nadmin = ["{hashes["admin"]}"]\n')
    for name in ("one", "two"):
        for text in TEXTS:
            service.wait_for(lambda text=text, name=name: answer(service, text, name).get("cache_tier") == "memory")
    return service


def answer(service: Any, text: str, tenant: str) -> dict[str, Any]:
    reply = service.classify(text, headers={"x-api-key": KEYS[tenant]}, route="local")
    found: dict[str, Any] = reply.json()["results"][0]
    return found


def source(service: Any, text: str, tenant: str) -> str:
    return str(answer(service, text, tenant)["source"])


def kept(service: Any) -> dict[bytes, bytes]:
    """Entries of the Redis."""
    with raw(service) as client:
        return {key: client.get(key) or b"" for key in client.scan_iter("co:1:*:banking:*:*:*")}


def test_a_text_is_kept_only_where_that_was_asked_for_and_as_long_as_its_answer(keeping: Any, service: Any) -> None:
    """The first letters, in the entry itself: they expire with it. Elsewhere: nowhere."""
    service.answer(TEXTS[0], route="local")
    assert not any(TEXTS[0].encode() in value for value in kept(service).values())
    with raw(keeping) as client:
        for text in TEXTS:
            with_text = [key for key, value in kept(keeping).items() if text.encode() in value]
            assert len(with_text) == 2
            assert all(0 < client.ttl(key) <= 7 * 86_400 for key in with_text)
    assert keeping.leaks() == []


@pytest.mark.parametrize(
    ("wanted", "gone"),
    [
        ({"text": TEXTS[0]}, [("one", TEXTS[0]), ("two", TEXTS[0])]),
        ({"tenant": "one"}, [("one", TEXTS[0]), ("one", TEXTS[1])]),
        ({"tenant": "two", "text": TEXTS[1]}, [("two", TEXTS[1])]),
    ],
    ids=["a text", "a tenant", "a tenant's text"],
)
def test_who_asks_to_be_forgotten_is_forgotten(keeping: Any, wanted: dict[str, str], gone: list[Any]) -> None:
    """Neither Redis nor the memory of the process has it afterwards, and the ledger never had; the others stay."""
    reply = keeping.client.post(
        "/v1/cache/purge", json={**wanted, "yes": True}, headers={"x-api-key": KEYS["admin"]}
    ).json()
    assert (reply["entries"], len(reply["confirmed"]), reply["unconfirmed"]) == (len(gone), 1, [])
    left = kept(keeping)
    for tenant in ("one", "two"):
        for text in TEXTS:
            here = [key for key, value in left.items() if text.encode() in value and f":{tenant}:".encode() in key]
            assert len(here) == ((tenant, text) not in gone)
    for tenant in ("one", "two"):
        for text in TEXTS:
            assert source(keeping, text, tenant) == ("local" if (tenant, text) in gone else "cache")
    assert keeping.leaks() == []  # of which the ledger is a part


def test_the_ledger_knows_a_text_by_a_keyed_digest_only(keeping: Any) -> None:
    """Who has the ledger but not the cache's secret can't try out guesses; each tenant's digest is another."""
    with sqlite3.connect(keeping.state / "ledger.db") as books:
        columns = [row[1] for row in books.execute("PRAGMA table_info(inputs)")]
        digests = books.execute("SELECT DISTINCT tenant, text_digest FROM inputs").fetchall()
    assert [column for column in columns if "text" in column] == ["text_digest"]
    assert len(digests) == len({digest for _, digest in digests}) == 4
    plain = {hashlib.blake2b(text.encode(), digest_size=16).digest() for text in TEXTS}
    assert not plain & {digest for _, digest in digests}
