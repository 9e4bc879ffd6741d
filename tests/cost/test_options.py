"""What can be done about the bill, with figures worked out by hand."""

from __future__ import annotations

from math import exp
from typing import Any

import msgspec
import pytest

from cost.api_only import ApiCall, ApiOnly
from cost.comparison import Comparison, Contender, Paired
from cost.crossover import Hardware, Operations, Traffic
from cost.options import Option, advice, cached_call_nano, rank
from cost.prices import Price, PriceTable

USD = 10**9  # nano-dollars; and a dollar a million tokens
PRICES = PriceTable(
    "v",
    PriceTable.load().as_of,
    "made up",
    {
        "sol": Price(2 * USD, 10 * USD, USD // 10, 5 * USD // 2, batch_input=USD, batch_output=5 * USD),
        "luna": Price(USD // 10, USD // 2),
        "thinker": Price(1, 1, thinking_always_on=True),
    },
)
#: 1,000 calls of 1,500 tokens before the text, 50 of text, 10 out.
CALL = ApiCall("t", "sol", 30, 1500.0, 1.0, 10.0, 2 * USD / 1e6, 10 * USD / 1e6, True, 0.0, inputs=1000, tokens=50_000)
NOW = 1550 * 2000 + 10 * 10_000  # nano-USD a call
TRAFFIC = Traffic(hit=0.5, escalated=0.1, call_nano=NOW)
BOX = Hardware("box", 0.1, 200.0)
GPU = Hardware("gpu", 1.0, 2000.0)
VOLUME = 2_000_000  # a million misses


def api(*calls: ApiCall) -> ApiOnly:
    return ApiOnly(1000, NOW * 1000, NOW, None, None, 30, list(calls or (CALL,)), [])


def ranked(prices: PriceTable = PRICES, volume: int = VOLUME, **others: Any) -> dict[str, Option]:
    return {option.name: option for option in rank(TRAFFIC, [GPU, BOX], volume, api(), prices, **others)}


def compared(**losses: float) -> Comparison:
    """Contenders by name (the frontier's is its model's) and the accuracy that each loses."""
    contenders = tuple(
        Contender(
            name, name, (name,), False, 400, 400, accuracy=0.9 - loss,
            against_best=Paired(400, 0, 0, loss, loss - 0.005, loss + 0.005, 1.0) if loss else None,
        )
        for name, loss in losses.items()
    )  # fmt: skip
    return Comparison("t", 0.0, 400, 400, 1, True, 0.02, True, "v", contenders)


def test_every_option_costs_what_is_worked_out_by_hand() -> None:
    found = ranked(operations=Operations(nano=500 * USD, min_replicas=2, audited=0.01, labels=100))
    assert found["as now"].monthly_nano == NOW * 10**6
    assert found["cheaper tier"].monthly_nano == (1550 * 100 + 10 * 500) * 10**6
    assert found["cheaper tier"].model == "luna"
    assert found["batch API"].monthly_nano == NOW * 10**6 // 2
    box = 73 * USD
    assert found["hybrid"].monthly_nano == pytest.approx(box + 0.1 * NOW * 10**6, rel=1e-9)
    assert found["local only"].monthly_nano == pytest.approx(box, rel=1e-9)
    assert (found["hybrid"].hardware, found["as now"].hardware) == ("box", None)
    bought = (0.1 + 0.9 * 0.01) * NOW * 10**6
    assert found["hybrid"].monthly_with_ops_nano == pytest.approx(2 * box + 500 * USD + 100 * NOW + bought, rel=1e-9)
    assert found["local only"].monthly_with_ops_nano == pytest.approx(2 * box + 500 * USD + 100 * NOW, rel=1e-9)
    for name in ("as now", "cheaper tier", "batch API", "prompt caching"):
        assert found[name].monthly_with_ops_nano == found[name].monthly_nano
    assert list(found) == sorted(found, key=lambda name: found[name].monthly_nano)


def test_a_prompt_cache_helps_as_often_as_calls_find_it() -> None:
    """A prefix lives for 300 seconds after each use; later it is written again, which costs more than no cache."""
    for rate in (1e-9, 1 / 300, 100.0):
        found = 1 - exp(-rate * 300)
        prefix = 1500 * (found * 100 + (1 - found) * 2500)
        assert cached_call_nano(CALL, PRICES, rate) == pytest.approx(prefix + 50 * 2000 + 10 * 10_000)
    busy = ranked()["prompt caching"]
    assert busy.monthly_nano == pytest.approx(NOW * 10**6 - 1500 * 1900 * 10**6, rel=0.01)
    assert "prompt caching" not in ranked(volume=2_000)  # one call in 45 minutes


def test_a_prompt_below_the_provider_s_minimum_is_not_cached() -> None:
    short = msgspec.structs.replace(CALL, prefix_tokens=1023.0)
    assert cached_call_nano(short, PRICES, 1.0) is None
    low = {"sol": msgspec.structs.replace(PRICES.models["sol"], prompt_cache_min_tokens=512)}
    assert cached_call_nano(short, msgspec.structs.replace(PRICES, models=low), 1.0) is not None
    assert cached_call_nano(msgspec.structs.replace(CALL, model="luna"), PRICES, 1.0) is None  # no price for a read


def test_a_cheaper_tier_is_a_guess_until_it_was_compared() -> None:
    guess = ranked()["cheaper tier"]
    assert (guess.adequate, guess.model) == ("assumed", "luna")
    assert "crossover compare" in guess.basis
    measured = ranked(comparison=compared(sol=0.0, luna=0.01, local=0.03))["cheaper tier"]
    assert (measured.adequate, measured.model, measured.monthly_nano) == ("measured", "luna", guess.monthly_nano)
    assert "loses 1.0%, 2.0% are allowed" in measured.basis
    assert "cheaper tier" not in ranked(comparison=compared(sol=0.0, luna=0.03))  # measured: there is none


def test_a_local_model_that_was_measured_to_lose_too_much_stands_last_and_is_not_advised() -> None:
    options = rank(TRAFFIC, [BOX], VOLUME, api(), PRICES, comparison=compared(sol=0.0, luna=0.0, local=0.1))
    last = options[-1]
    assert (last.name, last.adequate, last.ruled_out) == ("local only", "measured", True)
    assert last.monthly_nano < options[0].monthly_nano
    assert advice(options).startswith("Don't self-host: buying every answer from luna is cheapest.")
    good = rank(TRAFFIC, [BOX], VOLUME, api(), PRICES, comparison=compared(sol=0.0, local=0.01))
    assert {o.name: o.adequate for o in good if o.hardware} == {"hybrid": "measured", "local only": "measured"}


def test_the_advice_follows_the_ranking_with_operations_and_without() -> None:
    sure = compared(sol=0.0, local=0.0)
    assert (
        "if running it costs anybody's time: then buying every answer from sol with prompt caching is cheaper"
        in advice(rank(TRAFFIC, [BOX], 500_000, api(), PRICES, comparison=sure))
    )
    much = rank(TRAFFIC, [BOX], 50 * VOLUME, api(), PRICES, comparison=sure)
    assert advice(much) == "Self-host: the local model alone on box is cheapest, with operations as well."
    little = rank(TRAFFIC, [GPU], 10_000, api(), PRICES)
    assert advice(little).startswith("Don't self-host: buying every answer from luna is cheapest (if its answers are")
    no_luna = msgspec.structs.replace(PRICES, models={"sol": PRICES.models["sol"]})
    assert advice(rank(TRAFFIC, [GPU], 10_000, api(), no_luna)) == (
        "Don't self-host: buying every answer through the batch API is cheapest (if answers may take up to a day; "
        "if not, buying every answer from sol with prompt caching)."
    )
    assert advice([]) == ""


def test_what_no_price_is_known_of_is_left_out() -> None:
    names = [option.name for option in rank(TRAFFIC, [], VOLUME, api(), msgspec.structs.replace(PRICES, models={}))]
    assert names == ["as now"]
    rented = api(msgspec.structs.replace(CALL, by_the_hour=True))
    assert {o.name for o in rank(TRAFFIC, [BOX], VOLUME, rented, PRICES)} == {"as now", "hybrid", "local only"}


def test_each_task_is_priced_with_its_own_calls() -> None:
    """A task of short prompts can't be cached, so the whole can't be said to be; in batches both can go."""
    short = msgspec.structs.replace(CALL, task="u", prefix_tokens=100.0, inputs=3000, tokens=150_000)
    both = {o.name: o for o in rank(TRAFFIC, [BOX], VOLUME, api(CALL, short), PRICES)}
    assert "prompt caching" not in both
    mean = (1000 * NOW + 3000 * (150 * 2000 + 100_000)) / 4000
    assert both["batch API"].monthly_nano == pytest.approx(mean / 2 * 10**6)
