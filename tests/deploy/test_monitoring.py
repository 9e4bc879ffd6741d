"""Alerts and dashboard speak of metrics that exist, and of all of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cost.prices import STALE_DAYS
from router.telemetry import Telemetry

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def series_of_the_service() -> dict[str, set[str]]:
    """Name of a series -> name of the metric it belongs to."""
    series: dict[str, set[str]] = {}
    for family in Telemetry().registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}[family.type]
        for suffix in suffixes:
            series.setdefault(family.name + suffix, set()).add(family.name)
    return series


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bcrossover_\w+", text))


def test_every_metric_an_alert_names_exists(alerts: list[dict[str, Any]]) -> None:
    assert set().union(*(names_in(rule["expr"]) for rule in alerts)) <= set(series_of_the_service())


def test_every_metric_the_dashboard_names_exists(expressions: list[str]) -> None:
    assert set().union(*map(names_in, expressions)) <= set(series_of_the_service())


def test_every_metric_of_the_service_is_on_the_dashboard_or_in_an_alert(
    alerts: list[dict[str, Any]], expressions: list[str]
) -> None:
    series = series_of_the_service()
    named = set().union(*(names_in(text) for text in [*expressions, *(rule["expr"] for rule in alerts)]))
    shown = set().union(*(series[name] for name in named))
    assert shown == set().union(*series.values())


def test_every_alert_says_what_happened_and_what_to_do(alerts: list[dict[str, Any]]) -> None:
    for rule in alerts:
        assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]


def test_every_alert_is_seen_firing_in_the_rule_tests(root: Path, alerts: list[dict[str, Any]]) -> None:
    document = yaml.safe_load((root / "deploy/prometheus/alerts_test.yml").read_text(encoding="utf-8"))
    fired = {case["alertname"] for test in document["tests"] for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in alerts}


def test_panels_have_ids_of_their_own_and_the_provisioned_source(root: Path, panels: list[dict[str, Any]]) -> None:
    sources = yaml.safe_load(
        (root / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8")
    )
    uid = sources["datasources"][0]["uid"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {target["datasource"]["uid"] for panel in panels for target in panel["targets"]} == {uid}


def test_the_dashboard_has_the_report_s_numbers_over_its_time_range(expressions: list[str]) -> None:
    """Spending, savings, sources, stages."""
    shown = set().union(*(names_in(text) for text in expressions if "[1d]" in text))
    wanted = {"spend_usd_total", "saved_usd_total", "inputs_total", "latency_seconds_bucket", "stage_seconds_bucket"}
    assert shown == {f"crossover_{name}" for name in wanted}


def test_prices_are_doubted_at_the_same_age_by_alert_dashboard_and_report(
    alerts: list[dict[str, Any]], panels: list[dict[str, Any]]
) -> None:
    (alert,) = [rule["expr"] for rule in alerts if rule["alert"] == "CrossoverPricesOld"]
    assert alert.endswith(f"crossover_price_age_days) > {STALE_DAYS}")
    (panel,) = [panel for panel in panels if panel["title"] == "Age of the price table"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1] == {"color": "red", "value": STALE_DAYS}


@needs_promtool
def test_prometheus_accepts_its_config(root: Path) -> None:
    promtool("check", "config", "--syntax-only", str(root / "deploy/prometheus/prometheus.yml"))


@needs_promtool
def test_the_alerts_fire_on_trouble_and_are_silent_otherwise(root: Path) -> None:
    promtool("check", "rules", str(root / "deploy/prometheus/alerts.yml"))
    promtool("test", "rules", str(root / "deploy/prometheus/alerts_test.yml"))


@needs_promtool
def test_every_expression_of_the_dashboard_is_promql(expressions: list[str], tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    promtool("check", "rules", str(file))
