"""At which volume does running a model of one's own beat buying the answers? Pure functions, exact arithmetic.

    API-only     C_A(V) = V (1-h) c                                  the same response cache stands on both sides
    hybrid       C_H(V) = ops + labels + A(V) G 730 + V (1-h) [e + (1-e) r] c
    local only   the hybrid with e = r = 0
    always_on    A(V)   = R(V) = max(R_min, ceil(k V (1-h) / (730 * 3600) / (mu rho)))
    autoscaled   A(V)   = max(R_min, b + min(1, V (1-h) (s + w) / (730 * 3600))),  b = V (1-h) / (730 * 3600) / (mu rho)

V requests a month (of 730 hours), h share answered by the cache, e share of the rest that is escalated, r share of the
accepted that is bought all the same as an audit, c nano-USD a frontier call, G nano-USD an hour of one replica, mu
requests a second that it sustains, rho how far it may be used, k peak load over mean load, s seconds of a cold start, w
seconds that an idle replica is kept and paid. Idle hours of what is always on are paid for. R(V) goes in steps, so the
two can cross several times. `cost.hardware` says what the autoscaled form assumes.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import msgspec

from cost.hardware import HOURS, Hardware

DAYS = HOURS / 24
_SECONDS = HOURS * 3600

__all__ = [
    "DAYS",
    "HOURS",
    "Crossing",
    "Hardware",
    "Operations",
    "Traffic",
    "api_nano",
    "crossing",
    "hybrid_nano",
    "loaded_nano",
    "local_only",
    "operated",
    "replicas",
    "saving_nano",
    "window_nano",
]


class Traffic(msgspec.Struct, frozen=True):
    """Shares in [0, 1]; money in nano-USD (a float where it is a mean)."""

    hit: float
    escalated: float
    call_nano: float
    ops_nano: int = 0  # a month: the people who run it
    peak_to_mean: float = 4.0
    utilisation: float = 0.65
    min_replicas: int = 1  # of what is always on; 2 survive the loss of one
    audited: float = 0.0  # of the accepted local answers, so many are bought all the same
    labels: int = 0  # bought a month, to calibrate and retrain
    peak_basis: str = "assumed"  # or over which hours it was measured


class Operations(msgspec.Struct, frozen=True):
    """What running a model in production takes besides machines. All of it is assumed, and printed."""

    nano: int = 500 * 10**9  # a month of engineering time
    min_replicas: int = 2
    audited: float = 0.01
    labels: int = 500  # a month


class Crossing(msgspec.Struct, frozen=True):
    """Requests a month. The hybrid is cheaper somewhere from `first` on, and everywhere from `last` on."""

    first: int
    last: int


def operated(traffic: Traffic, operations: Operations) -> Traffic:
    """The same traffic, with people, redundancy, audits and labels."""
    return msgspec.structs.replace(
        traffic,
        ops_nano=operations.nano,
        min_replicas=max(traffic.min_replicas, operations.min_replicas),
        audited=operations.audited,
        labels=operations.labels,
    )


def local_only(traffic: Traffic) -> Traffic:
    """The same traffic, all of it answered by the local model. Labels are still bought, answers are not."""
    return msgspec.structs.replace(traffic, escalated=0.0, audited=0.0)


def api_nano(traffic: Traffic, volume: int) -> Fraction:
    """A month of API-only."""
    return volume * (1 - Fraction(traffic.hit)) * Fraction(traffic.call_nano)


def hybrid_nano(traffic: Traffic, hardware: Hardware, volume: int) -> Fraction:
    """A month of the hybrid."""
    machines = replicas(traffic, hardware, volume) * _month_nano(hardware)
    return _fixed_nano(traffic) + machines + api_nano(traffic, volume) * (1 - _kept(traffic))


def replicas(traffic: Traffic, hardware: Hardware, volume: int) -> int | Fraction:
    """How many are paid for: always on, what the peak needs; autoscaled, the month's mean."""
    if hardware.billing == "autoscaled":
        busy, waiting = _autoscaled(traffic, hardware)
        return max(Fraction(hardware.kept_warm), busy * volume + min(Fraction(1), waiting * volume))
    capacity = _capacity(traffic, hardware)
    least = _least(traffic, hardware)
    return least if capacity is None else max(least, ceil(volume / capacity))


def loaded_nano(traffic: Traffic, hardware: Hardware, volume: int) -> float | None:
    """Fully loaded: the month's machines, idle time and all, over the requests that the model ran for. None: none."""
    reaching = volume * (1 - Fraction(traffic.hit))
    return float(replicas(traffic, hardware, volume) * _month_nano(hardware) / reaching) if reaching > 0 else None


def window_nano(traffic: Traffic, hardware: Hardware, inputs: int, days: float) -> int:
    """What the machines cost while `inputs` came in `days` days."""
    share = Fraction(days) / Fraction(DAYS)
    return round(replicas(traffic, hardware, round(inputs / share)) * _month_nano(hardware) * share) if share else 0


def saving_nano(traffic: Traffic, hardware: Hardware, volume: int) -> int:
    """API-only minus hybrid, a month; negative where buying is cheaper."""
    return round(api_nano(traffic, volume) - hybrid_nano(traffic, hardware, volume))


def crossing(traffic: Traffic, hardware: Hardware) -> Crossing | None:
    """None: the hybrid is never cheaper, at no volume."""
    saved = (1 - Fraction(traffic.hit)) * Fraction(traffic.call_nano) * _kept(traffic)
    if saved <= 0:
        return None
    if hardware.billing == "autoscaled":
        return _crossing_of_lines(traffic, hardware, saved)
    return _crossing_of_steps(traffic, hardware, saved)


def _crossing_of_steps(traffic: Traffic, hardware: Hardware, saved: Fraction) -> Crossing | None:
    """With s saved a request, n replicas that serve up to n * capacity and cost F(n) = fixed + n G 730, the hybrid is
    cheaper above F(n) / s within the step. Where s * capacity does not exceed G 730, a replica never earns its keep."""
    replica, fixed, least = _month_nano(hardware), _fixed_nano(traffic), _least(traffic, hardware)
    capacity = _capacity(traffic, hardware)
    assert capacity is not None  # nothing reaches the model only if all are hits, and then nothing is saved
    margin = saved * capacity - replica
    if margin <= 0:
        return None

    def even(n: int) -> int:
        """The smallest volume at which n replicas are paid for."""
        return floor((fixed + n * replica) / saved) + 1

    n = max(least, floor(fixed / margin) + 1)
    while even(n) > n * capacity:  # no whole request fits between
        n += 1
    first = max(even(n), floor((n - 1) * capacity) + 1 if n > least else 1)

    n = max(least, ceil((fixed + saved * capacity) / margin) + 1)
    while n > least and floor((n - 1) * capacity) + 1 >= even(n):  # paid for from its first request on
        n -= 1
    return Crossing(first, max(first, even(n)))


def _crossing_of_lines(traffic: Traffic, hardware: Hardware, saved: Fraction) -> Crossing | None:
    """Autoscaled costs grow ever slower once they grow, so they are crossed once: where both what is kept warm is paid
    for and what follows the load, be it as long as each request waits alone or once somebody always does."""
    month, fixed = _month_nano(hardware), _fixed_nano(traffic)
    busy, waiting = _autoscaled(traffic, hardware)
    if saved <= month * busy:  # a request costs more machine time than it saves
        return None
    even = (fixed + month) / (saved - month * busy)
    if saved > month * (busy + waiting):
        even = min(even, fixed / (saved - month * (busy + waiting)))
    volume = floor(max(even, (fixed + month * hardware.kept_warm) / saved)) + 1
    return Crossing(volume, volume)


def _kept(traffic: Traffic) -> Fraction:
    """Of the misses, the share that is not bought."""
    return (1 - Fraction(traffic.escalated)) * (1 - Fraction(traffic.audited))


def _fixed_nano(traffic: Traffic) -> Fraction:
    return traffic.ops_nano + traffic.labels * Fraction(traffic.call_nano)


def _least(traffic: Traffic, hardware: Hardware) -> int:
    """Always on, whatever the volume."""
    return max(traffic.min_replicas, hardware.min_replicas or 0)


def _month_nano(hardware: Hardware) -> Fraction:
    return Fraction(round(hardware.usd_per_hour * 1e9)) * HOURS


def _capacity(traffic: Traffic, hardware: Hardware) -> Fraction | None:
    """Requests a month one replica serves, hits included; None: any number, as none of them reaches it."""
    reaching = 1 - Fraction(traffic.hit)
    if reaching <= 0:
        return None
    return _usable(traffic, hardware) / Fraction(traffic.peak_to_mean) * _SECONDS / reaching


def _autoscaled(traffic: Traffic, hardware: Hardware) -> tuple[Fraction, Fraction]:
    """Replicas a request of the month keeps busy; and starting, or waiting for the next."""
    reaching = (1 - Fraction(traffic.hit)) / _SECONDS
    return (
        reaching / _usable(traffic, hardware),
        reaching * (Fraction(hardware.cold_start_s) + Fraction(hardware.idle_s)),
    )


def _usable(traffic: Traffic, hardware: Hardware) -> Fraction:
    """Requests a second."""
    if hardware.requests_per_second <= 0:
        raise ValueError(f"{hardware.name}: requests_per_second must be above 0")
    return Fraction(hardware.requests_per_second) * Fraction(traffic.utilisation)
