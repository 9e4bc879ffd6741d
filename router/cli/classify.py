"""`crossover classify`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from router.cli.options import config_option, json_option, load_or_exit, stop


@click.command()
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@click.option("--task", help="May be left out where one task is configured.")
@click.option("--url", help="Ask this service. [default: in process, without a server]")
@click.option("--key", envvar="CROSSOVER_API_KEY", help="API key for --url. [env: CROSSOVER_API_KEY]")
@click.option("--escalate", is_flag=True, help="May ask the frontier, which costs money; without it, local only.")
@config_option
@json_option
def classify(
    texts: Sequence[str],
    task: str | None,
    url: str | None,
    key: str | None,
    escalate: bool,
    config: Path | None,
    as_json: bool,
) -> None:
    """Classify TEXTs, in process or through a service. Spends nothing without --escalate."""
    body = {"input": list(texts), "route": "auto" if escalate else "local", **({"task": task} if task else {})}
    answer = through_service(url, key, body) if url else asyncio.run(in_process(config, body))
    if as_json:
        click.echo(msgspec.json.encode(answer))
        return
    for text, result in zip(texts, answer["results"], strict=True):
        if "error" in result:
            click.echo(f"error\t{result['error']['detail']}\t{text}")
            continue
        sure = "" if result["confidence"] is None else f"{result['confidence']:.3f}"
        mark = f"\tdegraded: {result['degraded']}" if result["degraded"] else ""
        click.echo(f"{result['label']}\t{sure}\t{result['source']}\t{text}{mark}")


def through_service(url: str, key: str | None, body: dict[str, Any]) -> dict[str, Any]:
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.post(f"{url.rstrip('/')}/v1/classify", json=body, headers=headers, timeout=60)
        answer: dict[str, Any] = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        stop(f"{url} did not answer: {type(error).__name__}", 1)
    if response.status_code != 200:
        stop(f"{url} answered {response.status_code}: {answer.get('detail', '')}", 1)
    return answer


async def in_process(config: Path | None, body: dict[str, Any]) -> dict[str, Any]:
    from router.admission import LOCAL_TENANT, Tenant
    from router.outcome import to_wire
    from router.problems import ProblemError
    from router.service import Service
    from router.telemetry import configure_logging
    from router.types import ClassifyRequest, ClassifyResponse

    configure_logging("warning")
    service = Service(load_or_exit(config))
    await service.open()
    try:
        await service.wait_until_ready()
        request = msgspec.convert(body, ClassifyRequest)
        ask = service.ask(request, Tenant(LOCAL_TENANT), f"req_cli_{time.time_ns():x}", time.perf_counter_ns())
        outcomes = await service.pipeline.classify(ask)
    except ProblemError as error:
        stop(str(error), 1)
    finally:
        await service.close()
    took = (time.perf_counter_ns() - ask.started_ns) // 1000
    results = [to_wire(outcome, total_us=took, top_k=None) for outcome in outcomes]
    answer: dict[str, Any] = msgspec.to_builtins(ClassifyResponse(ask.request_id, ask.task.info.name, results))
    return answer
