"""Overload: a fast 429, never a slow 200, never a 5xx."""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from router.app import create_app
from router.config_file import load


def test_more_than_the_queue_holds_is_refused_and_the_service_is_well_afterwards(
    serve: Callable[..., Any], banking: str
) -> None:
    """200 or 429 with Retry-After for each of many batch requests at once; then everything is answered again."""
    service = serve(f'{banking}[cache]\nurl = "off"\n[model]\nqueue_tokens = 128\n')

    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            batches = [[f"text {batch} {number}" for number in range(16)] for batch in range(40)]
            return await asyncio.gather(*(client.post("/v1/classify", json={"input": texts}) for texts in batches))

    replies = asyncio.run(flood())
    statuses = {reply.status_code for reply in replies}
    assert statuses == {200, 429}
    for reply in replies:
        if reply.status_code == 429:
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.json()["type"] == "urn:crossover:problem:overloaded"
    assert service.answer("I lost my card")["label"] == "lost_or_stolen_card"
    assert service.client.get("/v1/status").json()["model"]["waiting"] == 0


def test_slow_bodies_hold_no_slot_and_there_is_an_end_to_them_too(serve: Callable[..., Any], banking: str) -> None:
    """One slot, eight bodies on their way at most: what comes in one piece is answered beside them, probes always."""
    service = serve(banking + "[server]\nmax_concurrent = 1\nbody_deadline_ms = 3000\n")
    host, port = service.url.removeprefix("http://").split(":")
    head = b"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"

    async def main() -> None:
        statuses = []

        async def send(body: bytes) -> int:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head + b"content-length: 27\r\n\r\n" + body)
            status = int((await reader.readline()).split()[1])
            writer.close()
            await writer.wait_closed()
            return status

        async def send_slowly() -> None:
            statuses.append(await send(b"{"))

        async with httpx.AsyncClient(base_url=service.url) as client, asyncio.timeout(60):
            slow = [asyncio.create_task(send_slowly()) for _ in range(20)]
            while statuses.count(429) < 12:
                assert await send(b'{"input": "I lost my card"}') == 200
                assert (await client.get("/health")).status_code == 200
                assert (await client.get("/ready")).status_code == 200
            assert await send(b'{"input": "I lost my card"}') == 200
            await asyncio.gather(*slow)
        assert sorted(statuses) == [408] * 8 + [429] * 12

    asyncio.run(main())


def test_ten_times_too_much_is_refused_quickly_and_costs_no_memory(serve: Callable[..., Any], banking: str) -> None:
    """Impatient callers, all misses, for as long as it takes to answer 100 requests: the same number is answered in
    about the time that a fair load needs for it, and two seconds later nothing is left of it."""
    service = serve(f'{banking}[cache]\nurl = "off"\n[model]\nqueue_tokens = 256\n')
    numbers = iter(range(10**9))

    async def run(callers: int, wanted: int) -> tuple[float, list[httpx.Response]]:
        """Seconds until `wanted` requests of eight texts were answered; and all replies."""
        replies: list[httpx.Response] = []
        answered = 0

        async def call(client: httpx.AsyncClient) -> None:
            nonlocal answered
            while answered < wanted:
                number = next(numbers)
                texts = [f"text {number} {part}" for part in range(8)]
                reply = await client.post("/v1/classify", json={"input": texts})
                answered += reply.status_code == 200
                replies.append(reply)

        limits = httpx.Limits(max_connections=callers)
        async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as client:
            began = asyncio.get_running_loop().time()
            await asyncio.gather(*(call(client) for _ in range(callers)))
            return asyncio.get_running_loop().time() - began, replies

    _, warming = asyncio.run(run(40, 50))
    quiet_s, replies = asyncio.run(run(2, 100))
    logged = len(warming) + len(replies)
    assert {reply.status_code for reply in replies} == {200}
    before = psutil.Process(service.process.pid).memory_info().rss
    service.wait_for(lambda: service.output.count('"event":"request"') == logged)
    busy_s, replies = asyncio.run(run(40, 100))
    refused = [reply for reply in replies if reply.status_code != 200]
    assert len(refused) > 30
    assert {(reply.status_code, reply.headers["retry-after"]) for reply in refused} == {(429, "1")}
    assert busy_s < 5 * quiet_s  # the callers take turns with the service on the same cores
    assert psutil.Process(service.process.pid).memory_info().rss - before < 32 * 1024 * 1024
    service.client.timeout = 2.0
    assert service.answer("I lost my card")["label"] == "lost_or_stolen_card"
    service.wait_for(lambda: service.output.count('"event":"request"') == logged + len(replies) + 1)
    lines = [json.loads(line) for line in service.output.splitlines() if '"event":"request"' in line][logged:]
    took = {status: statistics.median(x["total_ms"] for x in lines if x["status"] == status) for status in (200, 429)}
    assert took[429] < took[200] / 2  # in the service: the callers' own time is not counted


def test_hits_are_answered_while_the_models_queue_is_full(serve: Callable[..., Any], banking: str) -> None:
    """What protects the model does not stand in the way of what needs no model."""
    service = serve(f"{banking}[model]\nqueue_tokens = 128\n")
    service.answer("I lost my card")

    async def main() -> None:
        refused = 0
        over = asyncio.Event()
        numbers = iter(range(10**9))

        async def flood(client: httpx.AsyncClient) -> None:
            nonlocal refused
            while not over.is_set():
                texts = [f"text {next(numbers)}" for _ in range(16)]
                refused += (await client.post("/v1/classify", json={"input": texts})).status_code == 429

        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            floods = [asyncio.create_task(flood(client)) for _ in range(16)]
            hits = 0
            while refused < 30 or hits < 30:
                reply = await client.post("/v1/classify", json={"input": "I lost my card"})
                assert reply.status_code == 200
                assert reply.json()["results"][0]["source"] == "cache"
                hits += 1
            over.set()
            await asyncio.gather(*floods)

    asyncio.run(main())


def key_of(tenant: str, more: str = "") -> str:
    """A config text: the tenant's key, which is its name."""
    return f'[[auth.keys]]\ntenant = "{tenant}"\nsha256 = "{hashlib.sha256(tenant.encode()).hexdigest()}"\n{more}'


def test_a_tenant_over_its_rate_is_told_when_to_come_back_and_others_notice_nothing(
    serve: Callable[..., Any], banking: str
) -> None:
    """Its burst, then 429 of its own kind, whatever it asks; health passes."""
    limits = "[auth.limits.noisy]\nrate = 0.01\nburst = 5\n"
    service = serve(banking + key_of("noisy") + key_of("quiet") + limits)
    for number in range(12):
        noisy = service.classify("I lost my card", headers={"x-api-key": "noisy"})
        assert noisy.status_code == (200 if number < 5 else 429)
        if noisy.status_code == 429:
            assert noisy.json()["type"] == "urn:crossover:problem:rate"
            assert 50 < int(noisy.headers["retry-after"]) <= 100
        if number % 10 == 0:
            assert service.classify("I lost my card", headers={"x-api-key": "quiet"}).status_code == 200
            assert service.client.get("/health").status_code == 200
    assert service.metric('crossover_errors_total{type="rate"}') == 7


def test_a_tenant_that_floods_has_half_of_the_slots_at_most(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str]
) -> None:
    """Its requests wait for a slow frontier; the other's are answered."""
    frontier = simulate("--latency-ms", "2000")
    config = with_frontier(frontier.url, key_of("noisy") + key_of("quiet") + "[server]\nmax_concurrent = 8\n", 1.0)
    service = serve(config)

    async def main() -> list[int]:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:

            async def ask(text: str, tenant: str, **more: str) -> int:
                reply = await client.post("/v1/classify", json={"input": text, **more}, headers={"x-api-key": tenant})
                return reply.status_code

            noisy = [asyncio.create_task(ask(f"text {number}", "noisy")) for number in range(40)]
            for number in range(50):
                assert await ask(f"text {number}", "quiet", route="local") == 200
            return await asyncio.gather(*noisy)

    statuses = asyncio.run(main())
    assert sorted(statuses) == [200] * 4 + [429] * 36


def test_slow_heads_and_bodies_in_number_take_nothing_from_others(serve: Callable[..., Any], banking: str) -> None:
    """A slow loris of three hundred: every other request is answered, and so is every one that comes to its end."""
    service = serve(banking + "[server]\nmax_concurrent = 50\n")
    host, port = service.url.removeprefix("http://").split(":")
    body = b'{"input": "I lost my card"}'
    head = b"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    request = head + b"content-length: %d\r\n\r\n" % len(body) + body

    async def main() -> None:
        slow = [await asyncio.open_connection(host, int(port)) for _ in range(300)]
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            for step in range(20):
                for number, (_, writer) in enumerate(slow):
                    whole = request if number % 2 else body  # the others sent their heads at once
                    if not step and whole is body:
                        writer.write(request.removesuffix(body))
                    writer.write(whole[:-1][len(whole) * step // 20 : len(whole) * (step + 1) // 20])
                assert (await client.post("/v1/classify", json={"input": f"text {step}"})).status_code == 200
        for reader, writer in slow:
            writer.write(request[-1:])
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())


def test_nothing_holds_up_the_event_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, banking: str) -> None:
    """No callback takes 100 ms of CPU, whatever is asked. Not of time: this machine may have other things to do."""
    longest: list[tuple[float, str]] = [(0.0, "")]
    run_really = asyncio.Handle._run

    def run(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run_really(handle)
        longest[0] = max(longest[0], (time.thread_time() - began, repr(handle)))

    path = tmp_path / "crossover.toml"
    path.write_text(banking)
    app = create_app(load(path, {}))
    signs = ["é", "e\u0301", "\u0301", "a" + 30 * "\u0301\u0323", "\U0001f4b3", "\u4e2d", "\u1112\u1161\u11ab"]
    word = "how do I change my PIN, please? "
    asked: list[dict[str, Any]] = [
        {"json": {"input": "I lost my card"}},
        {"json": {"input": [f"{word} {number}" for number in range(128)], "top_k": 10}},
        {"json": {"input": [word * 200 + str(number) for number in range(128)]}},
        {"json": {"input": word * 30_000}},
        {"json": {"input": " " * 1_000_000}},
        *({"content": b'{"input": "%s"}' % (sign * (1_000_000 // len(sign)))} for sign in map(str.encode, signs)),
        {"content": b"[" * 1_000_000},
        {"content": b'{"input": "\xff' + b"a" * 1_000_000},
        {"content": b'{"x": ' + b"[1.0," * 200_000},
        {"json": {"input": "a" * 1_100_000}},
    ]
    monkeypatch.setattr(asyncio.Handle, "_run", run)

    async def main() -> None:
        service = app.state.service
        await service.open()
        try:
            await service.wait_until_ready()
            longest[0] = (0.0, "")  # starting is another matter
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:

                async def ask(number: int) -> None:
                    headers = {"content-type": "application/json", "cache-control": "no-cache" if number % 2 else ""}
                    reply = await client.post("/v1/classify", headers=headers, **asked[number % len(asked)])
                    assert reply.status_code in (200, 400, 413, 422, 429, 504), reply.text
                    for page in ("/metrics", "/v1/status", "/ready"):
                        await client.get(page)

                for _ in range(2):
                    await asyncio.gather(*(ask(number) for number in range(2 * len(asked))))
        finally:
            await service.close()

    asyncio.run(main())
    seconds, where = longest[0]
    assert seconds < 0.1, where
