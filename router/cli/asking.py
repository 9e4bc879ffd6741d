"""Two ways to have texts classified by a command: in this process, or by a service. Both give the wire's answers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from router.cli.options import starting
from router.config_file import Loaded
from router.problems import TABLE, URN, ProblemError

if TYPE_CHECKING:
    from router.service import Service

#: Texts of one request in, the decoded body of the response out. Raises `ProblemError` or `Unanswered`.
Ask = Callable[[Sequence[str]], Awaitable[dict[str, Any]]]
Route = Literal["auto", "local"]


class Unanswered(Exception):
    """Nobody is there to answer, and there is no point in asking again. The message says what to do."""


class Stopped(Exception):
    """A job can't go on now; the next run goes on with it. The message says why and what to do."""


@asynccontextmanager
async def open_service(loaded: Loaded) -> AsyncIterator[tuple[Service, list[str]]]:
    """The service without its HTTP side, ready; and why it is dead, if it is. What can't be opened is one line and exit
    code 2."""
    from router.logs import configure_logging
    from router.service import Service

    configure_logging("critical")
    failures: list[str] = []
    service = Service(loaded, on_fatal=failures.append)
    with starting():
        await service.open()
    try:
        try:
            await service.wait_until_ready()
        except ProblemError as error:
            with starting():
                raise ValueError(failures[0] if failures else str(error)) from None
        yield service, failures
    finally:
        await service.close()


@asynccontextmanager
async def in_process(loaded: Loaded, task: str | None, route: Route) -> AsyncIterator[Ask]:
    """The service's answers, without its HTTP side."""
    from router.admission import Tenant
    from router.config import LOCAL_TENANT
    from router.outcome import to_wire
    from router.types import ClassifyRequest, ClassifyResponse

    async with open_service(loaded) as (service, failures):

        async def ask(texts: Sequence[str]) -> dict[str, Any]:
            request = ClassifyRequest(list(texts), task=task, route=route)
            started = time.perf_counter_ns()
            asked = service.ask(request, Tenant(LOCAL_TENANT), f"req_cli_{time.time_ns():x}", started)
            try:
                outcomes = await service.pipeline.classify(asked)
            finally:
                if failures:  # the model is dead: not a fault of these texts
                    raise Unanswered(failures[0])
            took = (time.perf_counter_ns() - started) // 1000
            results = [to_wire(outcome, total_us=took, top_k=None) for outcome in outcomes]
            answer = ClassifyResponse(asked.request_id, asked.task.info.name, results)
            wire: dict[str, Any] = msgspec.to_builtins(answer)
            return wire

        yield ask


@asynccontextmanager
async def through_service(url: str, key: str | None, task: str | None, route: Route) -> AsyncIterator[Ask]:
    """The service at `url`."""
    import httpx

    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=60) as client:

        async def ask(texts: Sequence[str]) -> dict[str, Any]:
            body = {"input": list(texts), "route": route, **({"task": task} if task else {})}
            try:
                response = await client.post(f"{url.rstrip('/')}/v1/classify", json=body)
            except httpx.ConnectError:
                raise Unanswered(
                    f"{url}: connection refused, or no such host: is the service running there? "
                    "Start it with `crossover serve`, or leave --url out to classify in process"
                ) from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise Unanswered(f"{url} did not answer: {type(error).__name__}") from None
            try:
                answer: dict[str, Any] = msgspec.json.decode(response.content, type=dict)
            except msgspec.MsgspecError:
                raise Unanswered(f"{url} answered {response.status_code}, but not as Crossover does") from None
            if response.status_code == 200 and "results" in answer:
                return answer
            kind = str(answer.get("type", "")).removeprefix(URN)
            told = f"{url} answered {response.status_code}: {answer.get('detail', '')}"
            if kind not in TABLE:
                raise Unanswered(told)
            seconds = response.headers.get("retry-after", "")
            raise ProblemError(kind, told, retry_after=float(seconds) if seconds.isdigit() else None)

        yield ask
