"""The soak's texts have all lengths, and a leak shows in its slope."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def soak(script: Callable[[str], Any]) -> Any:
    return script("soak")


def test_the_slope_is_that_of_least_squares(soak: Any) -> None:
    hours = [0.0, 0.1, 0.2, 0.3]
    assert soak.slope(hours, [100.0 + 20 * h for h in hours]) == pytest.approx(20)
    assert soak.slope(hours, [100.0, 101.0, 101.0, 100.0]) == pytest.approx(0)
    assert math.isnan(soak.slope([1.0], [100.0]))


def test_texts_are_of_all_lengths_and_never_the_same(soak: Any) -> None:
    chance = random.Random(1)
    texts = [soak.some_text(["word"], chance) for _ in range(2000)]
    lengths = [len(text.split()) - 1 for text in texts]
    assert min(lengths) == 1
    assert max(lengths) > 300
    assert 0.4 < sum(length <= 20 for length in lengths) / len(lengths) < 0.6
    assert len(set(texts)) == len(texts)


def test_a_request_has_a_text_or_a_list_of_them(soak: Any) -> None:
    chance = random.Random(1)

    def asked(texts: int) -> Any:
        request = soak.some_request("http://127.0.0.1:1/", ["a", "b"], texts, chance)
        return json.loads(request.partition(b"\r\n\r\n")[2])["input"]

    assert isinstance(asked(1), str)
    assert len(asked(8)) == 8
    assert sum(soak.sizes().values()) == pytest.approx(1)
