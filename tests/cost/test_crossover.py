"""The closed form against counting."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cost.crossover import Crossing, Hardware, Traffic, api_nano, crossing, hybrid_nano, replicas, saving_nano

HOUR = 1 / 730  # dollars an hour that make one dollar a month


def cheaper(traffic: Traffic, hardware: Hardware, volume: int) -> bool:
    return hybrid_nano(traffic, hardware, volume) < api_nano(traffic, volume)


def test_the_break_even_of_a_small_box_by_hand() -> None:
    # $36 a month, $80 per million calls, 10 % escalated: 36 / (80e-6 * 0.9) = 500,000.
    traffic = Traffic(hit=0.0, escalated=0.1, call_nano=80_000)
    found = crossing(traffic, Hardware("box", 36 * HOUR, 1000))
    assert found is not None
    assert found.first == found.last
    assert found.last == pytest.approx(500_001, abs=15)  # an hour's price is whole nano-dollars


def test_a_cache_moves_the_crossing_up_and_so_does_engineering() -> None:
    box = Hardware("box", 36 * HOUR, 1000)
    plain = crossing(Traffic(hit=0.0, escalated=0.1, call_nano=80_000), box)
    cached = crossing(Traffic(hit=0.5, escalated=0.1, call_nano=80_000), box)
    staffed = crossing(Traffic(hit=0.0, escalated=0.1, call_nano=80_000, ops_nano=500 * 10**9), box)
    assert plain and cached and staffed
    assert cached.last == pytest.approx(2 * plain.last, abs=2)
    assert staffed.last > 10 * plain.last


def test_steps_make_the_curves_cross_more_than_once() -> None:
    # A replica serves 100 a month and costs $60; a request saves $1: cheaper from 61, dearer at 101, cheaper from 121.
    rate = 100 / (730 * 3600 * 0.65) * 4
    traffic = Traffic(hit=0.0, escalated=0.0, call_nano=10**9)
    box = Hardware("box", 60 * HOUR, rate * 1.0000001)
    assert crossing(traffic, box) == Crossing(61, 121)
    assert [cheaper(traffic, box, v) for v in (60, 61, 100, 101, 120, 121)] == [False, True, True, False, False, True]


@pytest.mark.parametrize(
    "traffic",
    [
        Traffic(hit=0.3, escalated=1.0, call_nano=80_000),  # everything is escalated: nothing is saved
        Traffic(hit=1.0, escalated=0.1, call_nano=80_000),  # the cache answers all
        Traffic(hit=0.3, escalated=0.1, call_nano=0),  # answers are free
        Traffic(hit=0.3, escalated=0.1, call_nano=1),  # a replica costs more than it can ever save
    ],
)
def test_never_is_an_answer(traffic: Traffic) -> None:
    assert crossing(traffic, Hardware("box", 0.08, 10)) is None


def test_replicas_follow_the_peak_not_the_mean() -> None:
    traffic = Traffic(hit=0.0, escalated=0.0, call_nano=1, peak_to_mean=4, utilisation=0.5)
    box = Hardware("box", 1, 8)  # 8 * 0.5 / 4 = 1 request a second on average
    assert [replicas(traffic, box, v) for v in (1, 730 * 3600, 730 * 3600 + 1)] == [1, 1, 2]


shares = st.integers(0, 20).map(lambda n: n / 20)
traffics = st.builds(
    Traffic,
    hit=shares,
    escalated=shares,
    call_nano=st.integers(0, 300).map(float),
    ops_nano=st.integers(0, 3000),
    min_replicas=st.integers(1, 3),
)


@settings(max_examples=80, deadline=None)
@given(traffics, st.integers(0, 8), st.integers(1, 40))
def test_the_closed_form_is_what_counting_finds(traffic: Traffic, price: int, capacity: int) -> None:
    """Worlds so small that every volume can be tried: a replica serves up to 40 requests a month."""
    box = Hardware("box", price / 1e9, capacity * 4 / (0.65 * 730 * 3600))
    found = crossing(traffic, box)
    limit = 1200
    tried = [cheaper(traffic, box, volume) for volume in range(1, limit)]
    if found is None:
        assert not any(tried)
        return
    assume(found.last < limit)
    assert tried.index(True) + 1 == found.first
    assert all(tried[found.last - 1 :])
    assert found.last == 1 or not tried[found.last - 2]


@given(traffics, st.integers(1, 10**7), st.integers(1, 100))
def test_costs_grow_with_volume_and_the_saving_with_the_price_of_a_call(
    traffic: Traffic, volume: int, more: int
) -> None:
    assume(traffic.hit < 1)
    box = Hardware("box", 0.08, 50)
    assert api_nano(traffic, volume) <= api_nano(traffic, volume + more)
    assert hybrid_nano(traffic, box, volume) <= hybrid_nano(traffic, box, volume + more)
    dearer = Traffic(traffic.hit, traffic.escalated, traffic.call_nano + more, traffic.ops_nano)
    cheap = Traffic(traffic.hit, traffic.escalated, traffic.call_nano, traffic.ops_nano)
    assert saving_nano(dearer, box, volume) >= saving_nano(cheap, box, volume)
