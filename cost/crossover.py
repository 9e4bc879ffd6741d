"""At which volume does running a model of one's own beat buying the answers? Pure functions, exact arithmetic.

    API-only   C_A(V) = V (1-h) c                                  the same response cache stands on both sides
    hybrid     C_H(V) = ops + R(V) G 730 + V (1-h) e c
    replicas   R(V)   = max(R_min, ceil(k V (1-h) / (730 * 3600) / (mu rho)))

V requests a month (of 730 hours), h share answered by the cache, e share of the rest that is escalated, c nano-USD a
frontier call, G nano-USD an hour of one replica, mu requests a second that it sustains, rho how far it may be used, k
peak load over mean load. Idle hours are paid for. R(V) goes in steps, so the two can cross several times.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import msgspec

HOURS = 730  # a month
DAYS = HOURS / 24


class Hardware(msgspec.Struct, frozen=True):
    """One replica. `basis` says where price and capacity come from: measured, list price, assumed."""

    name: str
    usd_per_hour: float
    requests_per_second: float  # that it sustains at an acceptable latency; 0: the report measures or assumes it
    basis: str = "from the config"


class Traffic(msgspec.Struct, frozen=True):
    """Shares in [0, 1]; money in nano-USD (a float where it is a mean)."""

    hit: float
    escalated: float
    call_nano: float
    ops_nano: int = 0  # a month: the people who run it
    peak_to_mean: float = 4.0
    utilisation: float = 0.65
    min_replicas: int = 1


class Crossing(msgspec.Struct, frozen=True):
    """Requests a month. The hybrid is cheaper somewhere from `first` on, and everywhere from `last` on."""

    first: int
    last: int


def api_nano(traffic: Traffic, volume: int) -> Fraction:
    """A month of API-only."""
    return volume * (1 - Fraction(traffic.hit)) * Fraction(traffic.call_nano)


def hybrid_nano(traffic: Traffic, hardware: Hardware, volume: int) -> Fraction:
    """A month of the hybrid."""
    fixed = traffic.ops_nano + replicas(traffic, hardware, volume) * _month_nano(hardware)
    return fixed + api_nano(traffic, volume) * Fraction(traffic.escalated)


def replicas(traffic: Traffic, hardware: Hardware, volume: int) -> int:
    """How many a volume needs at its peak."""
    capacity = _capacity(traffic, hardware)
    return traffic.min_replicas if capacity is None else max(traffic.min_replicas, ceil(volume / capacity))


def saving_nano(traffic: Traffic, hardware: Hardware, volume: int) -> int:
    """API-only minus hybrid, a month; negative where buying is cheaper."""
    return round(api_nano(traffic, volume) - hybrid_nano(traffic, hardware, volume))


def crossing(traffic: Traffic, hardware: Hardware) -> Crossing | None:
    """None: the hybrid is never cheaper, at no volume.

    With s saved a request, n replicas that serve up to n * capacity and cost F(n) = ops + n G 730, the hybrid is
    cheaper above F(n) / s within the step. Where s * capacity does not exceed G 730, a replica never earns its keep.
    """
    saved = (1 - Fraction(traffic.hit)) * Fraction(traffic.call_nano) * (1 - Fraction(traffic.escalated))
    if saved <= 0:
        return None
    replica, ops, least = _month_nano(hardware), Fraction(traffic.ops_nano), traffic.min_replicas
    capacity = _capacity(traffic, hardware)
    assert capacity is not None  # nothing reaches the model only if all are hits, and then nothing is saved
    margin = saved * capacity - replica
    if margin <= 0:
        return None

    def even(n: int) -> int:
        """The smallest volume at which n replicas are paid for."""
        return floor((ops + n * replica) / saved) + 1

    n = max(least, floor(ops / margin) + 1)
    while even(n) > n * capacity:  # no whole request fits between
        n += 1
    first = max(even(n), floor((n - 1) * capacity) + 1 if n > least else 1)

    n = max(least, ceil((ops + saved * capacity) / margin) + 1)
    while n > least and floor((n - 1) * capacity) + 1 >= even(n):  # paid for from its first request on
        n -= 1
    return Crossing(first, max(first, even(n)))


def _month_nano(hardware: Hardware) -> Fraction:
    return Fraction(round(hardware.usd_per_hour * 1e9)) * HOURS


def _capacity(traffic: Traffic, hardware: Hardware) -> Fraction | None:
    """Requests a month one replica serves, hits included; None: any number, as none of them reaches it."""
    if hardware.requests_per_second <= 0:
        raise ValueError(f"{hardware.name}: requests_per_second must be above 0")
    reaching = 1 - Fraction(traffic.hit)
    if reaching <= 0:
        return None
    usable = Fraction(hardware.requests_per_second) * Fraction(traffic.utilisation) / Fraction(traffic.peak_to_mean)
    return usable * HOURS * 3600 / reaching
