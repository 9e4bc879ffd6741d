"""What /v1/cache and `crossover cache` show and remove, on a real Redis and through a real service."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import redis

from router.cache import inspect, keys, overview, purge
from router.cache.embedded import EmbeddedRedis
from router.cache.entry import Entry, Kind, encode
from router.cache.inspect import InspectError, Selection

SECRET = b"s" * 32


class Kept:
    """A Redis with entries in it."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def add(self, text: str, tenant: str = "a", task: str = "t", kind: Kind = "local", cost: int = 0) -> str:
        self.client.set(keys.generation_key(task), "11111111", nx=True)
        generation = inspect.generation(self.client, task).partition(".")[0]
        key = keys.entry_key(tenant, task, generation, keys.text_digest(SECRET, tenant, text), kind)
        entry = Entry(key, kind, time.time(), "x", 0.9, (), "m", cost, 3, False)
        self.client.set(key, encode(entry, SECRET), ex=100)
        return key

    def left(self) -> int:
        return sum(1 for _ in inspect.entries(self.client, SECRET))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), 16) as server:
        yield server


@pytest.fixture
def kept(server: EmbeddedRedis) -> Iterator[Kept]:
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        client.flushall()
        yield Kept(client)


class Replica:
    """A process that remembers: every 10 ms it says which generations it has seen, until it is deaf."""

    def __init__(self, client: redis.Redis, name: str, tasks: tuple[str, ...] = ("t",), *, deaf: bool = False) -> None:
        self._client, self._name, self._tasks, self._deaf = client, name, tasks, deaf
        self._seen: dict[str, str] = {}
        self._done = threading.Event()
        self._said = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._done.is_set():
            if not self._seen or not self._deaf:
                self._seen = {task: inspect.generation(self._client, task) for task in self._tasks}
            note = {"at": int(time.time() * 1000), "seen": self._seen}
            self._client.hset(keys.replicas_key(), self._name, json.dumps(note))
            self._said.set()
            self._done.wait(0.01)

    def __enter__(self) -> Replica:
        self._thread.start()
        assert self._said.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        (Selection(task="t"), 2),
        (Selection(source="frontier"), 3),
        (Selection(tenant="b"), 4),
        (Selection(text=" one "), 3),
        (Selection(text="one", tenant="a"), 4),
        (Selection(tenant="a", source="local"), 2),
        (Selection(), 0),
    ],
    ids=["task", "source", "tenant", "text", "text of a tenant", "two at once", "all"],
)
def test_a_purge_removes_what_is_meant_and_nothing_else(kept: Kept, wanted: Selection, left: int) -> None:
    """And a dry run says beforehand what it will be, in entries, bytes and dollars; it removes nothing."""
    kept.add("one"), kept.add("two"), kept.add("one", tenant="b", kind="frontier", cost=3_000_000)
    kept.add("three", task="u"), kept.add("two", kind="frontier", task="u", cost=5_000_000)
    planned = purge.plan(kept.client, SECRET, wanted)
    assert kept.left() == 5
    done = purge.purge(kept.client, SECRET, wanted)
    assert kept.left() == left == 5 - done.entries
    assert msgspec.structs.replace(planned, done=True) == done


def test_a_purge_is_priced_by_what_its_frontier_answers_had_cost(kept: Kept) -> None:
    kept.add("one", kind="frontier", cost=3_000_000)
    kept.add("two", cost=900)  # device time of a local answer: nobody was paid
    planned = purge.plan(kept.client, SECRET, Selection(task="t"))
    assert (planned.frontier_entries, planned.paid_usd) == (1, 0.003)


@pytest.mark.parametrize(
    "wanted", [Selection(task="t"), Selection(text="one"), Selection()], ids=["task", "text", "all"]
)
def test_a_purge_changes_what_memories_are_held_by(kept: Kept, wanted: Selection) -> None:
    """A whole task: another token. A part: the same token, another number, so that the other keys stay."""
    kept.add("one"), kept.add("two")
    before = inspect.generation(kept.client, "t")
    purge.purge(kept.client, SECRET, wanted)
    after = inspect.generation(kept.client, "t")
    assert (after.partition(".")[0] == before) == (wanted.text is not None)
    assert after != before
    purge.purge(kept.client, SECRET, wanted)
    assert inspect.generation(kept.client, "t") not in (before, after)


def test_a_text_that_redis_lost_is_forgotten_by_memories_too(kept: Kept) -> None:
    """Evicted from Redis it may still be remembered by a process."""
    kept.add("two")
    purge.purge(kept.client, SECRET, Selection(text="one"))
    assert inspect.generation(kept.client, "t") == "11111111.2"


def test_purge_returns_as_soon_as_every_replica_has_confirmed(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one does not serve the task, and where something else stands under a generation's key."""
    monkeypatch.setattr(purge, "CONFIRM_S", 30)
    kept.add("one")
    kept.client.set(keys.generation_key("t"), "a:b")
    with Replica(kept.client, "r1"), Replica(kept.client, "r2"), Replica(kept.client, "r3", ("other",)):
        started = time.monotonic()
        done = purge.purge(kept.client, SECRET, Selection(task="t", tenant="a"))
        assert time.monotonic() - started < 15
    assert (done.confirmed, done.unconfirmed) == (("r1", "r2", "r3"), ())


def test_who_does_not_confirm_within_a_second_is_named(kept: Kept) -> None:
    kept.add("one")
    with Replica(kept.client, "quick"), Replica(kept.client, "deaf", deaf=True):
        started = time.monotonic()
        done = purge.purge(kept.client, SECRET, Selection(tenant="a"))
        assert purge.CONFIRM_S <= time.monotonic() - started < 5 * purge.CONFIRM_S
    assert (done.confirmed, done.unconfirmed) == (("quick",), ("deaf",))


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_whose_clock_is_wrong_is_waited_for(kept: Kept, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """A process of another host, and one that is not heard of any more: by the end of the wait neither may serve from
    memory what was purged."""
    monkeypatch.setattr(purge, "CONFIRM_S", 0.3)
    kept.add("one")
    said = {"at": int(time.time() * 1000) + hours * 3_600_000, "seen": {"t": "11111111"}}
    kept.client.hset(keys.replicas_key(), "far", json.dumps(said))
    started = time.monotonic()
    done = purge.purge(kept.client, SECRET, Selection(task="t"))
    assert time.monotonic() - started >= 0.3
    assert (done.confirmed, done.unconfirmed) == ((), ("far",))


def test_a_purge_outlives_a_crash_of_the_embedded_redis(tmp_path: Path) -> None:
    """The copy on disk is replaced right away."""
    with EmbeddedRedis(tmp_path, 16) as server, inspect.connected(server.url) as client:
        kept = Kept(client)
        kept.add("one")
        client.save()
        purge.purge(client, SECRET, Selection(text="one"))
        while client.info("persistence")["rdb_changes_since_last_save"]:
            time.sleep(0.01)
        assert server._process is not None
        server._process.kill()
        server._process.wait()
        server.start()
        assert kept.left() == 0
        assert inspect.generation(client, "t") == "11111111.2"


def test_each_purge_has_a_line_without_a_text(kept: Kept, tmp_path: Path) -> None:
    """Who, what, how much; the file is its owner's alone. A dry run has none."""
    kept.add("a CANARY text", kind="frontier", cost=2_000_000)
    wanted = Selection(text="a CANARY text")
    purge.audited(kept.client, SECRET, wanted, who="cli:me", state_dir=tmp_path)
    purge.audited(kept.client, SECRET, Selection(task="t"), who="admin:0a1b2c3d", state_dir=tmp_path)
    path = tmp_path / "audit.log"
    assert path.stat().st_mode & 0o777 == 0o600
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["who"], first["by_text"], first["outcome"]["paid_usd"]) == ("cli:me", True, 0.002)
    assert (second["who"], second["task"], second["outcome"]["entries"]) == ("admin:0a1b2c3d", "t", 0)
    assert "CANARY" not in path.read_text()


def test_what_can_not_be_recorded_is_not_removed(kept: Kept, tmp_path: Path) -> None:
    kept.add("one")
    (tmp_path / "audit.log").mkdir()
    with pytest.raises(InspectError, match="nothing was removed"):
        purge.audited(kept.client, SECRET, Selection(task="t"), who="cli:me", state_dir=tmp_path)
    assert kept.left() == 1


def test_a_redis_that_refuses_fails_the_purge_loudly_and_the_line_says_so(
    server: EmbeddedRedis, tmp_path: Path
) -> None:
    """Read-only here; killed, in test_without_redis_a_purge_is_a_problem."""
    with inspect.connected(server.url) as client:
        client.flushall()
        kept = Kept(client)
        kept.add("one")
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            with pytest.raises(redis.exceptions.ReadOnlyError):
                purge.audited(client, SECRET, Selection(task="t"), who="cli:me", state_dir=tmp_path)
        finally:
            client.execute_command("REPLICAOF", "NO", "ONE")
        assert kept.left() == 1
    (line,) = (tmp_path / "audit.log").read_text().splitlines()
    assert (json.loads(line)["error"], json.loads(line)["outcome"]) == ("ReadOnlyError", None)


def test_a_large_cache_is_read_in_steps(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never KEYS; all pages together are all entries, once each."""
    monkeypatch.setattr(inspect, "STEP", 20)
    expected = {kept.add(f"text {number}") for number in range(300)}
    kept.client.config_resetstat()
    found: list[str] = []
    cursor, pages = 0, 0
    while True:
        cursor, items = inspect.page(kept.client, SECRET, Selection(tenant="a"), cursor, limit=50, steps=10)
        found += [item.name.key for item in items]
        pages += 1
        if cursor == 0:
            break
    assert (set(found), len(found)) == (expected, 300)
    assert 3 <= pages <= 6
    calls: Any = kept.client.info("commandstats")
    assert "cmdstat_keys" not in calls
    assert calls["cmdstat_scan"]["calls"] >= 10


def test_stats_sum_up_by_task_and_source(kept: Kept, tmp_path: Path) -> None:
    kept.add("one"), kept.add("two"), kept.add("one", kind="frontier", cost=4_000_000)
    key = kept.add("three", task="u")
    kept.client.set(key, b"damaged", ex=50)
    kept.client.hset(keys.replicas_key(), "r", json.dumps({"at": int(time.time() * 1000), "memory": {"bytes": 7}}))
    its = overview.overview(kept.client, SECRET, tmp_path / "none.db", by="hour", since=0)
    assert [(g.task, g.source, g.entries, g.paid_usd) for g in its.groups] == [
        ("t", "frontier", 1, 0.004),
        ("t", "local", 2, 0.0),
        ("u", "damaged", 1, 0.0),
    ]
    local = its.groups[1]
    assert 90 <= local.ttl_s.min <= local.ttl_s.median <= local.ttl_s.max <= 100
    assert local.bytes > 50
    (replica,) = its.replicas
    assert (replica.id, replica.memory) == ("r", {"bytes": 7})
    assert its.use == []


# through a service ----------------------------------------------------------------------------------------------------

KEYS = {name: f"key-of-{name}-CANARY" for name in ("one", "admin")}


@pytest.fixture(scope="module")
def service(serve: Callable[..., Any], banking: str) -> Any:
    hashes = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    return serve(
        f'{banking}[[auth.keys]]\ntenant = "one"\nsha256 = "{hashes["one"]}"\n[auth]\nadmin = ["{hashes["admin"]}"]\n'
    )


ADMIN = {"authorization": f"Bearer {KEYS['admin']}"}
TENANT = {"x-api-key": KEYS["one"]}
ROUTES = [("GET", "/stats"), ("GET", "/entries"), ("POST", "/entry"), ("POST", "/purge")]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_the_cache_is_shown_to_the_admin_only_and_asks_for_the_key_first(service: Any, method: str, path: str) -> None:
    """A tenant's key is not enough; without one a body is not even read."""
    for headers in ({}, TENANT, {"authorization": "Bearer wrong"}):
        refused = service.client.request(method, f"/v1/cache{path}", headers=headers, content=b"{broken")
        assert refused.status_code == 401


def ask(service: Any, path: str, **body: Any) -> httpx.Response:
    reply: httpx.Response = service.client.post(f"/v1/cache/{path}", json=body, headers=ADMIN)
    return reply


def test_over_http_an_entry_is_found_explained_listed_and_purged(service: Any) -> None:
    """The text stands in bodies only: neither the log nor the audit line has it."""
    text = "please freeze my CANARY card"

    def source() -> str:
        (result,) = service.classify(text, headers=TENANT, route="local").json()["results"]
        return str(result.get("cache_tier") or result["source"])

    service.wait_for(lambda: source() == "memory")
    shown = ask(service, "entry", text=text).json()
    assert shown["hit"] is True
    (entry,) = shown["entries"]
    assert (entry["tenant"], entry["source"], entry["differs"], entry["preview"]) == ("one", "local", [], None)
    digest = entry["key"].split(":")[5]
    assert ask(service, "entry", digest=digest).json()["entries"][0]["key"] == entry["key"]
    assert ask(service, "entry", text="never asked").json() == {"hit": False, "entries": []}

    listed = service.client.get("/v1/cache/entries", params={"tenant": "one", "source": "local"}, headers=ADMIN).json()
    assert listed["cursor"] is None
    assert entry["key"] in {item["key"] for item in listed["entries"]}
    assert service.client.get("/v1/cache/entries", params={"task": "other"}, headers=ADMIN).json()["entries"] == []

    stats = service.client.get("/v1/cache/stats", headers=ADMIN).json()
    assert stats["groups"][0]["task"] == "banking"
    (use,) = stats["use"]
    assert (use["task"], use["source"]) == ("banking", "local")
    assert use["hits"] >= 1
    assert use["misses"] >= 1
    assert use["hit_ratio"] == use["hits"] / (use["hits"] + use["misses"])

    dry = ask(service, "purge", text=text).json()
    assert (dry["done"], dry["entries"]) == (False, 1)
    assert not (service.state / "audit.log").exists()
    done = ask(service, "purge", text=text, yes=True).json()
    assert (done["done"], done["entries"], len(done["confirmed"]), done["unconfirmed"]) == (True, 1, 1, [])
    assert source() == "local"
    service.wait_for(lambda: '"event":"cache_purged"' in service.output)
    kid = hashlib.sha256(KEYS["admin"].encode()).hexdigest()[:8]
    audit = (service.state / "audit.log").read_text()
    for said in (service.output, audit):
        assert f"admin:{kid}" in said
        assert "CANARY" not in said


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("purge", {}),
        ("purge", {"all": True, "task": "banking"}),
        ("purge", {"task": "a:b"}),
        ("purge", {"source": "redis"}),
        ("purge", {"tsak": "banking", "yes": True}),
        ("entry", {}),
        ("entry", {"text": "a", "digest": "0" * 32}),
    ],
)
def test_a_request_that_does_not_say_what_it_means_removes_nothing(service: Any, path: str, body: Any) -> None:
    reply = ask(service, path, **body)
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "query", ["stats?hours=0", "stats?by=week", "entries?cursor=x", "entries?tenant=a*", "entries?source=redis"]
)
def test_a_query_that_does_not_fit_is_a_problem(service: Any, query: str) -> None:
    """A name with a star in it would be a pattern for Redis."""
    assert service.client.get(f"/v1/cache/{query}", headers=ADMIN).status_code == 422


@pytest.mark.parametrize(
    ("content", "status"), [(b"\xff\xfe", 422), (b"[" * 200_000, 422), (b"{", 422), (b'"' + b"a" * (1 << 21), 413)]
)
def test_a_body_that_can_not_be_read_is_the_callers_mistake(service: Any, content: bytes, status: int) -> None:
    headers = {**ADMIN, "content-type": "application/json"}
    assert service.client.post("/v1/cache/purge", content=content, headers=headers).status_code == status


def test_a_web_page_can_not_purge(service: Any) -> None:
    """Without keys only the address protects, and a browser on this machine has that: what it may send without a
    preflight is not read."""
    headers = {**ADMIN, "content-type": "text/plain"}
    assert (
        service.client.post("/v1/cache/purge", content=b'{"all":true,"yes":true}', headers=headers).status_code == 415
    )


def test_without_redis_a_purge_is_a_problem(serve: Callable[..., Any], banking: str, tmp_path: Path) -> None:
    """503, never silence; without keys this machine is the admin."""
    service = serve(f'{banking}[cache]\nurl = "unix://{tmp_path}/nobody.sock"\n')
    for reply in (
        service.client.post("/v1/cache/purge", json={"all": True, "yes": True}),
        service.client.get("/v1/cache/stats"),
    ):
        assert reply.status_code == 503
        assert reply.json()["type"] == "urn:crossover:problem:cache-unavailable"
        assert reply.headers["retry-after"] == "2"


def test_without_a_cache_there_is_nothing_to_look_into(serve: Callable[..., Any], banking: str) -> None:
    service = serve(f'{banking}[cache]\nurl = "off"\n')
    assert service.client.get("/v1/cache/stats").status_code == 404
