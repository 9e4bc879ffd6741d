"""The report: what was asked, who answered, what it cost, what buying it all would have cost, and where that turns."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from cost import capacity, caveats, crossover, tally
from cost.api_only import ApiOnly, api_only
from cost.crossover import DAYS, Crossing, Hardware, Traffic
from cost.headline import headline
from cost.interval import Day, Interval, days_of, interval
from cost.prices import PriceTable
from cost.schema import connect_readonly
from cost.tally import Group, GroupLine, SourceLine, Spend, StageLine


class CrossoverLine(msgspec.Struct, frozen=True):
    """Requests a month; None: never. `saving_nano` is a month's at the report's volume, None without one."""

    hardware: Hardware
    crossing: Crossing | None
    crossing_with_ops: Crossing | None
    saving_nano: int | None
    saving_with_ops_nano: int | None
    interval: Interval | None = None  # of `crossing.last`, 90 %; None below 14 days of traffic

    @property
    def per_day(self) -> float | None:
        return None if self.crossing is None else self.crossing.last / DAYS


class Report(msgspec.Struct, frozen=True):
    """Money in nano-USD, times in unix microseconds, volumes in requests (inputs) a month."""

    headline: str
    generated_us: int
    from_us: int | None
    until_us: int | None
    days: float
    requests: int
    inputs: int
    sources: list[SourceLine]
    stages: list[StageLine]
    degraded: dict[str, int]
    errors: dict[str, int]
    by: Group | None
    groups: list[GroupLine]
    spend: Spend
    api_only: ApiOnly
    traffic: Traffic | None  # None: nothing to compute a crossover from
    crossover: list[CrossoverLine]
    volume: int | None
    volume_basis: str
    price_version: str
    simulated: bool
    warnings: list[str]
    assumptions: list[str]

    @property
    def paid_and_local_nano(self) -> int:
        return self.spend.paid_nano + self.spend.local_nano


def build(
    ledger_paths: Sequence[Path],
    *,
    since_us: int | None = None,
    by: Group | None = None,
    volume_per_month: int | None = None,
    hardware: Sequence[Hardware] | None = None,
    prices: PriceTable | None = None,
    clock: Callable[[], float] = time.time,
) -> Report:
    """Read the ledgers, live or not, and make the report. `hardware` replaces the defaults. Raises `LedgerError`."""
    table = prices or PriceTable.load()
    db = connect_readonly(ledger_paths)
    try:
        return _build(db, since_us or 0, by, volume_per_month, hardware, table, clock())
    finally:
        db.close()


def _build(
    db: sqlite3.Connection,
    since: int,
    by: Group | None,
    volume: int | None,
    hardware: Sequence[Hardware] | None,
    prices: PriceTable,
    now: float,
) -> Report:
    window = {"since": since}
    inputs, requests, start, end = db.execute(
        "SELECT count(*), count(*) FILTER (WHERE idx = 0), min(at_us), max(at_us) FROM inputs WHERE at_us >= :since",
        window,
    ).fetchone()
    days = (end - start) / 86_400e6 if inputs else 0.0
    basis = "given"
    if volume is None:
        volume, basis = (round(inputs / days * DAYS), "measured") if days >= caveats.ENOUGH_DAYS else (None, "unknown")
    spend = tally.spend(db, since)
    api = api_only(db, since, prices)
    traffic = tally.traffic(db, since, api)
    machines = capacity.machines(db, since, hardware)
    observed = days_of(db, since, api) if days >= caveats.ENOUGH_DAYS else []
    lines = [] if traffic is None else [_line(traffic, machine, volume, observed) for machine in machines]
    simulated = spend.simulated_nano > 0
    report = Report(
        headline="",
        generated_us=int(now * 1e6),
        from_us=start,
        until_us=end,
        days=days,
        requests=requests,
        inputs=inputs,
        sources=tally.sources(db, since, inputs),
        stages=[line for stage in tally.STAGES if (line := tally.stage(db, since, stage))],
        degraded=tally.counts(db, since, "degraded"),
        errors=tally.counts(db, since, "error"),
        by=by,
        groups=tally.groups(db, since, by) if by else [],
        spend=spend,
        api_only=api,
        traffic=traffic,
        crossover=lines,
        volume=volume,
        volume_basis=basis,
        price_version=prices.version,
        simulated=simulated,
        warnings=caveats.warnings(prices, spend, now, api),
        assumptions=caveats.assumptions(prices, traffic, machines, days, basis, api) + caveats.intervals(lines)
        if inputs
        else [],
    )
    return msgspec.structs.replace(report, headline=headline(report))


def _line(traffic: Traffic, machine: Hardware, volume: int | None, observed: Sequence[Day]) -> CrossoverLine:
    staffed = msgspec.structs.replace(traffic, ops_nano=caveats.OPS_NANO)
    return CrossoverLine(
        machine,
        crossover.crossing(traffic, machine),
        crossover.crossing(staffed, machine),
        None if volume is None else crossover.saving_nano(traffic, machine, volume),
        None if volume is None else crossover.saving_nano(staffed, machine, volume),
        interval(observed, traffic, machine) if observed else None,
    )
