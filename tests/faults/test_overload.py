"""Overload: a fast 429, never a slow 200, never a 5xx."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx


def test_more_than_the_queue_holds_is_refused_and_the_service_is_well_afterwards(
    serve: Callable[..., Any], banking: str
) -> None:
    """200 or 429 with Retry-After for each of many batch requests at once; then everything is answered again."""
    service = serve(f'{banking}[cache]\nurl = "off"\n[model]\nqueue_items = 16\n')

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


def test_more_requests_than_slots_are_refused_and_health_is_not(serve: Callable[..., Any], banking: str) -> None:
    """Slots are taken before the body is read; probes take none."""
    service = serve(banking + "[server]\nmax_concurrent = 1\nbody_deadline_ms = 3000\n")
    host, port = service.url.removeprefix("http://").split(":")

    async def main() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        )
        await writer.drain()
        async with httpx.AsyncClient(base_url=service.url) as client:
            while True:  # until the slow one is inside
                refused = await client.post("/v1/classify", json={"input": "I lost my card"})
                if refused.status_code != 200:
                    break
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert (await client.get("/health")).status_code == 200
            assert (await client.get("/ready")).status_code == 200
        assert (await reader.read(100)).startswith(b"HTTP/1.1 408")
        writer.close()
        await writer.wait_closed()

    asyncio.run(main())
    assert service.answer("I lost my card")["label"] == "lost_or_stolen_card"
