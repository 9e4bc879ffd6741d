"""Load while something breaks: real processes, killed and stopped for real."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

TEXTS = [
    "I lost my card",
    "how do I change my PIN",
    "my card still has not arrived",
    "why was I charged a fee for the cash withdrawal",
    "I want to close my account",
    "what is your exchange rate",
    "the ATM swallowed my card",
    "how old must I be to open an account",
]


class Load:
    """Sends `texts` over and over, `workers` at a time, until `enough()`; keeps every reply or exception."""

    def __init__(self, url: str, texts: list[str], workers: int = 8) -> None:
        self.url, self.texts, self.workers = url, texts, workers
        self.replies: list[tuple[str, int, Any]] = []
        self.broken: list[Exception] = []
        self._changed = asyncio.Condition()

    async def answered(self, count: int) -> None:
        """Until so many more replies have come."""
        wanted = len(self.replies) + count
        async with self._changed, asyncio.timeout(60):
            await self._changed.wait_for(lambda: len(self.replies) >= wanted)

    async def run(self, script: Callable[[Load], Awaitable[None]], *, stop_on_error: bool = False) -> None:
        """Load goes on while `script(self)` runs."""
        done = asyncio.Event()
        numbers = iter(range(10**9))

        async def worker(client: httpx.AsyncClient) -> None:
            while not done.is_set():
                text = self.texts[next(numbers) % len(self.texts)]
                try:
                    response = await client.post("/v1/classify", json={"input": text})
                    self.replies.append((text, response.status_code, response.json()))
                except httpx.HTTPError as error:
                    self.broken.append(error)
                    if stop_on_error:
                        return
                async with self._changed:
                    self._changed.notify_all()

        limits = httpx.Limits(max_connections=self.workers)
        async with httpx.AsyncClient(base_url=self.url, timeout=30, limits=limits) as client:
            workers = [asyncio.create_task(worker(client)) for _ in range(self.workers)]
            try:
                await script(self)
            finally:
                done.set()
                await asyncio.gather(*workers)

    def labels(self, replies: list[tuple[str, int, Any]] | None = None) -> dict[str, set[str]]:
        """Which labels each text got."""
        found: dict[str, set[str]] = {}
        for text, _, body in self.replies if replies is None else replies:
            found.setdefault(text, set()).add(body["results"][0]["label"])
        return found


@pytest.fixture
def load() -> type[Load]:
    return Load


@pytest.fixture
def texts() -> list[str]:
    return list(TEXTS)
