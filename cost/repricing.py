# ruff: noqa: S608 - what is put into the queries are numbers and constants of this package
"""What the calls in the ledger would have cost by another price table, from the tokens stored with each.

One scan, integers only: each call is priced as `PriceTable.cost_nano` does it, rounded half up on its own sum, at the
row that held on its day (`prices.newest` has one for all days). So totals are those of pricing row by row, to the nano.

Of calls so old that only their hour is left (`cost.rollup`), the tokens of those alike are priced together and rounded
once; at prices of whole nano-dollars a token, as all shipped ones are, that is the same.

Some calls keep what is booked, whatever the table: those paid by the hour, those whose usage is a bound of ours
(estimated) or that were booked at one, and those not settled. Each total says how many.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime

import msgspec

from cost.api_only import BY_THE_HOUR
from cost.prices import Price, PriceTable, in_batch
from cost.rollup import HOUR_US
from cost.schema import DAY_US

#: Calls that no table prices: `price_version` tells those by the hour ("$1.2/h") and those booked at their bound.
_KEPT = f"""(a.state <> 'settled' OR coalesce(a.estimated, 0) <> 0 OR coalesce(a.input + a.output, 0) = 0
    OR a.price_version LIKE '{BY_THE_HOUR}' OR a.price_version LIKE '%, bound')"""
_BUCKETS = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output")
_PROMPT = "a.input + coalesce(a.cache_read, 0) + coalesce(a.cache_write_5m, 0) + coalesce(a.cache_write_1h, 0)"
_ALWAYS = 2**62
_COLUMNS = f"task, model, answered_model, price_version, batch, state, estimated, cost_nano, {', '.join(_BUCKETS)}"
#: Calls, each by itself or with those of its hour that are alike in all that is not summed up.
_CALLS = f"""(SELECT at_us, 1 AS calls, {_COLUMNS} FROM attempts WHERE at_us >= :since
    UNION ALL SELECT hour * {HOUR_US}, attempts, {_COLUMNS} FROM attempt_hours WHERE hour * {HOUR_US} >= :since)"""


class Repriced(msgspec.Struct, frozen=True):
    """The calls of one day (UTC), task, model (as it is priced) and kind. Money is nano-USD."""

    day: date
    task: str
    model: str
    batch: bool
    calls: int
    booked_nano: int
    nano: int | None  # by the table, with what the kept calls are booked at; None: the table lacks a price it needs
    kept: int  # calls that keep what is booked
    kept_nano: int
    unpriced: int  # calls that the table has no price for


def repriced(db: sqlite3.Connection, prices: PriceTable, since: int) -> list[Repriced]:
    """The calls made from `since` on (unix time, microseconds), in the order of day, task, model.

    `db` is `schema.connect_readonly`'s view; the reservation's time says which day's price holds.
    """
    names = _names(db, since, prices)
    if not names:
        return []
    rates = [row for number, (name, batch) in enumerate(names.values()) for row in _rates(prices, number, name, batch)]
    rates = rates or [(None,) * 9]  # there is no empty VALUES
    keys = ", ".join(
        f"(:t{3 * number}, :t{3 * number + 1}, :t{3 * number + 2}, {int(batch)}, {number})"
        for number, (_, batch) in enumerate(names.values())
    )
    texts = [text for key in names for text in key[:3]]
    table = ", ".join(f"({', '.join('NULL' if value is None else str(value) for value in row)})" for row in rates)
    sums = " + ".join(f"CASE coalesce(a.{b}, 0) WHEN 0 THEN 0 ELSE a.{b} * r.{b} END" for b in _BUCKETS)
    rows = db.execute(
        f"""WITH keys (answered, model, version, batch, key) AS MATERIALIZED (VALUES {keys}),
        rates (key, first_us, until_us, {", ".join(_BUCKETS)}, most) AS MATERIALIZED (VALUES {table})
        SELECT day, task, key, sum(calls), sum(cost_nano), sum(kept * calls), sum(kept * cost_nano),
        sum(calls * (NOT kept AND nano IS NULL)), sum(CASE WHEN kept THEN 0 ELSE nano END)
        FROM (SELECT a.at_us / {DAY_US} AS day, a.task, k.key, a.calls, a.cost_nano, {_KEPT} AS kept,
            CASE WHEN r.most * a.calls < {_PROMPT} THEN NULL ELSE ({sums} + 500000) / 1000000 END AS nano
            FROM {_CALLS} a
            JOIN keys k ON k.answered = a.answered_model AND k.model = a.model AND k.version = a.price_version
                AND k.batch = a.batch
            LEFT JOIN rates r ON r.key = k.key AND a.at_us >= r.first_us AND a.at_us < r.until_us)
        GROUP BY day, task, key""",
        {"since": since, **{f"t{number}": text for number, text in enumerate(texts)}},
    )
    called = list(names.values())
    return _merged(
        Repriced(
            datetime.fromtimestamp(day * 86_400, UTC).date(),
            task,
            called[key][0],
            called[key][1],
            calls,
            booked,
            None if unpriced else kept_nano + (nano or 0),
            kept,
            kept_nano,
            unpriced,
        )
        for day, task, key, calls, booked, kept, kept_nano, unpriced, nano in rows
    )


def told(found: Sequence[Repriced]) -> list[str]:
    """What people must know beside the totals."""
    kept, nano = sum(row.kept for row in found), sum(row.kept_nano for row in found)
    unpriced = sum(row.unpriced for row in found)
    notes = []
    if kept:
        notes.append(
            f"{kept} of {sum(row.calls for row in found)} calls keep what is booked (${nano / 1e9:.6f}): they are paid "
            "by the hour, have no usage that could be priced, or are not settled."
        )
    if unpriced:
        models = ", ".join(sorted({row.model for row in found if row.unpriced}))
        notes.append(f"{unpriced} calls have no price in that table ({models}); what they would cost is not known.")
    return notes


def priced_as(answered: str, asked: str, price_version: str, prices: PriceTable) -> str:
    """The name whose price counts: what stood in for the model when it was booked, else the model that answered, or
    where the table lacks it the one that was asked for."""
    stand_in = price_version.partition(" as ")[2]
    if stand_in:
        return stand_in.removesuffix(", bound")
    return answered if answered and (prices.name(answered) or not prices.name(asked)) else asked


def _names(db: sqlite3.Connection, since: int, prices: PriceTable) -> dict[tuple[str, str, str, int], tuple[str, bool]]:
    """What a call says of itself (answered, asked, price version, batch) -> the name that prices it, and its kind."""
    rows = db.execute(f"SELECT DISTINCT answered_model, model, price_version, batch FROM {_CALLS}", {"since": since})
    return {
        (answered, asked, version, batch): (priced_as(answered, asked, version, prices), bool(batch))
        for answered, asked, version, batch in rows
    }


def _rates(prices: PriceTable, key: int, name: str, batch: bool) -> Iterator[tuple[int | None, ...]]:
    """(key, first and last microsecond, the buckets' prices, most tokens of a prompt) of each row of a model."""
    known = prices.name(name)
    rows = [] if known is None else prices.rows(known)
    starts = [0 if row.since is None else _begins(row.since) for row in rows]
    for row, first, until in zip(rows, starts, [*starts[1:], _ALWAYS], strict=False):
        price: Price | None = in_batch(row) if batch else row
        if price is not None:
            yield (key, first, until, *(getattr(price, bucket) for bucket in _BUCKETS), price.max_prompt_tokens)


def _begins(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000


def _merged(rows: Iterable[Repriced]) -> list[Repriced]:
    """One for each day, task, model and kind: calls booked by several tables stand apart until here."""
    found: dict[tuple[date, str, str, bool], Repriced] = {}
    for row in rows:
        key = (row.day, row.task, row.model, row.batch)
        other = found.get(key)
        found[key] = row if other is None else _sum(other, row)
    return [found[key] for key in sorted(found)]


def _sum(one: Repriced, other: Repriced) -> Repriced:
    return msgspec.structs.replace(
        one,
        calls=one.calls + other.calls,
        booked_nano=one.booked_nano + other.booked_nano,
        nano=None if one.nano is None or other.nano is None else one.nano + other.nano,
        kept=one.kept + other.kept,
        kept_nano=one.kept_nano + other.kept_nano,
        unpriced=one.unpriced + other.unpriced,
    )
