# ruff: noqa: S608 - what is put into the queries are constants and column names of this package
"""What the ledger's rows sum to. Each function takes `schema.connect_readonly`'s view and the start of the window."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import msgspec

from cost.api_only import BY_THE_HOUR, ApiOnly
from cost.crossover import Traffic
from cost.demand import MISS, Hour, hours, peak_to_mean
from cost.prices import SIMULATED

Group = Literal["task", "tenant"]
STAGES = ("cache", "queue", "local", "frontier")


class SourceLine(msgspec.Struct, frozen=True):
    """Latency is the whole answer's, in microseconds."""

    source: str
    inputs: int
    share: float
    cost_nano: int
    p50_us: int
    p95_us: int
    p99_us: int


class StageLine(msgspec.Struct, frozen=True):
    """Over the inputs that entered the stage."""

    stage: str
    inputs: int
    p50_us: int
    p95_us: int
    p99_us: int


class Charge(msgspec.Struct, frozen=True):
    """One task's or tenant's part. nano-USD."""

    name: str
    inputs: int
    frontier_nano: int
    local_nano: int  # marginal: its share of the model's time, while that ran
    loaded_nano: int  # fully loaded: its share of the machines' whole bill, idle time too. In place of local_nano
    saved_nano: int | None  # what its local answers would have cost to buy, less local_nano; degraded ones save nothing


class Spend(msgspec.Struct, frozen=True):
    """What the providers got, or may get. `batch_nano` and `simulated_nano` are parts of the others."""

    attempts: int
    settled_nano: int
    estimated_nano: int  # part of settled: the provider gave no usage, an upper bound stands
    uncertain_nano: int  # nobody knows whether it was billed; the upper bound
    reserved_nano: int  # calls in flight
    batch_nano: int  # through batch APIs, at their lower price
    simulated_nano: int  # nobody got it
    local_nano: int  # device time of the local model
    unpriced: int  # settled calls with tokens and no cost

    @property
    def paid_nano(self) -> int:
        return self.settled_nano + self.uncertain_nano + self.reserved_nano


def chargeback(db: sqlite3.Connection, since: int, by: Group, api: ApiOnly, bill_nano: int) -> list[Charge]:
    """The dearest first. `bill_nano`: what the machines of the window cost (`crossover.window_nano`), shared out by the
    model's time, to the nano."""
    calls = {call.task: call for call in api.models}
    pooled = max(api.models, key=lambda call: call.calls, default=None)
    used: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0, 0, 0.0])
    for name, task, inputs, local, local_us, kept, tokens in db.execute(
        f"""SELECT {by}, task, count(*), sum(local_nano), sum(local_us), sum(kept), sum(kept * tokens)
        FROM (SELECT *, {MISS} AND source = 'local' AND degraded IS NULL AS kept FROM inputs WHERE at_us >= ?)
        GROUP BY 1, 2""",
        (since,),
    ):
        call = calls.get(task, pooled)
        for i, value in enumerate((inputs, 0, local, local_us, 0.0 if call is None else call.nano(kept, tokens))):
            used[name][i] += value
    for name, nano in db.execute(f"SELECT {by}, sum(cost_nano) FROM attempts WHERE at_us >= ? GROUP BY 1", (since,)):
        used[name][1] = nano  # uncertain calls and those in flight count with their upper bound
    busy, seen_us, charged = sum(int(sums[3]) for sums in used.values()), 0, 0
    found = []
    for name, (inputs, paid, local, local_us, bought) in sorted(used.items()):
        seen_us += int(local_us)
        upto = bill_nano * seen_us // busy if busy else 0  # what is cut off one, the next one gets: the sum is the bill
        saved = None if pooled is None else round(bought) - int(local)
        found.append(Charge(name, int(inputs), int(paid), int(local), upto - charged, saved))
        charged = upto
    return sorted(found, key=lambda charge: (-charge.frontier_nano - charge.loaded_nano, -charge.inputs, charge.name))


def spend(db: sqlite3.Connection, since: int, observed: Sequence[Hour] | None = None) -> Spend:
    seen = hours(db, since) if observed is None else observed
    row = db.execute(
        f"""SELECT count(*), coalesce(sum(cost_nano) FILTER (WHERE state = 'settled'), 0),
        coalesce(sum(cost_nano) FILTER (WHERE state = 'settled' AND estimated = 1), 0),
        coalesce(sum(cost_nano) FILTER (WHERE state = 'uncertain'), 0),
        coalesce(sum(cost_nano) FILTER (WHERE state = 'reserved'), 0),
        coalesce(sum(cost_nano) FILTER (WHERE batch = 1), 0),
        coalesce(sum(cost_nano) FILTER (WHERE answered_model LIKE '{SIMULATED}%' OR model LIKE '{SIMULATED}%'), 0),
        :local,
        count(*) FILTER (WHERE state = 'settled' AND cost_nano = 0 AND input + output > 0
            AND price_version NOT LIKE '{BY_THE_HOUR}')
        FROM attempts WHERE at_us >= :since""",
        {"since": since, "local": sum(hour.local_nano for hour in seen)},
    ).fetchone()
    return Spend(*row)


def traffic(db: sqlite3.Connection, since: int, api: ApiOnly, observed: Sequence[Hour] | None = None) -> Traffic | None:
    """Shares as they were. What wanted the frontier and did not get it (degraded) counts as escalated."""
    if api.call_nano is None:
        return None
    seen = hours(db, since) if observed is None else observed
    answered, misses, wanted = (sum(getattr(hour, name) for hour in seen) for name in ("answered", "misses", "wanted"))
    found = Traffic(hit=1 - misses / answered, escalated=wanted / misses, call_nano=api.call_nano)
    peak = peak_to_mean(seen)
    if peak is None:
        return found
    basis = "measured: the busiest hour of the ledger over the mean one"
    return msgspec.structs.replace(found, peak_to_mean=peak, peak_basis=basis)
