"""What goes with the figures: everything that was assumed, and everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from cost import crossover
from cost.api_only import ApiOnly
from cost.crossover import Traffic
from cost.hardware import Hardware
from cost.headline import rounded, usd
from cost.prices import PriceTable
from cost.tally import Spend

if TYPE_CHECKING:
    from cost.report import CrossoverLine, Report

ENOUGH_DAYS = 14  # of traffic, for a monthly figure without --volume, and for intervals
#: Until answers are audited, nothing in the ledger says so.
UNCHECKED = "No answer in the ledger was checked against another or a person's, so there is no calibration to show."


def warnings(
    prices: PriceTable, spend: Spend, now: float, api: ApiOnly, rolled_up: tuple[int, int] = (0, 0)
) -> list[str]:
    """`rolled_up`: as `rollup.rolled_up` gives it."""
    found = []
    inputs, until_us = rolled_up
    if inputs:
        day = datetime.fromtimestamp(until_us / 1e6, UTC).date()
        found.append(
            f"{inputs:,} inputs from before {day} are kept by the hour only and are NOT in this report; "
            "`crossover ledger verify` counts them."
        )
    if spend.simulated_nano:
        found.append(
            f"SIMULATED frontier: ${spend.simulated_nano / 1e9:.6f} of the spending below was paid to nobody. "
            "Prices are the real models'; labels, latency and token counts are made up."
        )
    if stale := prices.stale(now):
        found.append(stale)
    if spend.unpriced:
        found.append(f"{spend.unpriced} settled calls have tokens and no price: the spending shown is too low.")
    if spend.uncertain_nano:
        found.append(
            f"${spend.uncertain_nano / 1e9:.6f} is uncertain (a crash or a timeout after sending) and counts in full."
        )
    if api.calls and api.call_nano is None:
        found.append("No frontier call was settled, so what one costs on this traffic is not known.")
    return found


def assumptions(report: Report, prices: PriceTable) -> list[str]:
    """All of them, the rules of a fair comparison first."""
    traffic, api = report.traffic, report.api_only
    found = [f"List prices of {prices.as_of} ({prices.source}); a request is one input; a month has 730 hours."]
    if traffic is not None:
        found += _fair(report, traffic) + _machines(report, traffic)
        found += _cheaper_call(traffic, [line.hardware for line in report.crossover], api)
    found += api.notes
    for call in api.models:
        if call.learned:
            found.append(
                f"Task {call.task}: {call.model} bills {call.prefix_tokens:.0f} tokens before the text and "
                f"{call.tokens_per_token:.2f} for each local token (least squares over {call.calls} calls)."
            )
    if report.supposed:
        found.append("No interval is shown: what is supposed is not what the days were.")
    elif report.days < ENOUGH_DAYS:
        need = "" if report.volume_basis == "given" else " For a month's figure, name one: --volume 2M/month."
        found.append(
            f"No interval is shown: the ledger spans {span(report.days)}, it takes {ENOUGH_DAYS} to see how days "
            f"differ.{need}"
        )
    history = report.history
    if history is not None and history.sampled < report.inputs:
        found.append(f"Latency percentiles are of {history.sampled:,} rows, spread evenly over the {report.inputs:,}.")
    return found + intervals(report.crossover) + ([] if report.calibration else [UNCHECKED])


def _fair(report: Report, traffic: Traffic) -> list[str]:
    """The rules of a fair comparison."""
    operations = report.operations
    rules = [
        f"The same cache on both sides: it answers {traffic.hit:.1%}. Of the rest {traffic.escalated:.1%} go to the "
        "frontier. Redis costs the same either way, and is left out.",
        f"A million frontier calls cost {usd(round(traffic.call_nano * 1e6))}, on average over this traffic.",
        "Buying gets every discount there is: prompt caching, the batch API and a cheaper model are options of their "
        "own above, not what owning is compared with by default.",
        f"Without operations: no engineering time, no audits, no labels, {_replicas(traffic.min_replicas)}. With: "
        f"{usd(operations.nano)} a month of engineering time, {operations.audited:.0%} of the local answers bought "
        f"again as audits, {operations.labels:,} labels bought a month, {_replicas(operations.min_replicas)}.",
    ]
    assumed = [option for option in report.options if option.adequate == "assumed"]
    if assumed:
        names = ", ".join(dict.fromkeys(option.name for option in assumed))
        rules.append(
            f"That these answer well enough is ASSUMED: {names}. crossover compare measures it on labelled rows."
        )
    return rules


def _replicas(count: int) -> str:
    return "one replica" if count == 1 else f"{count} replicas"


def _machines(report: Report, traffic: Traffic) -> list[str]:
    found = [
        f"Peak load is {traffic.peak_to_mean:.3g} times the mean ({traffic.peak_basis}); a replica is used up to "
        f"{traffic.utilisation:.0%}, and paid for around the clock unless it says autoscaled."
    ]
    for machine in (line.hardware for line in report.crossover):
        billing = ""
        if machine.billing == "autoscaled":
            billing = f", autoscaled: cold start {machine.cold_start_s:g} s, kept {machine.idle_s:g} s when idle"
        found.append(
            f"{machine.name}: ${machine.usd_per_hour:g}/h, {machine.requests_per_second:,.0f} requests/s{billing} "
            f"({machine.basis})."
        )
    found.append(
        "A capacity is the model's time only: HTTP, cache and ledger need some of the same cores, not counted."
    )
    return found


def intervals(lines: Sequence[CrossoverLine]) -> list[str]:
    """How sure the crossover and the saving are, for each machine that has an interval."""
    found = []
    for line in lines:
        if line.interval is None:
            continue
        low, high = ("never" if v is None else rounded(v) for v in (line.interval.low, line.interval.high))
        text = (
            f"{line.hardware.name}: the crossover is between {low} and {high} requests a month in 90% of resampled days"
        )
        text += f"; in {line.interval.never:.0%} there is none." if line.interval.never else "."
        if line.saving is not None:
            saving = line.saving
            text += (
                f" Today it saves {usd(saving.low)} to {usd(saving.high)} a month; it is cheaper with a probability of "
                f"{saving.probability_cheaper:.0%}."
            )
        found.append(text)
    if found:  # measured by bench/intervals.py
        found.append(
            "Days are drawn weekday for weekday, as if none depended on the one before; where each is much like it, "
            "these intervals are too narrow."
        )
    return found


def _cheaper_call(traffic: Traffic, machines: Sequence[Hardware], api: ApiOnly) -> list[str]:
    """What a call costs depends on the provider's prompt cache, which needs steady traffic: both ends are shown."""
    if api.call_nano_cached is None or api.call_nano_plain is None:
        return []

    def at(call_nano: float) -> str:
        other = msgspec.structs.replace(traffic, call_nano=call_nano)
        where = [
            f"{m.name} {rounded(c.last)}" if (c := crossover.crossing(other, m)) else f"{m.name} never"
            for m in machines
        ]
        return f"{usd(round(call_nano * 1e6))} a million calls (crossover: {', '.join(where)})"

    calls = sum(call.calls for call in api.models)
    share = sum(call.cached_share * call.calls for call in api.models) / calls if calls else 0.0
    return [
        f"Of the prompt tokens billed here, {share:.0%} were read from the provider's prompt cache, which lasts "
        f"minutes: steady traffic gets {at(api.call_nano_cached)}; calls too rare to find it cost "
        f"{at(api.call_nano_plain)}."
    ]


def span(days: float) -> str:
    if days >= 1:
        return f"{days:.1f} days"
    return f"{days * 24:.1f} hours" if days * 24 >= 1 else f"{days * 1440:.0f} minutes"
