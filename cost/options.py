"""What somebody can do about the bill, in dollars a month at one volume, cheapest first. Pure functions, no SQL.

Each option changes one thing: the model, the prompt cache, the batch API, or who answers. The same response cache
stands before all of them. What an option needs that nobody measured is said in its basis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp
from typing import Literal

import msgspec

from cost.api_only import ApiCall, ApiOnly
from cost.comparison import Comparison, Contender
from cost.crossover import HOURS, Operations, Traffic, api_nano, hybrid_nano, local_only, operated
from cost.hardware import Hardware
from cost.prices import Price, PriceTable, in_batch

Name = Literal["cheaper tier", "prompt caching", "batch API", "hybrid", "local only", "as now"]
#: "measured": `crossover compare` judged it on a sample. "by definition": the same model gives the same answers.
Adequate = Literal["measured", "assumed", "by definition"]
LOCAL = "local"  # the contender of a comparison that is the own model
TTL_S = 300  # a provider keeps a prompt's prefix so long, and anew from each use on


class Option(msgspec.Struct, frozen=True):
    """nano-USD a month. `as now` is buying every answer as the ledger's calls were billed."""

    name: Name
    monthly_nano: int
    monthly_with_ops_nano: int  # with people, redundancy, audits and labels; buying takes none of them
    adequate: Adequate
    basis: str
    hardware: str | None = None  # the machine it is cheapest on
    model: str | None = None  # the frontier model, where there is one
    ruled_out: bool = False  # measured, and found to lose more accuracy than allowed


def rank(
    traffic: Traffic,
    machines: Sequence[Hardware],
    volume: int,
    api: ApiOnly,
    prices: PriceTable,
    *,
    comparison: Comparison | None = None,
    operations: Operations | None = None,
) -> list[Option]:
    """The cheapest first; what was measured to lose too much accuracy last. `volume`: requests a month.

    `api` names who is asked now, `comparison` (of `crossover compare`) whose answers are good enough. An option that
    can't be had (no price, a prompt too short to be cached) is left out.
    """
    bought = [
        _as_now(traffic, volume, api),
        _cheaper_tier(traffic, volume, api, prices, comparison),
        _prompt_caching(traffic, volume, api, prices),
        _batch(traffic, volume, api, prices),
    ]
    owned = [
        _owned("hybrid", traffic, machines, volume, comparison, operations or Operations()),
        _owned("local only", traffic, machines, volume, comparison, operations or Operations()),
    ]
    found = [option for option in (*bought, *owned) if option is not None]
    return sorted(found, key=lambda option: (option.ruled_out, option.monthly_nano))


def advice(options: Sequence[Option]) -> str:
    """What the ranking says, in a sentence or two. Empty: there is nothing to rank."""
    usable = [option for option in options if not option.ruled_out]
    if not usable:
        return ""
    plain = min(usable, key=lambda option: option.monthly_nano)
    staffed = min(usable, key=lambda option: option.monthly_with_ops_nano)
    condition = ""
    if plain.name == "batch API":
        live = min((each for each in usable if each is not plain), key=lambda option: option.monthly_nano)
        condition = f" (if answers may take up to a day; if not, {_plainly(live)})"
    elif plain.adequate == "assumed":
        condition = " (if its answers are good enough: nobody measured them)"
    best = f"{_plainly(plain)} is cheapest{condition}"
    if plain.hardware is None:
        return f"Don't self-host: {best}."
    if staffed.hardware is None:
        return f"Don't self-host, if running it costs anybody's time: then {_plainly(staffed)} is cheaper; else {best}."
    return f"Self-host: {best}, with operations as well."


def _plainly(option: Option) -> str:
    on = f" on {option.hardware}" if option.hardware else ""
    return {
        "cheaper tier": f"buying every answer from {option.model}",
        "prompt caching": f"buying every answer from {option.model} with prompt caching",
        "batch API": "buying every answer through the batch API",
        "hybrid": f"the hybrid{on}",
        "local only": f"the local model alone{on}",
        "as now": "buying every answer as now",
    }[option.name]


# who buys ------------------------------------------------------------------------------------------------------------


def _bought(
    name: Name, traffic: Traffic, volume: int, call_nano: float, adequate: Adequate, basis: str, model: str | None
) -> Option:
    month = round(api_nano(msgspec.structs.replace(traffic, call_nano=call_nano), volume))
    return Option(name, month, month, adequate, basis, model=model)


def _as_now(traffic: Traffic, volume: int, api: ApiOnly) -> Option:
    basis = "every miss bought, at what the calls in the ledger cost"
    return _bought("as now", traffic, volume, traffic.call_nano, "by definition", basis, _asked(api))


def _cheaper_tier(
    traffic: Traffic, volume: int, api: ApiOnly, prices: PriceTable, comparison: Comparison | None
) -> Option | None:
    """The cheapest frontier that `compare` found good enough; where it judged none, the cheapest with a list price,
    which is assumed to be. Models that always think are no guess: how much is not known. None: none is cheaper."""
    contenders = () if comparison is None else comparison.contenders
    frontiers = [each for each in contenders if each.name != LOCAL and each.accuracy is not None]
    found: list[tuple[float, str, Adequate, str]] = []
    if comparison is not None and frontiers:
        for each in frontiers:
            nano = _at(api, prices.price(each.model))
            nano = (each.nano_per_million or 0) / 1e6 if nano is None else nano
            if nano and _lost(each) <= comparison.within:
                found.append((nano, each.model, "measured", _judged(comparison, each, "")))
    else:
        guess = "the lowest list price for the same tokens; nobody measured its answers: run crossover compare"
        for model, price in prices.models.items():
            if not price.thinking_always_on and (listed := _at(api, price)):
                found.append((listed, model, "assumed", guess))
    nano, model, adequate, basis = min(found, default=(traffic.call_nano, "", "assumed", ""))
    return _bought("cheaper tier", traffic, volume, nano, adequate, basis, model) if nano < traffic.call_nano else None


def _prompt_caching(traffic: Traffic, volume: int, api: ApiOnly, prices: PriceTable) -> Option | None:
    """The prefix read from the provider's cache as often as calls at this volume find it there. None: no provider
    caches it (too short, or no such price), or it costs no less."""
    mean = _over(api, lambda call: cached_call_nano(call, prices, _calls_a_second(traffic, volume, call, api)))
    if mean is None or mean >= traffic.call_nano:
        return None
    basis = (
        f"calls come by chance at an even rate; the prompt before the text is kept {TTL_S / 60:.0f} minutes after each "
        "use, and written anew when it is gone"
    )
    return _bought("prompt caching", traffic, volume, mean, "by definition", basis, _asked(api))


def _batch(traffic: Traffic, volume: int, api: ApiOnly, prices: PriceTable) -> Option | None:
    """None: a model has no batch price, or batches cost no less than now."""

    def in_batches(call: ApiCall) -> float | None:
        price = None if call.by_the_hour else prices.price(call.model)
        batch = None if price is None else in_batch(price)
        return None if batch is None else _mean(call, batch, call.cached_share)

    mean = _over(api, in_batches)
    if mean is None or mean >= traffic.call_nano:
        return None
    basis = "the same model at its batch price, prompt caching as billed; only if answers may take up to a day"
    return _bought("batch API", traffic, volume, mean, "by definition", basis, _asked(api))


def cached_call_nano(call: ApiCall, prices: PriceTable, calls_a_second: float) -> float | None:
    """Mean cost of a call whose prefix is cached by the provider; None: it is not cached.

    Calls by chance (Poisson) at a rate L find a prefix that is kept for t seconds after each use with the probability
    1 - exp(-L t); else it is written, at the write price.
    """
    price = None if call.by_the_hour else prices.price(call.model)
    if price is None or price.cache_read is None or call.prefix_tokens < shortest_prefix(price):
        return None
    found = 1 - exp(-calls_a_second * TTL_S)
    written = price.input if price.cache_write_5m is None else price.cache_write_5m
    prefix = call.prefix_tokens * (found * price.cache_read + (1 - found) * written)
    text = call.tokens_per_token * _tokens(call) * price.input
    return (prefix + text + call.output_tokens * price.output) / 1e6


def shortest_prefix(price: Price) -> int:
    """Tokens; a prompt's prefix below it is not cached. 1,024 is what most providers ask for."""
    return 1024 if price.prompt_cache_min_tokens is None else price.prompt_cache_min_tokens


def _at(api: ApiOnly, price: Price | None) -> float | None:
    """Mean cost of the ledger's calls by another price, with its tokens; its cache as far as it takes the prefix."""

    def by(call: ApiCall) -> float | None:
        if price is None or call.by_the_hour:
            return None
        cached = price.cache_read is not None and call.prefix_tokens >= shortest_prefix(price)
        return _mean(call, price, call.cached_share if cached else 0.0)

    return _over(api, by)


def _mean(call: ApiCall, price: Price, cached_share: float) -> float:
    prompt = call.prefix_tokens + call.tokens_per_token * _tokens(call)
    read = price.input if price.cache_read is None else price.cache_read
    rate = cached_share * read + (1 - cached_share) * price.input
    return (prompt * rate + call.output_tokens * price.output) / 1e6


def _tokens(call: ApiCall) -> float:
    """Local tokens of a mean input."""
    return call.tokens / call.inputs if call.inputs else 0.0


def _over(api: ApiOnly, cost: Callable[[ApiCall], float | None]) -> float | None:
    """Mean over all misses; None if it is not known for a task."""
    costs = [(call.inputs, cost(call)) for call in api.models if call.inputs]
    inputs = sum(count for count, _ in costs)
    if not inputs or any(nano is None for _, nano in costs):
        return None
    return sum(count * (nano or 0.0) for count, nano in costs) / inputs


def _calls_a_second(traffic: Traffic, volume: int, call: ApiCall, api: ApiOnly) -> float:
    inputs = sum(each.inputs for each in api.models)
    return volume * (1 - traffic.hit) / (HOURS * 3600) * (call.inputs / inputs if inputs else 0.0)


def _asked(api: ApiOnly) -> str | None:
    return ", ".join(sorted({call.model for call in api.models if call.inputs})) or None


# who owns ------------------------------------------------------------------------------------------------------------


def _owned(
    name: Literal["hybrid", "local only"],
    traffic: Traffic,
    machines: Sequence[Hardware],
    volume: int,
    comparison: Comparison | None,
    operations: Operations,
) -> Option | None:
    """On the machine that is cheapest at this volume; with operations that may be another one."""
    if not machines:
        return None
    staffed = operated(traffic, operations)
    if name == "local only":
        traffic, staffed = local_only(traffic), local_only(staffed)
    best = min(machines, key=lambda machine: hybrid_nano(traffic, machine, volume))
    with_ops = min(hybrid_nano(staffed, machine, volume) for machine in machines)
    adequate, told, ruled_out = _local_judged(name, comparison)
    answered = (
        f"{traffic.escalated:.1%} of the misses escalated"
        if name == "hybrid"
        else "whatever the local model's confidence"
    )
    return Option(
        name,
        round(hybrid_nano(traffic, best, volume)),
        round(with_ops),
        adequate,
        f"{answered}; {told}",
        hardware=best.name,
        model=None,
        ruled_out=ruled_out,
    )


def _local_judged(name: Name, comparison: Comparison | None) -> tuple[Adequate, str, bool]:
    """A local model that is good enough alone is so in the hybrid; one that is not may still be where it is sure."""
    contenders = () if comparison is None else comparison.contenders
    local = next((each for each in contenders if each.name == LOCAL and each.accuracy is not None), None)
    if comparison is None or local is None:
        return "assumed", "nobody measured its answers: run crossover compare", False
    basis = _judged(comparison, local, "alone ")
    if _lost(local) <= comparison.within:
        return "measured", basis, False
    if name == "local only":
        return "measured", f"{basis}: not good enough", True
    return "assumed", f"{basis}; that it is good enough where it is sure is assumed", False


def _lost(contender: Contender) -> float:
    """Accuracy, against the best of the comparison."""
    return contender.against_best.difference if contender.against_best else 0.0


def _judged(comparison: Comparison, contender: Contender, how: str) -> str:
    paired = contender.against_best
    few = "" if paired is None or paired.high <= comparison.within else ", too few to be sure"
    return (
        f"crossover compare on {comparison.rows} rows{few} of task {comparison.task}: {how}it loses "
        f"{_lost(contender):.1%}, {comparison.within:.1%} are allowed"
    )
