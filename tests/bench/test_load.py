"""The load generator: it counts what was answered, what was not, and how long it took; on real sockets."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class Tiny(ThreadingHTTPServer):
    """Echoes the body it was sent; {"do": ...} orders something else. Keeps when it served what."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.served: dict[int, tuple[float, float]] = {}
        self.connections: set[Any] = set()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    server: Tiny

    def do_POST(self) -> None:
        begun = time.perf_counter()
        self.server.connections.add(self.client_address)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(body)
        match asked.get("do"):
            case "hang":
                self.server.closing.wait()
                return
            case "drop":
                self.close_connection = True
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                return
        self.server.served[asked["number"]] = (begun, time.perf_counter())
        self.send_response(500 if asked.get("do") == "fail" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Tiny]:
    with Tiny() as tiny:
        thread = threading.Thread(target=tiny.serve_forever)
        thread.start()
        yield tiny
        tiny.closing.set()
        tiny.shutdown()
        thread.join()


def anything(_reply: Any) -> bool:
    return True


def test_every_request_is_sent_once_and_each_answer_stays_with_its_request(load: Any, server: Tiny) -> None:
    requests = [load.request(server.url, {"number": n}) for n in range(50)]
    replies = load.send(server.url, requests, connections=4)
    assert sorted(reply.number for reply in replies) == list(range(50))
    assert all(json.loads(reply.body)["number"] == reply.number for reply in replies)
    assert len(server.connections) == 4, "connections are kept alive"


def test_the_measured_time_encloses_the_time_the_server_took(load: Any, server: Tiny) -> None:
    replies = load.send(server.url, [load.request(server.url, {"number": n}) for n in range(20)], connections=2)
    for reply in replies:
        begun, ended = server.served[reply.number]
        assert reply.started <= begun <= ended <= reply.ended


def test_errors_and_broken_connections_are_failures_and_the_rest_goes_on(load: Any, server: Tiny) -> None:
    orders = ["fail", None, "drop", None, "fail", None, "drop", None, None, None]
    requests = [load.request(server.url, {"number": n, "do": do}) for n, do in enumerate(orders)]
    replies = load.send(server.url, requests, connections=2)
    assert {reply.number: reply.status for reply in replies} == {
        n: {"fail": 500, "drop": 0, None: 200}[do] for n, do in enumerate(orders)
    }
    seen = load.burst(server.url, requests, connections=2, accept=anything)
    assert (seen.answers, seen.failures) == (6, 4)


def test_an_answer_that_is_not_accepted_is_a_failure(load: Any, server: Tiny) -> None:
    requests = [load.request(server.url, {"number": n}) for n in range(9)]
    seen = load.burst(server.url, requests, connections=3, accept=lambda reply: reply.number % 3 == 0)
    assert (seen.answers, seen.failures) == (3, 6)


def test_a_server_that_stays_silent_is_given_up(load: Any, server: Tiny) -> None:
    requests = [load.request(server.url, {"number": 0}), *[load.request(server.url, {"do": "hang"})] * 2]
    replies = load.send(server.url, requests, connections=3, patience=0.3)
    assert sorted(reply.status for reply in replies) == [0, 0, 200]


def test_nobody_listening_is_an_error_and_no_zero(load: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(ConnectionRefusedError):
            load.send(url, [load.request(url, {})], connections=1)


def test_a_measurement_goes_round_its_requests_and_leaves_nothing_in_flight(load: Any, server: Tiny) -> None:
    requests = [load.request(server.url, {"number": n}) for n in range(3)]
    seen = load.measure(server.url, requests, connections=2, seconds=0.2, warmup=0.05, accept=anything)
    assert seen.seconds == pytest.approx(0.2)
    assert 3 < seen.answers < seen.served
    assert seen.failures == 0
    assert seen.per_second == pytest.approx(seen.answers / 0.2)
    assert 0 < seen.p50_ms <= seen.p99_ms


def test_only_answers_inside_the_window_count_for_rate_and_latency(load: Any) -> None:
    def reply(started: float, ended: float, status: int = 200) -> Any:
        return load.Reply(0, status, b"", started, ended)

    replies = [reply(0.0, 0.9), reply(0.9, 1.1), reply(1.1, 1.2), reply(1.2, 1.3, status=500), reply(1.9, 2.1)]
    seen = load.summary(replies, anything, 1.0, 2.0, cores=0.1)
    assert (seen.answers, seen.served, seen.failures, seen.seconds) == (2, 4, 1, 1.0)
    assert (seen.p50_ms, seen.p99_ms) == (pytest.approx(100), pytest.approx(200))


def test_percentiles_are_nearest_ranks(load: Any) -> None:
    hundred = [float(n) for n in range(1, 101)]
    assert [load.percentile(hundred, share) for share in (0, 0.5, 0.99, 0.991, 1)] == [1, 50, 99, 100, 100]
    assert load.percentile([7.0], 0.01) == load.percentile([7.0], 0.99) == 7
    assert math.isnan(load.percentile([], 0.5))


@pytest.mark.parametrize("head", [b"SSH-2.0-OpenSSH", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"])
def test_a_head_without_a_known_length_is_refused(load: Any, head: bytes) -> None:
    with pytest.raises(ValueError, match=r"HTTP/1|unpack|Content-Length"):
        load.parse_head(head)


def test_in_an_open_loop_requests_leave_at_their_times_and_slow_answers_hold_none_back(load: Any, server: Tiny) -> None:
    times = [0.02 * n for n in range(20)]
    orders = ["hang", *[None] * 19]  # the first is never answered
    requests = [load.request(server.url, {"number": n, "do": do}) for n, do in enumerate(orders)]
    begun = time.perf_counter()
    replies, late = load.arrive(server.url, requests, times, patience=0.3)
    assert {reply.number: reply.status for reply in replies} == {0: 0} | dict.fromkeys(range(1, 20), 200)
    assert len(late) == 20
    assert late == sorted(late)
    for reply in replies:
        assert reply.started == pytest.approx(begun + times[reply.number], abs=0.2), "counted from when it was due"
    assert all(server.served[number][0] >= begun + times[number] for number in range(1, 20))
    assert len(server.connections) < 20, "connections are used again"


def test_in_an_open_loop_a_request_that_could_not_be_sent_in_time_counts_its_delay(load: Any, server: Tiny) -> None:
    requests = [load.request(server.url, {"number": n}) for n in range(3)]
    replies, late = load.arrive(server.url, requests, [-0.5, -0.5, 0.0], patience=5)
    took = {reply.number: reply.ended - reply.started for reply in replies}
    assert took[0] > 0.5
    assert took[1] > 0.5
    assert took[2] < 0.5
    assert late[-1] > 0.5


def test_in_an_open_loop_nobody_listening_and_broken_connections_are_failures(load: Any, server: Tiny) -> None:
    orders = ["drop", "fail", None]
    requests = [load.request(server.url, {"number": n, "do": do}) for n, do in enumerate(orders)]
    replies, _ = load.arrive(server.url, requests, [0.0, 0.1, 0.2], patience=5)
    assert {reply.number: reply.status for reply in replies} == {0: 0, 1: 500, 2: 200}
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        replies, _ = load.arrive(url, [load.request(url, {})], [0.0], patience=5)
    assert [reply.status for reply in replies] == [0]
