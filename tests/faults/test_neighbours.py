"""One bad text never hurts or changes its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def service(serve: Callable[..., Any], banking: str) -> Any:
    return serve(f'{banking}[cache]\nurl = "off"\n')


def test_of_32_texts_the_bad_ones_fail_and_the_others_are_answered_as_if_alone(service: Any, texts: list[str]) -> None:
    """Labels and probabilities to the last digit, whoever rides along: int8 takes one text a forward."""
    many = [f"{text}, number {number}" for number in range(4) for text in texts]
    mixed = [*many]
    mixed[3] = "  "
    mixed[17] = "word " * 5000
    mixed[30] = "\x00" * 4000
    together = service.classify(mixed, top_k=10, route="local").json()["results"]
    assert "error" in together[3]
    assert "error" in together[17]
    for number, (text, result) in enumerate(zip(mixed, together, strict=True)):
        if number in (3, 17, 30):
            continue
        alone = service.answer(text, top_k=10, route="local")
        assert result["scores"] == alone["scores"], number


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "🙂" * 50,
        "\x00",
        "e" + "\u0301" * 10_000,
        "\u202e" + "abc" * 20,
        "ﷺ" * 100,
        "\u200b",
        "\ufffd" * 10,
        "名" * 300,
    ],
    ids=["one letter", "emoji", "NUL", "combining", "right to left", "ligatures", "zero width", "replacement", "han"],
)
def test_a_strange_text_gets_an_answer_or_a_problem(service: Any, text: str) -> None:
    """Never a 5xx, and the next text is answered."""
    assert service.classify(text).status_code in (200, 422)
    assert service.answer("I lost my card")["label"] == "lost_or_stolen_card"
