"""The service's life: warming, ready, draining, dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from local_model.engines import EngineDead
from router.app import create_app
from router.config_file import load
from router.problems import ProblemError
from router.service import Service


@pytest.fixture
def loaded(tmp_path: Path) -> Any:
    path = tmp_path / "crossover.toml"
    path.write_text('[tasks.banking]\nhead = "banking77"\n[cache]\nurl = "off"\n')
    return load(path, {})


def test_until_the_model_is_warm_there_is_no_answering(loaded: Any) -> None:
    """503 with Retry-After, then ready; while it closes, 503 again."""

    async def main() -> None:
        service = Service(loaded)
        await service.open()
        try:
            with pytest.raises(ProblemError) as caught:
                _ = service.pipeline
            assert (caught.value.kind, caught.value.status, caught.value.retry_after) == ("warming", 503, 2.0)
            await service.wait_until_ready()
            assert service.pipeline
        finally:
            await service.close()
        with pytest.raises(ProblemError) as caught:
            _ = service.pipeline
        assert caught.value.kind == "draining"

    asyncio.run(main())


def test_a_dead_engine_fails_its_callers_turns_ready_red_and_asks_for_the_end(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `serve` turns into exit code 70."""

    async def main() -> None:
        reasons: list[str] = []
        service = Service(loaded, on_fatal=reasons.append)
        await service.open()
        try:
            await service.wait_until_ready()
            assert service.model is not None
            engine = service.model._stations[0].opened.engine

            def dies(_batch: Any) -> Any:
                raise EngineDead("gone")

            monkeypatch.setattr(engine, "forward", dies)
            (future,) = service.model.submit("banking", ["I lost my card"], truncate=False, deadline=None)
            with pytest.raises(Exception, match=r".+"):
                await future
            async with asyncio.timeout(10):
                while not reasons:
                    await asyncio.sleep(0)
            assert service.state == "failed"
            with pytest.raises(ProblemError) as caught:
                _ = service.pipeline
            assert caught.value.status == 503
        finally:
            await service.close()

    asyncio.run(main())


def test_a_hanging_forward_is_as_dead_as_one_that_ended(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch sees that the model is not healthy any more."""

    async def main() -> None:
        reasons: list[str] = []
        service = Service(loaded, on_fatal=reasons.append)
        await service.open()
        try:
            await service.wait_until_ready()
            monkeypatch.setattr(type(service.model), "healthy", property(lambda _: False))
            async with asyncio.timeout(10):
                while not reasons:
                    await asyncio.sleep(0.01)
            assert service.state == "failed"
        finally:
            await service.close()

    asyncio.run(main())


def test_after_a_thousand_mixed_requests_no_task_is_left(
    loaded: Any, tmp_path: Path, simulate: Callable[..., Any]
) -> None:
    """Local, paid, failed, refused, abandoned: all that was begun has ended."""
    frontier = simulate("--fault", "529:0.05", "--fault", "malformed:0.05", "--fault", "reset:0.05")
    path = tmp_path / "paying.toml"
    provider = f'[providers.a]\nkind = "anthropic"\nmodel = "claude-haiku-5-5"\nbase_url = "{frontier.url}"\n'
    path.write_text(loaded.path.read_text() + provider)
    bodies: list[Callable[[int], dict[str, Any]]] = [
        lambda _: {"input": "I lost my card"},
        lambda number: {"input": f"hmm {number}"},
        lambda _: {"input": ["", "word " * 3000]},
        lambda _: {"input": "x", "task": "none"},
        lambda _: {"nonsense": True},
    ]

    async def main() -> None:
        app = create_app(load(path, {}))
        service: Service = app.state.service
        await service.open()
        try:
            await service.wait_until_ready()
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:

                async def ask(number: int) -> None:
                    asking = asyncio.create_task(client.post("/v1/classify", json=bodies[number % 5](number)))
                    if number % 7 == 0:
                        await asyncio.sleep(0)
                        asking.cancel()
                    await asyncio.gather(asking, return_exceptions=True)

                baseline = asyncio.all_tasks()
                for start in range(0, 1000, 20):
                    await asyncio.gather(*(ask(number) for number in range(start, start + 20)))
                async with asyncio.timeout(15):
                    while left := asyncio.all_tasks() - baseline:
                        await asyncio.wait(left)
            (lane,) = service.chain.status()
            assert lane["calls"] > 50
            assert service.state == "ready"
        finally:
            await service.close()

    asyncio.run(main())
