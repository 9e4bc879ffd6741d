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
    """One slot, eight bodies on their way at most: what is fast is answered beside slow ones, and probes always."""
    service = serve(banking + "[server]\nmax_concurrent = 1\nbody_deadline_ms = 3000\n")
    host, port = service.url.removeprefix("http://").split(":")
    head = b"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"

    async def main() -> None:
        writers = []

        async def begin_slowly(count: int) -> None:
            for _ in range(count):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(head + b"content-length: 9\r\n\r\n{")
                await writer.drain()
                writers.append(writer)

        async with httpx.AsyncClient(base_url=service.url) as client, asyncio.timeout(60):

            async def ask() -> httpx.Response:
                return await client.post("/v1/classify", json={"input": "I lost my card"})

            await begin_slowly(7)
            assert (await ask()).status_code == 200
            await begin_slowly(1)
            while (refused := await ask()).status_code == 200:  # until the eighth is in
                await asyncio.sleep(0.01)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert (await client.get("/health")).status_code == 200
            assert (await client.get("/ready")).status_code == 200
            while (await ask()).status_code != 200:  # until the slow ones have had their 408
                await asyncio.sleep(0.05)
        for writer in writers:
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())
