"""The deployment's files as they stand in the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


@pytest.fixture
def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


@pytest.fixture
def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, rows left out."""
    board = json.loads((ROOT / "deploy/grafana/dashboards/crossover.json").read_text(encoding="utf-8"))
    return [panel for panel in board["panels"] if panel["type"] != "row"]


@pytest.fixture
def expressions(panels: list[dict[str, Any]]) -> list[str]:
    """Every PromQL expression of the dashboard, with Grafana's variables filled in."""
    given = [target["expr"] for panel in panels for target in panel["targets"]]
    return [text.replace("$__rate_interval", "1m").replace("$__range", "1d") for text in given]
