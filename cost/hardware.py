"""A machine that runs the model, and how it is paid for.

`always_on`: every hour of every replica, used or not; as many as the peak needs. `autoscaled`: a managed endpoint that
follows the load and may go to zero. It pays its busy time, and for each request a cold start and an idle window of its
own, until together they fill the month: from then on one replica is always starting or waiting. That is an upper bound.
With Poisson arrivals of rate L a replica with the idle window w is up for 1 - exp(-L w) of the time, which is at most
min(1, L w). It assumes that scaling follows the load at once; callers wait for a cold start, which is not priced.
"""

from __future__ import annotations

from typing import Literal

import msgspec

HOURS = 730  # a month
Billing = Literal["always_on", "autoscaled"]


class Hardware(msgspec.Struct, frozen=True):
    """One replica. `basis` says where price and capacity come from: measured, list price, assumed."""

    name: str
    usd_per_hour: float
    requests_per_second: float  # that it sustains at an acceptable latency; 0: the report measures or assumes it
    basis: str = "from the config"
    billing: Billing = "always_on"
    cold_start_s: float = 0.0  # autoscaled: paid, before it answers
    idle_s: float = 300.0  # autoscaled: a replica without a request is kept so long, and paid
    min_replicas: int | None = None  # None: always on, what the traffic asks for; autoscaled, 0

    @property
    def kept_warm(self) -> int:
        """Autoscaled: replicas that are never shut down."""
        return self.min_replicas or 0
