"""Health, readiness, metrics, status, tasks, the report: what operators and probes ask. Plain Litestar."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, cast

import msgspec
from litestar import MediaType, Request, Response, Router, get
from litestar.openapi import ResponseSpec
from litestar.params import QueryParameter

from router.admission import unique_headers
from router.http.errors import MEDIA_TYPE
from router.problems import TABLE, ProblemError
from router.reporting import budgets, budgets_used, report_page
from router.service import Service
from router.siblings import Siblings
from router.telemetry import dump, together
from router.types import Problem

#: Label of `crossover_gpu_memory_bytes` -> key in the model's status.
GPU_MEMORY = {
    "used": "device_used",
    "total": "device_total",
    "allocated": "allocated",
    "reserved": "reserved",
    "peak": "peak",
}
READINESS = {"warming": "warming", "leaving": "draining", "draining": "draining", "failed": "model-failed"}


def answers(service: Service) -> dict[str, Callable[[], bytes]]:
    """What a worker tells its siblings. Both block: the ledger is read."""
    return {
        "metrics": lambda: measured(service),
        "status": lambda: msgspec.json.encode(describe(service)),
    }


def ops_router(service: Service, siblings: Siblings) -> Router:
    """The routes, bound to their service."""

    @get("/health", sync_to_thread=False, summary="The event loop is alive")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @get(
        "/ready",
        sync_to_thread=False,
        responses=problems(503),
        summary="200 once the model is warm; what is degraded is listed, never red",
    )
    def ready() -> dict[str, Any]:
        if service.state != "ready":
            raise ProblemError(READINESS[service.state], f"the service is {service.state}", retry_after=2.0)
        return {"status": "ready", "degraded": service.degradations()}

    @get("/metrics", media_type=MediaType.TEXT, summary="Prometheus text format, of all workers")
    async def metrics() -> Response[bytes]:
        text = await asyncio.to_thread(together, await siblings.ask("metrics"))
        return Response(text, media_type="text/plain; version=0.0.4")

    @get("/v1/tasks", sync_to_thread=False, responses=problems(401, 429), summary="The tasks and their labels")
    def tasks(request: Request[Any, Any, Any]) -> list[dict[str, Any]]:
        service.door.identify(_headers(request))
        return [
            {"name": name, "model": route.info.model, "labels": [label.name for label in route.labels]}
            for name, route in service.tasks.items()
        ]

    @get(
        "/v1/status",
        responses=problems(401, 429),
        summary="Model, thresholds, cache, providers, budgets; a tenant's own, with an admin's key all tenants'",
    )
    async def status(request: Request[Any, Any, Any]) -> dict[str, Any]:
        tenant = _tenant_or_admin(service, _headers(request))
        told = await siblings.ask("status")
        workers: dict[int, Any] = {
            n: None if answer is None else msgspec.json.decode(answer) for n, answer in told.items()
        }
        own: dict[str, Any] = workers[siblings.place.number]
        if tenant is not None:  # who else there is, and what they spend, is an admin's to know
            tenants = own["budget"]["tenants"]
            own["budget"]["tenants"] = {name: tenants[name] for name in tenants if name == tenant}
        return own if siblings.place.of == 1 else {**own, "workers": [of_worker(*each) for each in workers.items()]}

    @get(
        "/report",
        sync_to_thread=True,
        media_type=MediaType.HTML,
        responses=problems(401, 422),
        summary="The crossover report as a page; `volume` is requests a month",
    )
    def report(request: Request[Any, Any, Any], volume: Annotated[int, QueryParameter(ge=0)] = 0) -> Response[str]:
        service.door.keys.admin(_headers(request))
        html = report_page(service.config, service.ledger_path, volume or None)
        return Response(html, media_type="text/html")

    return Router("/", route_handlers=[health, ready, metrics, tasks, status, report])


def problems(*statuses: int) -> dict[int, ResponseSpec]:
    """For the OpenAPI document: which problems a route answers with."""
    return {
        status: ResponseSpec(
            Problem,
            generate_examples=False,
            media_type=cast("MediaType", MEDIA_TYPE),
            description="; ".join(title for code, title in TABLE.values() if code == status),
        )
        for status in statuses
    }


def _headers(request: Request[Any, Any, Any]) -> dict[bytes, bytes]:
    return unique_headers(request.scope["headers"])


def _tenant_or_admin(service: Service, headers: dict[bytes, bytes]) -> str | None:
    """Which tenant asks; None for an admin. Raises `unauthorized` or `rate`."""
    with suppress(ProblemError):
        service.door.keys.admin(headers)
        return None
    return service.door.identify(headers).name


def describe(service: Service) -> dict[str, Any]:
    """What /v1/status says."""
    config = service.config
    return {
        "state": service.state,
        "uptime_s": round(time.time() - service.started, 1),
        "pid": os.getpid(),
        "config": service.config_digest,
        "degraded": service.degradations(),
        "model": service.model.status() if service.model else None,
        "tasks": {
            name: {
                "model": route.info.model,
                "labels": len(route.labels),
                "threshold": config.tasks[name].policy.threshold,
                "label_thresholds": config.tasks[name].policy.labels,
                "escalate": config.tasks[name].policy.escalate,
                "certificate": None,
            }
            for name, route in service.tasks.items()
        },
        "cache": {
            "kind": config.cache.url.split("://")[0],
            "ttl_s": config.cache.ttl_s,
            "available": "cache" not in service.degradations() and config.cache.url != "off",
        },
        "providers": service.chain.status(),
        "budget": budgets(config, service.ledger.spent_today()),
        "ledger": {"writable": service.ledger.writable, "pending": service.ledger.pending},
        "prices": {"version": service.prices.version},
    }


def of_worker(number: int, told: dict[str, Any] | None) -> dict[str, Any]:
    """A worker in /v1/status: what can differ between them. One that gives no answer is down."""
    if told is None:
        return {"worker": number, "up": False}
    return {
        "worker": number,
        "up": True,
        **{key: told[key] for key in ("pid", "state", "uptime_s", "degraded", "config")},
    }


def measured(service: Service) -> bytes:
    """The metrics of this process, now."""
    update_gauges(service)
    return dump(service.telemetry.registry)


def update_gauges(service: Service) -> None:
    """What is read when it is asked for."""
    telemetry = service.telemetry
    for lane in service.chain.status():
        telemetry.breaker.labels(lane["name"]).set(float(lane["breaker"] == "open"))
        telemetry.unpriced.labels(lane["name"]).set(len(lane["unpriced"]))
    telemetry.budget_used.clear()  # a limit may be gone
    for (scope, task), share in budgets_used(service.config, service.ledger.spent_today()).items():
        telemetry.budget_used.labels(scope, task).set(share)
    if service.model is None:
        return
    status = service.model.status()
    telemetry.queue_tokens.labels("waiting").set(status["waiting_tokens"])
    telemetry.queue_tokens.labels("most").set(sum(encoder["queue_tokens"] for encoder in status["encoders"]))
    by_source = (telemetry.model_parameters, telemetry.model_bytes, telemetry.batch_tokens, telemetry.out_of_memory)
    keys = ("parameters", "artifact_bytes", "batch_tokens", "out_of_memory")
    for gauge in by_source:
        gauge.clear()  # an encoder may have been replaced
    for encoder in status["encoders"]:
        for gauge, key in zip(by_source, keys, strict=True):
            gauge.labels(encoder["source"]).set(encoder[key])
        memory = encoder.get("device_memory", {})
        for kind, key in GPU_MEMORY.items():
            if key in memory:
                telemetry.gpu_memory.labels(kind).set(memory[key])
        if "utilization" in memory:
            telemetry.gpu_utilization.set(memory["utilization"] / 100)
