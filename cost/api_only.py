# ruff: noqa: S608 - the parts of the queries are constants of this module
"""What would the same traffic have cost, had every cache miss been bought?

The local tokenizer counted every input, so this is learned, not guessed: billed input tokens = prefix + ratio * tokens,
by least squares over the settled calls of a task, priced as those calls were billed (prompt caching as it happened).
Calls in batches teach the same: their tokens are counted alike. What was bought in one counts with what it cost, the
rest with the price of single calls.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from cost.demand import MISS, Hour, hours
from cost.prices import PriceTable

ENOUGH_CALLS = 20  # for a line through them; with fewer the ratio is taken as 1

#: A call to learn from; comparisons count no local tokens.
_CALL = "a.state = 'settled' AND a.estimated = 0 AND a.tokens > 0 AND a.input + a.output > 0 AND a.at_us >= :since"
BY_THE_HOUR = "$%/h"  # `price_version` of a call to a model that is rented, "$1.2/h": it has no price for tokens
_NAME = "coalesce(nullif(a.answered_model, ''), a.model)"


class ApiCall(msgspec.Struct, frozen=True):
    """A frontier call for one task, as learned. Tokens are the provider's; one of ours makes `tokens_per_token`."""

    task: str
    model: str
    calls: int
    prefix_tokens: float
    tokens_per_token: float
    output_tokens: float
    input_nano: float  # nano-USD per input token, caching as billed
    output_nano: float
    learned: bool  # False: too few calls for a line
    cached_share: float  # of the prompt tokens billed, so many were read from the provider's cache
    by_the_hour: bool = False  # rented: a call costs its share of the time, whatever its tokens
    inputs: int = 0  # misses of the window that are priced by it; their local tokens
    tokens: int = 0

    def nano(self, inputs: int, tokens: int) -> float:
        """What `inputs` texts of `tokens` local tokens together would cost."""
        billed = inputs * self.prefix_tokens + self.tokens_per_token * tokens
        return billed * self.input_nano + inputs * self.output_tokens * self.output_nano


class ApiOnly(msgspec.Struct, frozen=True):
    """`nano`: all misses of the window bought; None: no call to learn from. `call_nano`: mean of one."""

    calls: int
    nano: int | None
    call_nano: float | None
    call_nano_cached: float | None  # were the prompt's prefix read from the provider's cache; None: not to be had
    call_nano_plain: float | None  # were nothing read from it: what rare calls cost
    measured_calls: int  # of them, so many were really made
    models: list[ApiCall]
    notes: list[str]


def api_only(db: sqlite3.Connection, since: int, prices: PriceTable, observed: Sequence[Hour] | None = None) -> ApiOnly:
    """Price the window's misses: with their own calls where they have some, with what was learned where not.

    `observed` is `demand.hours(db, since)`, for who has it already.
    """
    notes: list[str] = []
    learned = _learn(db, since, prices, notes)
    pooled = max(learned.values(), key=lambda call: call.calls, default=None)
    misses: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for hour in hours(db, since) if observed is None else observed:
        for i, count in enumerate((hour.misses, hour.counted, hour.tokens)):
            misses[hour.task][i] += count
    paid = _paid(db, since)
    calls, total, cached, plain, measured = 0, 0.0, 0.0, 0.0, 0
    for task, (inputs, counted, tokens) in misses.items():
        call = learned.get(task, pooled)
        bought, bought_tokens, nano = paid.get(task, (0, 0, 0))
        calls += inputs
        measured += bought
        total += nano
        if call is None or inputs == 0:
            continue
        if task not in learned:
            notes.append(f"Task {task} has no frontier call of its own; it is priced like task {call.task}.")
        if counted < inputs:
            notes.append(
                f"Task {task}: {inputs - counted} inputs were not counted by the tokenizer; they count 0 tokens."
            )
        total += call.nano(inputs - bought, tokens - bought_tokens)
        cached += _cached(call, prices, inputs, tokens, notes)
        plain += _plain(call, prices, inputs, tokens)
    models = [_with_misses(call, learned, pooled, misses) for call in learned.values()]
    if calls == 0 or pooled is None:
        return ApiOnly(calls, 0 if calls == 0 else None, None, None, None, measured, models, notes)
    better = cached / calls if cached < 0.99 * plain else None
    worse = plain / calls if better is not None else None
    return ApiOnly(calls, round(total), total / calls, better, worse, measured, models, notes)


def _paid(db: sqlite3.Connection, since: int) -> dict[str, tuple[int, int, int]]:
    """By task: misses that were really bought, their local tokens, what their calls cost."""
    rows = db.execute(
        f"""SELECT task, count(*), sum(tokens), sum(nano) FROM (SELECT i.task, i.tokens, sum(a.cost_nano) AS nano
        FROM attempts a JOIN inputs i ON i.request_id = a.request_id AND i.idx = a.idx WHERE a.state = 'settled'
        AND i.at_us >= ? AND {_of("i", MISS)} GROUP BY i.request_id, i.idx) GROUP BY task""",
        (since,),
    )
    return {task: (count, tokens, nano) for task, count, tokens, nano in rows}


def _with_misses(
    call: ApiCall, learned: dict[str, ApiCall], pooled: ApiCall | None, misses: dict[str, list[int]]
) -> ApiCall:
    """Those of its own task, and of the tasks without a call if it stands for them."""
    own = [sums for task, sums in misses.items() if learned.get(task, pooled) is call]
    return msgspec.structs.replace(call, inputs=sum(s[0] for s in own), tokens=sum(s[2] for s in own))


def _of(alias: str, condition: str) -> str:
    """The condition above on a table with an alias."""
    for column in ("error", "source", "coalesced"):
        condition = condition.replace(column, f"{alias}.{column}")
    return condition


def _learn(db: sqlite3.Connection, since: int, prices: PriceTable, notes: list[str]) -> dict[str, ApiCall]:
    """By task: the line through the calls to the model that was asked most."""
    found: dict[str, ApiCall] = {}
    for task, model, n, x, y, xx, xy, plain, read, w5, w1, out, nano, batched, hourly in db.execute(
        f"""SELECT a.task, {_NAME} AS name, count(*) AS n, sum(a.tokens), sum(t), sum(1.0 * a.tokens * a.tokens),
        sum(1.0 * a.tokens * t), sum(a.input), sum(a.cache_read), sum(a.cache_write_5m), sum(a.cache_write_1h),
        sum(a.output), sum(a.cost_nano), sum(a.batch), max(a.price_version LIKE '{BY_THE_HOUR}')
        FROM (SELECT *, input + cache_read + cache_write_5m + cache_write_1h AS t FROM attempts) a
        WHERE {_CALL} GROUP BY a.task, name ORDER BY n DESC, name""",
        {"since": since},
    ):
        if task in found:
            continue
        spread = n * xx - x * x
        slope = (n * xy - x * y) / spread if spread > 0 else 0.0
        learned = n >= ENOUGH_CALLS and slope > 0
        if not learned:
            slope = 1.0
            notes.append(
                f"Task {task}: {n} settled calls are too few (or too alike) to learn how many tokens {model} bills; "
                "one local token is taken as one of its tokens."
            )
        if batched:
            notes.append(
                f"Task {task}: {batched} of its {n} calls were made in batches, at the batch price; inputs that were "
                "not bought are priced as single calls."
            )
        prefix = max(0.0, (y - slope * x) / n)
        price = None if hourly else prices.price(model)
        if price is None:
            why = f"{model} is paid by the hour" if hourly else f"No list price is known for {model}"
            notes.append(f"{why}; its calls count with their mean cost as booked.")
            call = ApiCall(task, model, n, 0.0, 0.0, 1.0, 0.0, nano / n, learned, 0.0, bool(hourly))
        else:
            read_price, write_price = price.cache_read or price.input, price.cache_write_5m or price.input
            billed = (
                plain * price.input + read * read_price + w5 * write_price + w1 * (price.cache_write_1h or write_price)
            )
            rate = billed / y / 1e6 if y else price.input / 1e6
            share = read / y if y else 0.0
            call = ApiCall(task, model, n, prefix, slope, out / n, rate, price.output / 1e6, learned, share)
        found[task] = call
    return found


def _plain(call: ApiCall, prices: PriceTable, inputs: int, tokens: int) -> float:
    """The same inputs with every token at the plain input price."""
    price = None if call.by_the_hour else prices.price(call.model)
    if price is None:
        return call.nano(inputs, tokens)
    prompt = inputs * call.prefix_tokens + call.tokens_per_token * tokens
    return (prompt * price.input + inputs * call.output_tokens * price.output) / 1e6


def _cached(call: ApiCall, prices: PriceTable, inputs: int, tokens: int, notes: list[str]) -> float:
    """The same inputs with the prompt's prefix always read from the provider's cache, where that is to be had."""
    price = None if call.by_the_hour else prices.price(call.model)
    if price is None or price.cache_read is None:
        return call.nano(inputs, tokens)
    least = price.prompt_cache_min_tokens or 1024
    if call.prefix_tokens < least:
        notes.append(
            f"Task {call.task}: the prompt before the text ({call.prefix_tokens:.0f} tokens) is shorter than what "
            f"{call.model} caches ({least})."
        )
        return call.nano(inputs, tokens)
    text = call.tokens_per_token * tokens * price.input
    return (inputs * call.prefix_tokens * price.cache_read + text + inputs * call.output_tokens * price.output) / 1e6
