"""The closed form against counting."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from math import ceil

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cost.crossover import (
    Crossing,
    Hardware,
    Operations,
    Traffic,
    api_nano,
    crossing,
    hybrid_nano,
    loaded_nano,
    local_only,
    operated,
    replicas,
    saving_nano,
)
from cost.hardware import Billing

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


def world(dice: random.Random) -> tuple[Traffic, Hardware]:
    """So small that every volume can be tried: a replica serves up to 40 requests a month."""
    traffic = Traffic(
        hit=dice.choice([0.0] * 4 + [0.25] * 3 + [0.5] * 3 + [0.95, 1.0]),
        escalated=dice.choice([0.0] * 5 + [0.1] * 5 + [0.5] * 3 + [1.0]),
        call_nano=float(dice.choice([dice.randrange(300), dice.randrange(3000)])),
        ops_nano=dice.choice([0, 0, dice.randrange(3000)]),
        min_replicas=dice.choice([1, 1, 2, 3]),
        audited=dice.choice([0.0] * 4 + [0.2] * 4 + [1.0]),
        labels=dice.choice([0, 0, 3]),
    )
    machine = Hardware(
        "box",
        dice.randrange(9) / 1e9,
        dice.randint(1, 40) * 4 / (0.65 * 730 * 3600),
        billing=dice.choice(["always_on", "autoscaled"]),
        cold_start_s=dice.choice([0.0, 30_000.0, 100_000.0]),
        idle_s=dice.choice([0.0, 60_000.0, 2_000_000.0]),
        min_replicas=dice.choice([None, 0, 1, 2]),
    )
    return traffic, machine


def by_counting(traffic: Traffic, box: Hardware, limit: int) -> list[bool]:
    """Whether the hybrid is cheaper, for every volume from 1 on; written anew from the formulae."""
    reaching = (1 - Fraction(traffic.hit)) / (730 * 3600)  # a second, for a request a month
    rate = Fraction(box.requests_per_second) * Fraction(traffic.utilisation)
    kept = (1 - Fraction(traffic.escalated)) * (1 - Fraction(traffic.audited))
    gain = (1 - Fraction(traffic.hit)) * Fraction(traffic.call_nano) * kept
    fixed = traffic.ops_nano + traffic.labels * Fraction(traffic.call_nano)
    month = round(box.usd_per_hour * 1e9) * 730
    waiting = reaching * Fraction(box.cold_start_s + box.idle_s)
    found = []
    for volume in range(1, limit):
        if box.billing == "autoscaled":
            paid: Fraction = max(
                Fraction(box.min_replicas or 0), volume * reaching / rate + min(Fraction(1), volume * waiting)
            )
        else:
            needed = ceil(Fraction(traffic.peak_to_mean) * volume * reaching / rate)
            paid = Fraction(max(traffic.min_replicas, box.min_replicas or 0, needed))
        found.append(volume * gain > fixed + paid * month)
    return found


def test_first_and_last_crossing_and_never_are_what_trying_every_volume_finds_in_1000_worlds() -> None:
    dice, limit = random.Random(6), 150
    seen: Counter[str] = Counter()
    for _ in range(1000):
        traffic, box = world(dice)
        found = crossing(traffic, box)
        at = dice.randrange(1, limit)
        tried = by_counting(traffic, box, limit)
        assert cheaper(traffic, box, at) == tried[at - 1], (traffic, box, at)
        if found is None:
            assert not any(tried), (traffic, box)
            seen["never"] += 1
            continue
        first = tried.index(True) + 1 if any(tried) else limit
        assert found.first == first if first < limit else found.first >= limit, (traffic, box)
        if found.last < limit:
            assert all(tried[found.last - 1 :]), (traffic, box)
            assert found.last == found.first or not tried[found.last - 2], (traffic, box)
            seen[f"{box.billing}, {'once' if found.first == found.last else 'several times'}"] += 1
    assert min(seen.values()) >= 10 and len(seen) >= 4, seen


def test_a_managed_endpoint_costs_its_busy_time_a_start_and_a_window_for_each_request() -> None:
    # One request a second may be used: 10,000 keep it busy 10,000 s; each starts it (10 s), and waits (50 s).
    endpoint = Hardware("endpoint", 3.6, 1 / 0.65, billing="autoscaled", cold_start_s=10, idle_s=50)
    traffic = Traffic(hit=0.0, escalated=0.0, call_nano=0.0)
    assert float(hybrid_nano(traffic, endpoint, 10_000)) == pytest.approx(10_000 * 61 * 1e6)  # 3.6 dollars an hour
    # From 43,800 on somebody is always waiting: one replica around the clock, and the busy time.
    assert float(hybrid_nano(traffic, endpoint, 10**6)) == pytest.approx((730 * 3600 + 10**6) * 1e6)
    warm = msgspec.structs.replace(endpoint, min_replicas=2)
    assert hybrid_nano(traffic, warm, 1) == 2 * 730 * 3_600_000_000


def test_the_price_of_waiting_is_an_upper_bound_of_what_requests_by_chance_pay() -> None:
    """Simulated: exponential gaps, a replica that is shut down `idle_s` after its last request."""
    dice, idle, start, requests = random.Random(1), 300.0, 30.0, 4000
    for rate in (1 / 3000, 1 / 300, 1 / 60):
        gaps = [dice.expovariate(rate) for _ in range(requests)]
        paid = sum(min(gap, idle) + (start if gap > idle else 0.0) for gap in gaps)
        volume = round(rate * 730 * 3600)
        endpoint = Hardware("e", 3600, 1e9, billing="autoscaled", cold_start_s=start, idle_s=idle)
        share = float(replicas(Traffic(hit=0.0, escalated=0.0, call_nano=0.0), endpoint, volume))
        assert share >= 0.97 * min(1.0, paid / sum(gaps))
        assert share <= 2 * paid / sum(gaps)


def test_local_only_is_the_hybrid_that_escalates_nothing_and_people_audits_and_a_second_replica_cost_money() -> None:
    traffic = Traffic(hit=0.5, escalated=0.2, call_nano=1000.0)
    box = Hardware("box", 1.0, 1000)
    month = 730 * 10**9
    assert hybrid_nano(local_only(traffic), box, 10**6) == month
    assert float(hybrid_nano(traffic, box, 10**6)) == pytest.approx(month + 500_000 * 0.2 * 1000)
    staffed = operated(traffic, Operations(nano=7, min_replicas=2, audited=0.1, labels=3))
    bought = 500_000 * (0.2 + 0.8 * 0.1) * 1000
    assert float(hybrid_nano(staffed, box, 10**6)) == pytest.approx(2 * month + 7 + 3 * 1000 + bought)


def test_fully_loaded_is_the_machines_bill_over_what_they_served() -> None:
    traffic, box = Traffic(hit=0.5, escalated=0.2, call_nano=1000.0), Hardware("box", 1.0, 1000)
    assert loaded_nano(traffic, box, 10**6) == 730 * 10**9 / 500_000
    assert loaded_nano(msgspec.structs.replace(traffic, hit=1.0), box, 10**6) is None


@given(traffics, st.integers(1, 10**7), st.integers(1, 100), st.sampled_from(["always_on", "autoscaled"]))
def test_costs_grow_with_volume_and_the_saving_with_the_price_of_a_call(
    traffic: Traffic, volume: int, more: int, billing: Billing
) -> None:
    assume(traffic.hit < 1)
    box = Hardware("box", 0.08, 50, billing=billing)
    assert api_nano(traffic, volume) <= api_nano(traffic, volume + more)
    assert hybrid_nano(traffic, box, volume) <= hybrid_nano(traffic, box, volume + more)
    dearer = Traffic(traffic.hit, traffic.escalated, traffic.call_nano + more, traffic.ops_nano)
    cheap = Traffic(traffic.hit, traffic.escalated, traffic.call_nano, traffic.ops_nano)
    assert saving_nano(dearer, box, volume) >= saving_nano(cheap, box, volume)
