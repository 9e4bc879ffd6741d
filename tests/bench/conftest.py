"""The benches are scripts, not a package: they are imported as they import each other."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Name -> the module in bench/."""
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module


@pytest.fixture
def load(script: Callable[[str], Any]) -> Any:
    return script("load")


@pytest.fixture
def harness(script: Callable[[str], Any]) -> Any:
    return script("harness")


@pytest.fixture
def recorded(script: Callable[[str], Any]) -> Any:
    return script("recorded")
