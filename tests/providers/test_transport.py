"""Where a call goes: through the environment's proxy, but not to this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from providers.build import build
from providers.settings import Settings
from providers.simulator import Simulator
from providers.types import AuthFailed, Question, RateLimited, Unavailable


@asynccontextmanager
async def proxy(asked: list[bytes]) -> Any:
    """Writes down what it is asked for first, and refuses it."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for way in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(way, raising=False)
        monkeypatch.delenv(way.upper(), raising=False)
    yield


def test_a_proxy_of_the_environment_is_asked_for_hosts_that_are_not_excepted(
    kind: str, question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees the host's name only: what follows would be TLS."""

    async def main() -> None:
        asked: list[bytes] = []
        async with proxy(asked) as url:
            monkeypatch.setenv("HTTPS_PROXY", url)
            monkeypatch.setenv("NO_PROXY", "excepted.invalid")
            for host in ("api.invalid", "excepted.invalid"):
                provider = build(kind, name="p", model="m", api_key="k", settings=Settings(f"https://{host}/v1"))  # type: ignore[arg-type]
                with pytest.raises(Unavailable):
                    await provider.ask(question, timeout=5)
                await provider.close()
        assert [line.split()[:2] for line in asked] == [[b"CONNECT", b"api.invalid:443"]]

    asyncio.run(main())


def test_a_server_on_this_machine_is_asked_without_a_proxy(question: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        asked: list[bytes] = []
        async with proxy(asked) as url, Simulator() as sim:
            monkeypatch.setenv("HTTP_PROXY", url)
            provider = build("openai", name="p", model="m", api_key="k", settings=Settings(f"{sim.url}/v1"))
            assert (await provider.ask(question, timeout=5)).label
            await provider.close()
        assert asked == []

    asyncio.run(main())


@asynccontextmanager
async def server(answer: bytes, *, calls: asyncio.Semaphore | None = None, until: asyncio.Event | None = None) -> Any:
    """Gives the same answer to every call, once `until` is set."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if calls is not None:
            calls.release()
        if until is not None:
            await until.wait()
        writer.write(answer)
        with suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, backlog=500) as there:
        yield f"http://127.0.0.1:{there.sockets[0].getsockname()[1]}"


def test_as_many_calls_are_under_way_as_the_lane_allows(question: Question) -> None:
    """A pool of connections would let some wait, unseen, until their time is over."""

    async def main() -> None:
        calls, most, gate = asyncio.Semaphore(0), 130, asyncio.Event()
        async with server(b"HTTP/1.1 401 No\r\ncontent-length: 2\r\n\r\n{}", calls=calls, until=gate) as url:
            provider = build("openai", name="p", model="m", api_key="k", settings=Settings(url))
            asking = [asyncio.create_task(provider.ask(question, timeout=30)) for _ in range(most)]
            async with asyncio.timeout(20):
                for _ in range(most):
                    await calls.acquire()
            gate.set()
            ends = await asyncio.gather(*asking, return_exceptions=True)
            assert {type(end) for end in ends} == {AuthFailed}
            await provider.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"retry-after: 7\r\ncontent-length: 300000\r\n\r\n" + b"x" * 300_000,
        b"retry-after: 7\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\njunk",
        b"retry-after: 7\r\ncontent-encoding: br\r\ncontent-length: 4\r\n\r\njunk",
    ],
)
def test_a_status_counts_whatever_its_page_is(kind: str, question: Question, answer: bytes) -> None:
    """A gateway's page of 300 KB is no answer that somebody has to pay for."""

    async def main() -> None:
        async with server(b"HTTP/1.1 429 Slow\r\n" + answer) as url:
            provider = build(kind, name="p", model="m", api_key="k", settings=Settings(url))  # type: ignore[arg-type]
            with pytest.raises(RateLimited) as caught:
                await provider.ask(question, timeout=10)
            assert (caught.value.billed, caught.value.retry_after) == ("no", 7)
            await provider.close()

    asyncio.run(main())
