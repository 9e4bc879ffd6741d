"""The report: what to do about the bill, who answered, what it cost, what buying it all would have cost, and where that
turns."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from cost import capacity, caveats, crossover, curves, demand, tally, whatif
from cost.api_only import ApiOnly, api_only
from cost.calibration import Bin, bins
from cost.caveats import ENOUGH_DAYS
from cost.comparison import Comparison
from cost.crossover import DAYS, Crossing, Operations, Traffic
from cost.curves import Band, Curve
from cost.hardware import Hardware
from cost.headline import headline, usd
from cost.history import History, Share, asked, history, shares
from cost.interval import Draw, Interval, Saving, crossings, days_of, draws, freedom, savings
from cost.options import Option, rank
from cost.prices import PriceTable
from cost.repricing import repriced
from cost.rollup import rolled_up
from cost.schema import connect_readonly
from cost.tally import Group, Spend
from cost.types import LedgerError
from cost.whatif import Answers, Step

EXAMPLE = 1_000_000  # requests a month, to rank at where no volume is known


class CrossoverLine(msgspec.Struct, frozen=True):
    """Requests a month. None: never. `saving_nano` is a month's at the report's volume, None without one."""

    hardware: Hardware
    crossing: Crossing | None
    crossing_with_ops: Crossing | None
    saving_nano: int | None
    saving_with_ops_nano: int | None
    interval: Interval | None = None  # of `crossing.last`, 90 %; None below 14 days of traffic
    saving: Saving | None = None  # of `saving_nano`, 90 %

    @property
    def per_day(self) -> float | None:
        return None if self.crossing is None else self.crossing.last / DAYS


class Supposed(msgspec.Struct, frozen=True):
    """What if: in the place of what the ledger measured. None: as measured."""

    threshold: float | None = None
    hit: float | None = None  # the cache's share
    prices: PriceTable | None = None


class Report(msgspec.Struct, frozen=True):
    """Money in nano-USD, times in unix microseconds, volumes in requests (inputs) a month.

    `docs/report.schema.json` is made from this, and says what `crossover report --json` prints.
    """

    headline: str
    options: list[Option]  # the cheapest first, at `ranked_at`; empty: nothing to compute them from
    ranked_at: int  # `volume`, or a million where none is known
    operations: Operations
    comparison: Comparison | None  # of `crossover compare`, for the busiest task
    generated_us: int
    from_us: int | None
    until_us: int | None
    days: float
    requests: int
    inputs: int
    history: History | None  # None: no inputs
    by: Group | None
    shares: list[Share]
    spend: Spend
    api_only: ApiOnly
    traffic: Traffic | None  # None: nothing to compute a crossover from; with what was supposed in it
    supposed: list[str]  # what was, in words
    thresholds: list[Step]  # cost and quality by threshold, on `threshold_on`, at `ranked_at`; today's is marked
    threshold_on: str | None
    calibration: list[Bin]
    crossover: list[CrossoverLine]
    volumes: list[int]  # of the curves
    curves: list[Curve]
    bands: list[Band]  # 90 %; none below 14 days of traffic
    volume: int | None
    volume_basis: str  # given, measured, unknown
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
    comparisons: Mapping[str, Comparison] | None = None,
    operations: Operations | None = None,
    supposed: Supposed | None = None,
    clock: Callable[[], float] = time.time,
) -> Report:
    """Read the ledgers, live or not, and make the report. `hardware` replaces the defaults; `comparisons` are what
    `crossover compare` kept, by task; `supposed` asks what if. Raises `LedgerError`."""
    table = prices or PriceTable.load()
    db = connect_readonly(ledger_paths)
    try:
        return _build(
            db,
            since_us or 0,
            by,
            volume_per_month,
            hardware,
            table,
            comparisons or {},
            operations or Operations(),
            supposed or Supposed(),
            clock(),
        )
    finally:
        db.close()


def _build(
    db: sqlite3.Connection,
    since: int,
    by: Group | None,
    given: int | None,
    hardware: Sequence[Hardware] | None,
    prices: PriceTable,
    comparisons: Mapping[str, Comparison],
    operations: Operations,
    supposed: Supposed,
    now: float,
) -> Report:
    inputs, requests, start, end = asked(db, since)
    days = (end - start) / 86_400e6 if inputs else 0.0
    volume, basis = _volume(given, inputs, days)
    observed = demand.hours(db, since)
    spend = tally.spend(db, since, observed)
    api = api_only(db, since, prices, observed)
    traffic = tally.traffic(db, since, api, observed)
    machines = capacity.machines(db, since, hardware)
    by_confidence = whatif.answers(db, since)
    changes: list[str] = []
    if traffic is not None:
        traffic, changes = _suppose(db, since, supposed, traffic, machines[0], api, by_confidence)
    prices = supposed.prices or prices
    ranked_at = volume or EXAMPLE
    judged = _judged(api, comparisons)
    lines, at, bands, options = [], [], [], []
    if traffic is not None:
        seen = days_of(db, since, api, observed) if days >= ENOUGH_DAYS and not changes else []
        drawn = draws(seen, traffic) if seen else []
        lines = [
            _line(traffic, machine, operations, volume, drawn, freedom(seen), measured=basis == "measured")
            for machine in machines
        ]
        at = curves.volumes([line.crossing for line in lines], ranked_at)
        bands = curves.bands([draw.traffic for draw in drawn[: curves.DRAWN]], machines, at)
        options = rank(traffic, machines, ranked_at, api, prices, comparison=judged, operations=operations)
    on = min(machines, key=lambda each: crossover.hybrid_nano(traffic, each, ranked_at)) if traffic else None
    report = Report(
        headline="",
        options=options,
        ranked_at=ranked_at,
        operations=operations,
        comparison=judged,
        generated_us=int(now * 1e6),
        from_us=start if inputs else None,
        until_us=end if inputs else None,
        days=days,
        requests=requests,
        inputs=inputs,
        history=history(db, since, start, end, inputs) if inputs else None,
        by=by,
        shares=shares(db, since, by) if by else [],
        spend=spend,
        api_only=api,
        traffic=traffic,
        supposed=changes,
        thresholds=[] if traffic is None or on is None else whatif.curve(by_confidence, traffic, on, ranked_at),
        threshold_on=None if on is None else on.name,
        calibration=bins(by_confidence),
        crossover=lines,
        volumes=at,
        curves=[] if traffic is None else curves.curves(traffic, machines, at),
        bands=bands,
        volume=volume,
        volume_basis=basis,
        price_version=prices.version,
        simulated=spend.simulated_nano > 0,
        warnings=caveats.warnings(prices, spend, now, api, rolled_up(db, since)),
        assumptions=[],
    )
    report = msgspec.structs.replace(report, assumptions=caveats.assumptions(report, prices) if inputs else [])
    return msgspec.structs.replace(report, headline=headline(report))


def _volume(given: int | None, inputs: int, days: float) -> tuple[int | None, str]:
    if given is not None:
        return given, "given"
    return (round(inputs / days * DAYS), "measured") if days >= ENOUGH_DAYS else (None, "unknown")


def _suppose(
    db: sqlite3.Connection,
    since: int,
    supposed: Supposed,
    measured: Traffic,
    machine: Hardware,
    api: ApiOnly,
    found: Answers,
) -> tuple[Traffic, list[str]]:
    """The traffic with it, and what changed. Raises `LedgerError` for what the books can't tell."""
    traffic, told = measured, []
    if supposed.threshold is not None:
        at = supposed.threshold
        step = next(s for s in whatif.curve(found, measured, machine, EXAMPLE, grid=(at,)) if s.threshold == at)
        traffic = msgspec.structs.replace(traffic, escalated=step.escalated_high)
        share = f"{step.escalated_high:.1%}"
        if step.escalated_low < step.escalated_high:
            share = f"{step.escalated_low:.1%} to {share} (how sure the model was of what was bought is not known; the "
            share += "most counts)"
        told.append(f"a threshold of {at:g} escalates {share} instead of {measured.escalated:.1%}")
    if supposed.hit is not None:
        traffic = msgspec.structs.replace(traffic, hit=supposed.hit)
        told.append(f"the cache answers {supposed.hit:.1%} instead of {measured.hit:.1%}")
    if supposed.prices is not None:
        nano = whatif.call_nano_by(repriced(db, supposed.prices.newest, since), api)
        if nano is None:
            raise LedgerError("that price table lacks a price of a model that the ledger's calls went to; add it")
        traffic = msgspec.structs.replace(traffic, call_nano=nano)
        before, after = (usd(round(each * 1e6)) for each in (measured.call_nano, nano))
        told.append(f"by the prices of {supposed.prices.version} a million calls cost {after} instead of {before}")
    return traffic, told


def _judged(api: ApiOnly, comparisons: Mapping[str, Comparison]) -> Comparison | None:
    """That of the busiest task: the ranking is about all of them."""
    busiest = max(api.models, key=lambda call: call.inputs, default=None)
    return None if busiest is None else comparisons.get(busiest.task)


def _line(
    traffic: Traffic,
    machine: Hardware,
    operations: Operations,
    volume: int | None,
    drawn: Sequence[Draw],
    days: int,
    *,
    measured: bool,
) -> CrossoverLine:
    staffed = crossover.operated(traffic, operations)
    return CrossoverLine(
        machine,
        crossover.crossing(traffic, machine),
        crossover.crossing(staffed, machine),
        None if volume is None else crossover.saving_nano(traffic, machine, volume),
        None if volume is None else crossover.saving_nano(staffed, machine, volume),
        crossings(drawn, days, machine) if drawn else None,
        savings(drawn, days, machine, volume, measured=measured) if drawn and volume is not None else None,
    )
