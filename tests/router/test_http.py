"""The HTTP contract, on the running service with the real model."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from router import admission

KEYS = {"one": "key-of-tenant-one", "two": "key-of-tenant-two", "quiet": "key-that-never-escalates"}
ADMIN = "key-of-the-admin"


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope="module")
def open_service(serve: Callable[..., Any], banking: str) -> Any:
    """Without keys: loopback only."""
    return serve(banking + "[server]\nmax_body_bytes = 20000\nbody_deadline_ms = 300\n")


@pytest.fixture(scope="module")
def locked_service(serve: Callable[..., Any], banking: str) -> Any:
    """With keys of three tenants and an admin."""
    keys = "\n".join(f'[[auth.keys]]\ntenant = "{t}"\nsha256 = "{hashed(k)}"' for t, k in KEYS.items())
    return serve(f'{banking}[auth]\nadmin = ["{hashed(ADMIN)}"]\n{keys}\nescalate = "never"\n')


def test_without_keys_only_requests_to_this_machine_by_name_are_answered(open_service: Any) -> None:
    """A web page whose name was made to lead here is not."""
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
        assert open_service.classify("hello", headers={"host": host}).status_code == 401
        assert open_service.client.get("/report", headers={"host": host}).status_code == 401
    for host in (
        "localhost",
        "LOCALHOST:8080",
        "localhost.",
        "localhost:",
        "127.0.0.1",
        "[::1]:8080",
        "[::ffff:127.0.0.1]",
    ):
        assert open_service.classify("hello", headers={"host": host}).status_code == 200


def test_an_answer_has_exactly_the_fields_of_the_contract(open_service: Any) -> None:
    """One text in, one result out."""
    response = open_service.classify("my card still hasn't arrived", top_k=3)
    body = response.json()
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert set(body) == {"id", "task", "results"}
    assert body["id"].startswith("req_")
    (result,) = body["results"]
    assert set(result) == {
        *("label", "confidence", "source", "model", "degraded", "certified", "truncated", "coalesced", "cost_usd"),
        *("latency_ms", "scores"),
    }
    assert (result["label"], result["source"], result["certified"]) == ("card_arrival", "local", False)
    assert result["scores"][0] == [result["label"], result["confidence"]]
    assert [score for _, score in result["scores"]] == sorted((s for _, s in result["scores"]), reverse=True)
    assert len(result["scores"]) == 3
    assert result["latency_ms"]["total"] >= result["latency_ms"]["local"] > 0


def test_the_same_text_again_comes_from_the_cache(open_service: Any) -> None:
    """With its tier and who answered first; white space around it does not matter."""
    first = open_service.answer("where is my parcel with the new card?")
    again = open_service.answer("  where is my parcel with the new card? \n")
    assert (again["source"], again["answered_by"]) == ("cache", "local")
    assert again["cache_tier"] in ("memory", "redis")
    assert (again["label"], again["confidence"], again["cost_usd"]) == (first["label"], first["confidence"], 0.0)


def test_results_come_in_input_order_errors_among_them(open_service: Any) -> None:
    """200 if any input succeeded."""
    response = open_service.classify(["I lost my card", " ", "how do I change my PIN", ""])
    labels = [result.get("label") for result in response.json()["results"]]
    assert response.status_code == 200
    assert labels == ["lost_or_stolen_card", None, "change_pin", None]
    assert response.json()["results"][1]["error"]["type"] == "urn:crossover:problem:empty"


def test_if_no_input_succeeds_the_first_error_is_the_requests(open_service: Any) -> None:
    """A problem, not a list of errors."""
    response = open_service.classify([" ", "\t"])
    assert response.status_code == 422
    assert response.json()["type"] == "urn:crossover:problem:empty"


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"{", 400, "malformed"),
        (b"\xff\xfe", 400, "malformed"),
        (b'{"input": "\xff"}', 400, "malformed"),
        (b'{"input": "\\ud800"}', 400, "malformed"),
        (b"[" * 5000, 422, "invalid"),
        (b'{"input": "a", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", 422, "invalid"),
        (b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}", 422, "invalid"),
        (b"", 400, "malformed"),
        (b"\xef\xbb\xbf{}", 400, "malformed"),
        (b'{"input": NaN}', 400, "malformed"),
        (b'{"input": "a", "top_k": Infinity}', 400, "malformed"),
        (b'{"input": "a", "top_k": ' + b"9" * 400 + b"}", 422, "invalid"),
        (b'{"input": "a", "top_k": 1.5}', 422, "invalid"),
        (b'{"input": "a", "top_k": true}', 422, "invalid"),
        (b'{"input": "a\x00b"}', 400, "malformed"),
        (b'{"input": "a"} {"input": "b"}', 400, "malformed"),
        ('{"input": "a"}'.encode("utf-16"), 400, "malformed"),
        (b'{"input": "a", "\\ud800": 1}', 400, "malformed"),
        (b'{"input": ["a", null]}', 422, "invalid"),
        (b"null", 422, "invalid"),
        (b"[" * 19_000 + b"]", 422, "invalid"),
        (b"{}", 422, "invalid"),
        (b'{"input": ""}', 422, "empty"),
        (b'{"input": []}', 422, "invalid"),
        (b'{"input": [""]}', 422, "empty"),
        (b'{"input": 3}', 422, "invalid"),
        (b'{"input": "a", "surprise": 1}', 422, "invalid"),
        (b'{"input": "a", "top_k": 0}', 422, "invalid"),
        (b'{"input": "a", "top_k": 11}', 422, "invalid"),
        (b'{"input": "a", "route": "frontier"}', 422, "invalid"),
        (b'{"input": ' + json.dumps(["a"] * 129).encode() + b"}", 422, "invalid"),
        (b'{"input": "a", "task": "nope"}', 404, "unknown-task"),
        (b'{"input": "' + b"a" * 30000 + b'"}', 413, "too-large"),
    ],
)
def test_bad_input_is_a_clear_problem(open_service: Any, body: bytes, status: int, kind: str) -> None:
    """Never a 500."""
    response = open_service.client.post("/v1/classify", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"urn:crossover:problem:{kind}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]


def test_nul_and_repeated_keys_are_data(open_service: Any) -> None:
    """A NUL is a character; of two equal keys the last wins."""
    assert open_service.classify("lost \x00 card").status_code == 200
    response = open_service.client.post(
        "/v1/classify",
        content=b'{"input": "x", "input": "I lost my card"}',
        headers={"content-type": "application/json"},
    )
    assert response.json()["results"][0]["label"] == "lost_or_stolen_card"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": ""},
        {"content-type": "text/plain"},
        {"content-type": "text/json"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        *(
            {"content-type": "application/json", "content-encoding": encoding}
            for encoding in ("gzip", "deflate", "br", "zstd", "x", "gzip, identity")
        ),
    ],
    ids=str,
)
def test_only_plain_json_is_read(open_service: Any, headers: dict[str, str]) -> None:
    """415, and no decompression code exists."""
    response = open_service.client.post("/v1/classify", content=b'{"input": "a"}', headers=headers)
    assert response.status_code == 415
    assert response.json()["type"] == "urn:crossover:problem:unsupported-media-type"


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/json; charset=utf-8"},
        {"content-type": "Application/JSON ; charset=UTF-8"},
        {"content-type": "application/json", "content-encoding": "Identity"},
    ],
    ids=str,
)
def test_json_by_its_other_names_is_read_too(open_service: Any, headers: dict[str, str]) -> None:
    """Media types have parameters and no case."""
    response = open_service.client.post("/v1/classify", content=b'{"input": "a"}', headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"])
def test_another_method_is_405_with_allow(open_service: Any, method: str) -> None:
    """As a native route would answer."""
    response = open_service.client.request(method, "/v1/classify")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    native = open_service.client.post("/health")
    assert native.status_code == 405
    assert native.headers["content-type"] == "application/problem+json"


def test_a_path_has_one_answer_however_it_is_written(open_service: Any) -> None:
    """With a slash at its end, two in its midst, escaped, with a query; in HTTP/1.0 too."""
    for path in ("/v1/classify", "/v1/classify/", "/v1//classify", "/v1/%63lassify", "/v1/classify?input=x"):
        assert open_service.client.post(path, json={"input": "I lost my card"}).status_code == 200, path
    body = b'{"input": "I lost my card"}'
    old = b"POST /v1/classify HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    assert raw(open_service, old + body).startswith(b"HTTP/1.1 200 ")


def raw(service: Any, sent: bytes) -> bytes:
    """Everything that comes back until the connection closes."""
    host, port = service.url.removeprefix("http://").split(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=10) as client:
        try:
            client.sendall(sent)
            while chunk := client.recv(65536):
                received += chunk
        except ConnectionError:  # it was closed while we were still sending
            pass
    return received


START = b"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
HIDDEN = b"GET /v1/tasks HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        START + b"content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        START + b"transfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\n" + HIDDEN,
        START + b"content-length: 2\r\ncontent-length: 60\r\n\r\n{}" + HIDDEN,
        START + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}" + HIDDEN,
        START + b"content-length: 2, 60\r\n\r\n{}" + HIDDEN,
        START + b"content-length: +2\r\n\r\n{}" + HIDDEN,
        START + b"content-length : 2\r\n\r\n{}" + HIDDEN,
        START + b"content-length: 2\r\n folded\r\n\r\n{}" + HIDDEN,
        START + b"x-folded: a\r\n b\r\ncontent-length: 2\r\n\r\n{}" + HIDDEN,
        START + b"transfer-encoding: gzip\r\n\r\n{}" + HIDDEN,
        START + b"transfer-encoding: chunked, gzip\r\n\r\n{}" + HIDDEN,
        START + b"transfer-encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n" + HIDDEN,
        START + b"transfer-encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n" + HIDDEN,
        START + b"transfer-encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n" + HIDDEN,
        START + b"x-bare: a\rcontent-length: 2\r\n\r\n{}" + HIDDEN,
        START.replace(b"localhost", b"local\x00host") + b"content-length: 2\r\n\r\n{}" + HIDDEN,
    ],
    ids=repr,
)
def test_a_request_that_could_be_read_in_two_ways_is_read_in_none(open_service: Any, sent: bytes) -> None:
    """400 and the end of the connection: nothing behind it is taken for a request (smuggling)."""
    received = raw(open_service, sent)
    assert received.startswith(b"HTTP/1.1 400 "), received
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"card_arrival" not in received  # of /v1/tasks


def test_what_is_asked_for_in_vain_leaves_no_trace_in_the_metrics(open_service: Any) -> None:
    """Neither paths nor ids nor tasks that callers invent become labels."""

    def series() -> set[str]:
        lines = open_service.client.get("/metrics").text.splitlines()
        return {line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")}

    def storm(number: int) -> None:
        open_service.client.get(f"/nothing/{number}")
        open_service.client.request("BREW", f"/v1/{number}")
        open_service.classify("hello", task=f"task-{number}")
        open_service.classify("hello", headers={"x-request-id": f"id-{number}"})

    storm(0)
    before = series()
    for number in range(1, 30):
        storm(number)
    assert series() == before


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/classify/x", "/v1/../etc/passwd", "/%2e%2e"])
def test_what_is_not_there_is_a_404_problem(open_service: Any, path: str) -> None:
    """Also outside the routes."""
    response = open_service.client.get(path)
    assert response.status_code == 404
    assert response.json()["type"] == "urn:crossover:problem:not-found"


def test_a_body_that_does_not_arrive_is_408(open_service: Any) -> None:
    """uvicorn would wait forever."""
    host, port = open_service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(
            b"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health HTTP/1.1\r\nhost: x\r\nx-big: " + b"a" * 2_000_000, b"431"),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x-many: a\r\n" * 100_000, b"431"),
        (b"GET /" + b"a" * 2_000_000, b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00", b"400"),
        (b"GET /health HTTP/1.1\r\nbad header\r\n\r\n", b"400"),
    ],
    ids=["one header", "many headers", "path", "TLS", "not a header"],
)
def test_a_head_without_end_or_sense_is_a_problem_and_the_connection_closes(
    open_service: Any, sent: bytes, status: bytes
) -> None:
    """uvicorn itself would collect headers until memory is full."""
    host, port = open_service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        received = b""
        try:
            client.sendall(sent)
            while chunk := client.recv(65536):
                received += chunk
        except ConnectionError:  # it was closed while we were still sending
            pass
    if received:
        assert received.startswith(b"HTTP/1.1 " + status)
        assert b"application/problem+json" in received
    assert received or status == b"431"
    assert open_service.client.get("/health").status_code == 200


def test_large_bodies_do_not_count_as_head(open_service: Any) -> None:
    """Head and body in one packet."""
    response = open_service.client.post("/v1/classify", json={"input": ["I lost my card"] * 128})
    assert response.status_code == 200


def test_an_endless_body_is_cut(open_service: Any) -> None:
    """Chunked, without a declared length: 413 after max_body_bytes, not after memory is full."""

    def endless() -> Any:
        for _ in range(100):
            yield b"a" * 1000

    response = open_service.client.post("/v1/classify", content=endless(), headers={"content-type": "application/json"})
    assert response.status_code == 413


def test_a_request_id_is_kept_if_it_is_harmless(open_service: Any) -> None:
    """Else the server's own is sent; the ledger's key is always the server's."""
    kept = open_service.classify("hello", headers={"x-request-id": "abc-1.2_3"})
    assert kept.headers["x-request-id"] == "abc-1.2_3"
    assert kept.json()["id"] != "abc-1.2_3"
    for value in (b"a b", b"x" * 65, b"x" * 10_000, b"a;b", b"\xff\xfe", "ü".encode(), b"<script>", b""):
        replaced = open_service.client.post("/v1/classify", json={"input": "hello"}, headers=[(b"x-request-id", value)])
        assert replaced.headers["x-request-id"] == replaced.json()["id"], value
    assert raw(open_service, START + b"x-request-id: a\x00b\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_the_servers_ids_sort_by_time(open_service: Any) -> None:
    """To the millisecond: the ledger's newest rows lie together."""
    ids = []
    for _ in range(20):
        ids.append(open_service.classify("hello").json()["id"])
        time.sleep(0.002)
    assert ids == sorted(ids)
    assert len({*ids}) == 20
    assert all(re.fullmatch("req_[0-9a-f]{24}", one) for one in ids)
    assert abs(int(ids[-1][4:16], 16) / 1000 - time.time()) < 60


def test_the_deadline_header_only_lowers(open_service: Any) -> None:
    """0 ms is not enough for a miss: 504; nonsense is 422; a huge one changes nothing."""
    late = open_service.classify("a text that nobody has sent yet", headers={"x-deadline-ms": "0"})
    assert late.status_code == 504
    assert late.json()["type"] == "urn:crossover:problem:deadline"
    assert open_service.classify("hello", headers={"x-deadline-ms": "soon"}).status_code == 422
    assert open_service.classify("hello", headers={"x-deadline-ms": "99999999"}).status_code == 200


def test_cache_control_is_obeyed(open_service: Any) -> None:
    """no-store leaves nothing behind; no-cache does not read."""
    text = "for the cache control test: how do I change my PIN"
    open_service.classify(text, headers={"cache-control": "no-store"})
    assert open_service.answer(text)["source"] == "local"
    fresh = open_service.classify(text, headers={"cache-control": "no-cache"}).json()["results"][0]
    assert fresh["source"] == "local"
    assert open_service.answer(text)["source"] == "cache"


def test_an_over_long_text_is_rejected_fast_without_a_provider(open_service: Any) -> None:
    """Its neighbours are answered."""
    response = open_service.classify(["word " * 3000, "I lost my card"])
    long, short = response.json()["results"]
    assert long["error"]["type"] == "urn:crossover:problem:over-length"
    assert short["label"] == "lost_or_stolen_card"


def test_health_ready_metrics_status_tasks_schema_answer(open_service: Any) -> None:
    """What probes and operators ask."""
    client: httpx.Client = open_service.client
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready", "degraded": []}
    status = client.get("/v1/status").json()
    assert status["model"]["encoders"][0]["kind"] == "onnx-int8"
    assert status["tasks"]["banking"]["threshold"] == 0.8
    nothing = {"usd_per_day": None, "spent_today_usd": 0.0}
    assert status["budget"] == {
        "usd_per_day": 1.0,
        "is_default": True,
        "spent_today_usd": 0.0,
        "when_out": "local",
        "tasks": {"banking": nothing},
        "tenants": {"local": nothing},
    }
    (task,) = client.get("/v1/tasks").json()
    assert (task["name"], len(task["labels"])) == ("banking", 77)
    metrics = client.get("/metrics").text
    for name in ("inputs_total", "latency_seconds_bucket", "batch_size_bucket", "resident_bytes", "ready 1.0"):
        assert f"crossover_{name}" in metrics
    assert client.get("/report").text.lstrip().lower().startswith("<!doctype html")


def test_the_document_describes_the_handler_as_it_is(open_service: Any) -> None:
    """Every status and field that the handler answers with is in the OpenAPI document."""
    document = open_service.client.get("/schema/openapi.json").json()
    operation = document["paths"]["/v1/classify"]["post"]
    assert {"200", "400", "401", "404", "408", "413", "415", "422", "429", "503", "504"} <= set(operation["responses"])
    schemas = document["components"]["schemas"]
    result = open_service.classify("I lost my card", top_k=1).json()["results"][0]
    assert set(result) <= set(schemas["Answer"]["properties"])
    assert schemas["ClassifyRequest"]["additionalProperties"] is False
    assert {"/health", "/ready", "/metrics", "/v1/status", "/v1/tasks"} <= set(document["paths"])


def test_without_a_key_or_with_a_wrong_one_nothing_is_read(locked_service: Any) -> None:
    """401 before the body is parsed: also for what is no JSON."""
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}, {"authorization": "Basic x"}):
        response = locked_service.client.post("/v1/classify", content=b"{not json", headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/status", "/v1/tasks", "/report"):
        assert locked_service.client.get(path).status_code == 401
    for path in ("/health", "/ready"):
        assert locked_service.client.get(path).status_code == 200


def test_a_wrong_key_is_told_late_and_holds_up_nobody_else(locked_service: Any) -> None:
    """Who guesses keys, or floods over its rate, does not take the event loop from others."""
    with ThreadPoolExecutor(1) as pool:
        started = time.monotonic()
        refused = pool.submit(locked_service.client.post, "/v1/classify", headers={"x-api-key": "wrong"}, json={})
        others = 0
        while not refused.done():
            assert locked_service.client.get("/health").status_code == 200
            others += 1
        assert refused.result().status_code == 401
        assert time.monotonic() - started >= admission.HOLD_S[0]
        assert others > 1


def test_two_tenants_never_read_each_others_answers(locked_service: Any) -> None:
    """The same text is computed for each; the tenant comes from the key, never from the body."""
    one, two = ({"authorization": f"Bearer {KEYS[name]}"} for name in ("one", "two"))
    text = "please, how can I change my PIN?"
    sources = [
        locked_service.classify(text, headers=headers).json()["results"][0]["source"]
        for headers in (one, one, two, two)
    ]
    assert sources == ["local", "cache", "local", "cache"]


def test_the_report_wants_the_admins_key(locked_service: Any) -> None:
    """A tenant's key is not enough."""
    tenant = locked_service.client.get("/report", headers={"x-api-key": KEYS["one"]})
    assert tenant.status_code == 401
    assert locked_service.client.get("/report", headers={"x-api-key": ADMIN}).status_code == 200


def test_the_log_has_one_line_a_request_and_no_text_and_no_key(locked_service: Any) -> None:
    """Canaries for both."""
    before = locked_service.output.count('"event":"request"')
    headers = {"authorization": f"Bearer {KEYS['one']}"}
    locked_service.classify("CANARYTEXT lost card", headers=headers)
    locked_service.client.post("/v1/classify?q=CANARYQUERY", content=b'{"input": "CANARYBROKEN', headers=headers)
    locked_service.client.post("/v1/classify", json={"input": 1, "CANARYFIELD": "CANARYVALUE"}, headers=headers)
    locked_service.wait_for(lambda: locked_service.output.count('"event":"request"') == before + 3)
    output = locked_service.output
    for canary in ("CANARYTEXT", "CANARYQUERY", "CANARYBROKEN", "CANARYVALUE", KEYS["one"], hashed(KEYS["one"])):
        assert canary not in output
    line = json.loads(next(x for x in reversed(output.splitlines()) if '"source":{"local":1}' in x))
    assert {"id", "task", "tenant", "source", "degraded", "cost_usd", "local_ms", "total_ms"} <= set(line)


def test_neither_redis_nor_the_ledger_holds_a_text_or_a_key(locked_service: Any) -> None:
    """Only keyed digests."""
    headers = {"authorization": f"Bearer {KEYS['one']}"}
    locked_service.classify("CANARYTEXT in the cache: I lost my card", headers=headers)
    import redis

    with redis.Redis(unix_socket_path=str(locked_service.state / "redis" / "redis.sock")) as client:
        kinds = {key: client.type(key) for key in client.keys("*")}
        assert set(kinds.values()) <= {b"string", b"hash"}
        kept = b"".join(
            key + (client.get(key) or b"" if kind == b"string" else repr(client.hgetall(key)).encode())
            for key, kind in kinds.items()
        )
    books = b"".join(path.read_bytes() for path in locked_service.state.glob("ledger.db*"))
    assert kept
    assert books
    for canary in (b"CANARYTEXT", KEYS["one"].encode(), hashed(KEYS["one"]).encode()):
        assert canary not in kept
        assert canary not in books


def test_gpu_memory_and_utilization_reach_the_metrics() -> None:
    """From the model's status, under the names that dashboard and alerts use."""
    from types import SimpleNamespace

    from prometheus_client import generate_latest

    from cost.fake import MemoryLedger
    from router.config import Config
    from router.http.ops import update_gauges
    from router.telemetry import Telemetry

    memory = {"device_used": 4, "device_total": 8, "allocated": 2, "reserved": 3, "utilization": 50}
    telemetry = Telemetry()
    encoder = {
        "source": "tiny",
        "device_memory": memory,
        "parameters": 7,
        "artifact_bytes": 14,
        "batch_tokens": 5,
        "queue_tokens": 6,
        "out_of_memory": 1,
    }
    model = SimpleNamespace(status=lambda: {"waiting_tokens": 3, "encoders": [encoder]})
    parts = {"chain": SimpleNamespace(status=list), "config": Config(), "ledger": MemoryLedger()}
    update_gauges(SimpleNamespace(telemetry=telemetry, model=model, **parts))
    text = generate_latest(telemetry.registry).decode()
    for kind, value in (("used", 4.0), ("total", 8.0), ("allocated", 2.0), ("reserved", 3.0)):
        assert f'crossover_gpu_memory_bytes{{kind="{kind}"}} {value}' in text
    assert "crossover_gpu_utilization_ratio 0.5" in text
    for name, value in {
        "model_parameters": 7,
        "model_bytes": 14,
        "batch_tokens": 5,
        "out_of_memory_batches": 1,
    }.items():
        assert f'crossover_{name}{{source="tiny"}} {value}.0' in text
    for kind, value in (("waiting", 3), ("most", 6)):
        assert f'crossover_queue_tokens{{kind="{kind}"}} {value}.0' in text
