"""Hand-made books, and a second process to share them with."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cost.ledger import Ledger
from cost.types import InputRow, Intent, Outcome

NOON = 1_795_262_400_000_000  # 2026-11-21 12:00 UTC, microseconds


@pytest.fixture
def noon() -> int:
    return NOON


@pytest.fixture
def row() -> Callable[..., InputRow]:
    """An answered input; what a test is about is said by name."""

    def make(request_id: str, **fields: Any) -> InputRow:
        values = {"index": 0, "at_us": NOON, "tenant": "local", "task": "banking", "source": "local", "tokens": 10}
        return InputRow(request_id, **{**values, **fields})

    return make


@pytest.fixture
def intent() -> Callable[..., Intent]:
    def make(request_id: str, **fields: Any) -> Intent:
        values = {"index": 0, "at_us": NOON, "tenant": "local", "task": "banking", "provider": "p", "tokens": 10}
        return Intent(request_id, **{**values, "model": "gpt-6-luna", "estimate_nano": 1000, **fields})

    return make


@pytest.fixture
def books(tmp_path: Path) -> Callable[..., Path]:
    """Write a ledger: rows, and calls as (intent, outcome); gives its path."""

    def write(
        rows: Sequence[InputRow] = (), calls: Sequence[tuple[Intent, Outcome | None]] = (), name: str = "l"
    ) -> Path:
        async def main() -> None:
            ledger = Ledger.open(tmp_path / f"{name}.db")
            for intended, outcome in calls:
                attempt = await ledger.reserve(intended)
                if outcome is not None:
                    await ledger.settle(attempt, outcome)
            await ledger.record(rows)
            ledger.close()

        asyncio.run(main())
        return tmp_path / f"{name}.db"

    return write


@pytest.fixture
def process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python with some code and arguments in the repository's root; whatever still runs is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        root = Path(__file__).resolve().parents[2]
        child = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], cwd=root, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()
