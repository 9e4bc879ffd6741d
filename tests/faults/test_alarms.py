"""What goes wrong with money and keys is a metric that an alert of `deploy/prometheus/alerts.yml` looks at."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from cost.fake import MemoryLedger
from router.config import Config
from router.http.ops import update_gauges
from router.telemetry import Telemetry


@pytest.fixture(scope="module")
def running(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str]
) -> tuple[Any, Any]:
    frontier = simulate()
    return serve(with_frontier(frontier.url, "[budget]\nusd_per_day = 100\n", threshold=1.0)), frontier


def spend(service: Any, state: str) -> float:
    lines = service.client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if f'state="{state}"' in line)


@pytest.mark.parametrize(
    ("fault", "state"),
    [("no_usage", "estimated"), ("absurd_usage", "estimated"), ("reset", "uncertain"), ("half_close", "uncertain")],
)
def test_money_that_is_estimated_or_uncertain_is_told_apart(running: tuple[Any, Any], fault: str, state: str) -> None:
    service, frontier = running
    before = spend(service, state)
    httpx.post(f"{frontier.url}/_sim/faults", json={"next": [fault]}).raise_for_status()
    assert service.answer(f"what about tuesday, {fault}")["source"] == "frontier"
    assert spend(service, state) > before


def test_a_key_that_is_refused_is_counted_from_nought(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str]
) -> None:
    """A counter that begins at 1 has no increase to see. The next of the chain answers meanwhile."""
    frontier = simulate()
    service = serve(with_frontier(frontier.url, threshold=1.0))
    refused = 'crossover_provider_attempts_total{outcome="AuthFailed",provider="first"}'
    assert refused in service.client.get("/metrics").text
    assert service.metric(refused) == 0
    httpx.post(f"{frontier.url}/_sim/faults", json={"next": ["401"]}).raise_for_status()
    answer = service.answer("what about tuesday")
    assert (answer["source"], answer["model"]) == ("frontier", "simulated/gpt-6-luna")
    assert service.metric(refused) == 1
    assert service.metric('crossover_breaker_open{target="first"}') == 1
    assert "provider:first" in service.client.get("/ready").json()["degraded"]
    service.wait_for(lambda: "provider_auth_failed" in service.output)


def test_models_without_a_price_are_counted_by_provider() -> None:
    """However many a server makes up; their names are in the log."""
    telemetry = Telemetry()
    lanes = [
        {"name": "a", "breaker": "open", "unpriced": ["x", "y"]},
        {"name": "b", "breaker": "closed", "unpriced": []},
    ]
    chain = SimpleNamespace(status=lambda: lanes)
    update_gauges(
        SimpleNamespace(telemetry=telemetry, chain=chain, model=None, config=Config(), ledger=MemoryLedger())  # type: ignore[arg-type]
    )
    value = telemetry.registry.get_sample_value
    assert [value("crossover_unpriced_models", {"provider": name}) for name in "ab"] == [2, 0]
    assert [value("crossover_breaker_open", {"target": name}) for name in "ab"] == [1, 0]
