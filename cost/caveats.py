"""What goes with the figures: everything that was assumed, and everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from cost import crossover
from cost.api_only import ApiOnly
from cost.crossover import Hardware, Traffic
from cost.headline import rounded, usd
from cost.prices import PriceTable
from cost.tally import Spend

if TYPE_CHECKING:
    from cost.report import CrossoverLine

ENOUGH_DAYS = 14  # of traffic, for a monthly figure without --volume
STALE_DAYS = 60  # after which list prices are doubted
OPS_NANO = 500 * 1_000_000_000  # a month: the engineering time that is shown beside "none"


def warnings(prices: PriceTable, spend: Spend, now: float, api: ApiOnly) -> list[str]:
    found = []
    if spend.simulated_nano:
        found.append(
            f"SIMULATED frontier: ${spend.simulated_nano / 1e9:.6f} of the spending below was paid to nobody. "
            "Prices are the real models'; labels, latency and token counts are made up."
        )
    age = (datetime.fromtimestamp(now, UTC).date() - prices.as_of).days
    if age > STALE_DAYS:
        found.append(f"The price list is {age} days old ({prices.as_of}); check it before you decide anything by it.")
    if spend.unpriced:
        found.append(f"{spend.unpriced} settled calls have tokens and no price: the spending shown is too low.")
    if spend.uncertain_nano:
        found.append(
            f"${spend.uncertain_nano / 1e9:.6f} is uncertain (a crash or a timeout after sending) and counts in full."
        )
    if api.calls and api.call_nano is None:
        found.append("No frontier call was settled, so what one costs on this traffic is not known.")
    return found


def assumptions(
    prices: PriceTable, traffic: Traffic | None, machines: Sequence[Hardware], days: float, basis: str, api: ApiOnly
) -> list[str]:
    found = [f"List prices of {prices.as_of} ({prices.source}); a request is one input; a month has 730 hours."]
    if traffic is not None:
        reach = traffic.escalated
        found += [
            f"The same cache on both sides: it answers {traffic.hit:.1%}. Of the rest {reach:.1%} go to the frontier.",
            f"A million frontier calls cost {usd(round(traffic.call_nano * 1e6))}, on average over this traffic.",
            f"Peak load is {traffic.peak_to_mean:g} times the mean (assumed); a replica is used up to "
            f"{traffic.utilisation:.0%}; at least {traffic.min_replicas} replica, paid for around the clock.",
            f"Running it takes no engineering time; beside it: ${OPS_NANO / 1e9:.0f} a month.",
        ]
        found += [
            f"{m.name}: ${m.usd_per_hour:g}/h, {m.requests_per_second:,.0f} requests/s ({m.basis})." for m in machines
        ]
        found.append(
            "A capacity is the model's time only: HTTP, cache and ledger need some of the same cores, not counted."
        )
        found += _cheaper_call(traffic, machines, api)
    found += api.notes
    for call in api.models:
        if call.learned:
            found.append(
                f"Task {call.task}: {call.model} bills {call.prefix_tokens:.0f} tokens before the text and "
                f"{call.tokens_per_token:.2f} for each local token (least squares over {call.calls} calls)."
            )
    if days < ENOUGH_DAYS:
        need = "" if basis == "given" else " For a month's figure, name one: --volume 2M/month."
        found.append(
            f"No interval is shown: the ledger spans {span(days)}, it takes {ENOUGH_DAYS} to see how days differ.{need}"
        )
    return found


def intervals(lines: Sequence[CrossoverLine]) -> list[str]:
    """How sure the crossover is, for each machine that has an interval."""
    found = []
    for line in lines:
        if line.interval is None:
            continue
        low, high = ("never" if v is None else rounded(v) for v in (line.interval.low, line.interval.high))
        text = (
            f"{line.hardware.name}: the crossover is between {low} and {high} requests a month in 90% of resampled days"
        )
        found.append(text + (f"; in {line.interval.never:.0%} there is none." if line.interval.never else "."))
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
