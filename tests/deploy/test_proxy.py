"""The front proxy, run: a real nginx with the shipped file, and a stand-in for the router behind it."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")


class Proxy(NamedTuple):
    port: int
    seen: list[str]  # paths that came through
    router: ThreadingHTTPServer


@pytest.fixture
def proxy(root: Path, tmp_path: Path) -> Iterator[Proxy]:
    seen: list[str] = []
    router = ThreadingHTTPServer(("127.0.0.1", 0), _echo(seen))
    thread = threading.Thread(target=router.serve_forever)
    thread.start()
    port = _free_port()
    pid = tmp_path / "nginx.pid"
    file = tmp_path / "nginx.conf"
    file.write_text(_for_this_machine(root, tmp_path, port, router.server_port), encoding="utf-8")
    user = "user root; " if os.geteuid() == 0 else ""  # so that its workers can write into the test's folder
    # It goes into the background once it listens, so there is nothing to wait for.
    subprocess.run(["nginx", "-e", str(tmp_path / "error"), "-c", str(file), "-g", user], check=True, timeout=20)
    try:
        yield Proxy(port, seen, router)
    finally:
        os.kill(int(pid.read_text(encoding="ascii")), signal.SIGTERM)
        router.shutdown()
        thread.join()
        router.server_close()


def _for_this_machine(root: Path, folder: Path, port: int, router_port: int) -> str:
    """The shipped file, with this machine's addresses and folder, and a shorter patience."""
    text = (root / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    for old, new in (
        (r"\blisten 8080;", f"listen 127.0.0.1:{port};"),
        # Open-source nginx knows `resolve` since 1.27.3; there is no name to resolve here.
        (r"\bserver router:8080 resolve ", f"server 127.0.0.1:{router_port} "),
        (r"\bresolver [^;]*;", ""),
        (r"/tmp/", f"{folder}/"),
        (r"/dev/std(out|err)", f"{folder}/log"),
        (r"\bclient_header_timeout \w+;", "client_header_timeout 1s;"),
    ):
        text, count = re.subn(old, new, text)
        assert count, old
    return text


def _echo(seen: list[str]) -> type[BaseHTTPRequestHandler]:
    class Echo(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            seen.append(self.path)
            body = self.rfile.read(int(self.headers["content-length"] or 0))
            self._answer({"headers": {k.lower(): v for k, v in self.headers.items()}, "bytes": len(body)})

        def do_GET(self) -> None:
            seen.append(self.path)
            self._answer({})

        def _answer(self, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.send_header("x-request-id", "req_1")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Echo


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _ask(
    proxy: Proxy, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[http.client.HTTPResponse, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response, json.loads(response.read())
    finally:
        connection.close()


def test_a_request_reaches_the_router_as_it_was_sent(proxy: Proxy) -> None:
    sent = {"authorization": "Bearer k", "x-deadline-ms": "50", "x-request-id": "mine", "x-forwarded-for": "10.9.9.9"}
    response, answer = _ask(proxy, "POST", "/v1/classify", b'{"input": "x"}', sent)
    assert response.status == 200
    assert response.headers["x-request-id"] == "req_1"
    headers = answer["headers"]
    assert isinstance(headers, dict)
    assert answer["bytes"] == 14
    assert {name: headers[name] for name in ("authorization", "x-deadline-ms", "x-request-id")} == {
        name: sent[name] for name in ("authorization", "x-deadline-ms", "x-request-id")
    }
    assert headers["x-forwarded-for"] == "127.0.0.1"  # never what a caller claims to be


@pytest.mark.parametrize(
    "path",
    ["/metrics", "/metrics/", "//metrics", "/%6detrics", "/x/../metrics", "/report", "/v1/cache", "/v1/cache/stats"],
)
def test_what_is_for_the_inside_cannot_be_had_from_outside(proxy: Proxy, path: str) -> None:
    response, problem = _ask(proxy, "GET", path)
    assert response.status == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["type"] == "urn:crossover:problem:not-found"
    assert proxy.seen == []


def test_a_header_that_never_ends_is_cut_off_at_the_deadline_however_its_letters_come(proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as slow:
        started = time.monotonic()
        slow.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        slow.settimeout(0.2)
        reply = b"-"
        while reply:
            try:
                reply = slow.recv(4096)
            except TimeoutError:
                slow.sendall(b"a")  # a letter every 0.2 s does not buy time
            except ConnectionResetError:
                break
        assert 0.5 < time.monotonic() - started < 5
    assert proxy.seen == []


def test_a_body_beyond_all_bounds_is_refused_in_the_routers_words(proxy: Proxy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    connection.putrequest("POST", "/v1/classify")
    connection.putheader("content-length", str(10 * 2**30))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["type"] == "urn:crossover:problem:too-large"
    connection.close()
    assert proxy.seen == []


def test_without_a_router_callers_are_told_to_come_back(proxy: Proxy) -> None:
    proxy.router.shutdown()
    proxy.router.server_close()
    response, problem = _ask(proxy, "GET", "/ready")
    assert response.status == 503
    assert response.headers["retry-after"]
    assert problem["status"] == 503


def test_the_log_has_the_path_and_never_the_query(proxy: Proxy, tmp_path: Path) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    # Of two requests on one connection, the first is in the log before the second is read.
    for path in ("/health?text=canary-text", "/ready"):
        connection.request("GET", path)
        connection.getresponse().read()
    connection.close()
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert '"path":"/health"' in log
    assert "canary-text" not in log


def test_the_problems_it_states_itself_are_the_routers(root: Path) -> None:
    from router.problems import TABLE, URN

    text = (root / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    bodies = [json.loads(found) for found in re.findall(r"return \d+ '(\{.*\})'", text)]
    assert bodies
    for body in bodies:
        status, title = TABLE[body["type"].removeprefix(URN)]
        assert (body["status"], body["title"]) == (status, title)
