"""What the check against LiteLLM counts as right, and that a leak is one."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cost.types import Usage
from providers.types import Answer, BadAnswer, ProviderError


@pytest.fixture
def compatibility(script: Callable[[str], Any]) -> Any:
    return script("compatibility")


def seen(compatibility: Any, answers: list[Answer | ProviderError], **more: Any) -> Any:
    errors = {"a label outside the set": "BadAnswer", "prose": "BadAnswer", "a 429": "RateLimited"}
    return compatibility.Seen(answers, more.get("errors", errors), "BadRequest", more.get("wire_calls", 20))


def values(compatibility: Any, found: Any) -> list[tuple[float | None, bool | None]]:
    return [(bar.value, bar.holds) for bar in compatibility.bars_of("openai-chat", found)]


def test_a_bar_holds_only_if_every_call_was_right(compatibility: Any) -> None:
    good = Answer("lost_or_stolen_card", "m", Usage(input=1, output=1))
    assert values(compatibility, seen(compatibility, [good] * 20)) == [(20, True), (20, True), (20, True), (3, True)]
    odd: list[Answer | ProviderError] = [good] * 17
    odd += [Answer("exchange_rate", "m", Usage(output=1)), Answer("x", "m", Usage(input=-1, output=1)), BadAnswer("")]
    wrong = {"a label outside the set": "Answer", "prose": "BadAnswer", "a 429": "Unavailable"}
    found = seen(compatibility, odd, wire_calls=21, errors=wrong)
    assert values(compatibility, found) == [(17, False), (17, False), (21, False), (1, False)]
    assert {holds for _, holds in values(compatibility, None)} == {None}


def test_without_litellm_nothing_is_measured_and_the_reason_is_written(
    compatibility: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compatibility.litellm_proxy, "HOME", tmp_path)
    monkeypatch.setattr(compatibility.harness, "OUT", tmp_path)
    assert compatibility.main() == 0
    written = json.loads((tmp_path / "compatibility.json").read_text())
    assert "litellm is missing" in written["not_run"][0]["reason"]
    assert {bar["holds"] for bar in written["bars"]} == {None}


def test_who_connects_to_the_way_out_is_counted(compatibility: Any) -> None:
    with compatibility.counted() as (trap, url):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as leak:
                assert leak.recv(1) == b""
        assert trap.count == 3
        assert set(compatibility.no_way_out(url)) >= {"https_proxy", "HTTPS_PROXY", "ALL_PROXY"}
