# ruff: noqa: S608 - what is put into the queries are names and constants of this module
"""What of old rows is kept by the hour: their counts, tokens and money as they were, their latencies and confidences as
histograms. The tables, how rows become theirs, and what they sum to.

A row of the tables stands for all inputs (or attempts) of an hour that are alike in the key's columns. More of them may
be added to it at any time: everything in it but the key is a sum.
"""

from __future__ import annotations

import sqlite3
from collections import Counter

import msgspec

from cost.histogram import added, bucket, doubt, packed, unpacked

HOUR_US = 3_600_000_000

#: Column -> the expression on a raw row. The key: text is '' where a row has none, so that equal keys are equal.
INPUT_KEY = {
    "hour": f"at_us / {HOUR_US}",  # since 1970-01-01, UTC
    "task": "task",
    "tenant": "tenant",
    "source": "source",
    "model": "model",
    "answered_by": "coalesce(answered_by, '')",
    "degraded": "coalesce(degraded, '')",
    "error": "coalesce(error, '')",
    "coalesced": "coalesced",
}
ATTEMPT_KEY = {
    "hour": f"at_us / {HOUR_US}",
    "task": "task",
    "tenant": "tenant",
    "provider": "provider",
    "model": "model",
    "answered_model": "answered_model",
    "state": "state",
    "batch": "batch",
    "estimated": "coalesce(estimated, 0)",
    "price_version": "price_version",
    "error": "coalesce(error, '')",
    # Both sides' tokens are known: what the price of traffic is learned from.
    "counted": "tokens > 0 AND coalesce(input + output, 0) > 0",
}
_BOUGHT = """EXISTS (SELECT 1 FROM attempts a
    WHERE a.request_id = inputs.request_id AND a.idx = inputs.idx AND a.state = 'settled')"""
#: The sums.
INPUT_SUMS = {
    "inputs": "1",
    "requests": "idx = 0",
    "truncated": "truncated",
    "memory_hits": "coalesce(cache_tier = 'memory', 0)",
    "looked_up": "cache_us > 0",
    "counted": "tokens > 0",
    "bought": _BOUGHT,  # inputs with a settled call
    "bought_tokens": f"tokens * {_BOUGHT}",
    **{name: name for name in ("tokens", "cost_nano", "local_nano", "saved_nano")},
    **{name: name for name in ("total_us", "cache_us", "queue_us", "local_us", "frontier_us")},
}
_PROMPT = "(input + cache_read + cache_write_5m + cache_write_1h)"
ATTEMPT_SUMS = {
    "attempts": "1",
    "cost_nano": "cost_nano",
    "bound_nano": "max(cost_nano, estimate_nano)",  # what they could have cost
    "unpriced": "state = 'settled' AND cost_nano = 0 AND coalesce(input + output, 0) > 0",
    "tokens": "tokens",
    **{
        name: f"coalesce({name}, 0)"
        for name in ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning")
    },
    "tokens_tokens": "tokens * tokens",  # for a line through tokens and billed tokens
    "tokens_billed": f"coalesce(tokens * {_PROMPT}, 0)",
    "latency_us": "latency_us",
}
#: The histograms: a time counts where its stage was entered.
INPUT_HISTOGRAMS = {
    "total_h": "total_us",
    **{f"{stage}_h": f"nullif({stage}_us, 0)" for stage in ("cache", "queue", "local", "frontier")},
    "doubt_h": "confidence",  # see `cost.histogram.doubt`
}
ATTEMPT_HISTOGRAMS = {"latency_h": "nullif(latency_us, 0)"}

TABLES = {
    "inputs": ("input_hours", INPUT_KEY, INPUT_SUMS, INPUT_HISTOGRAMS),
    "attempts": ("attempt_hours", ATTEMPT_KEY, ATTEMPT_SUMS, ATTEMPT_HISTOGRAMS),
}
_NUMBERS = {"hour", "coalesced", "batch", "estimated", "counted"}


def table(raw: str) -> str:
    """The statement that makes the table of `inputs` or `attempts`."""
    name, key, sums, histograms = TABLES[raw]
    columns = [f"{column} {'INTEGER' if column in _NUMBERS else 'TEXT'} NOT NULL" for column in key]
    columns += [f"{column} INTEGER NOT NULL" for column in sums]
    columns += [f"{column} BLOB NOT NULL" for column in histograms]
    return f"CREATE TABLE {name} ({', '.join(columns)}, PRIMARY KEY ({', '.join(key)})) STRICT, WITHOUT ROWID"


def adding(raw: str, which: str) -> str:
    """The statement that adds the rows of `inputs` or `attempts` for which `which` holds. Needs `register`."""
    name, key, sums, histograms = TABLES[raw]
    found = [*key.values(), *(f"sum({expression})" for expression in sums.values())]
    found += [f"{'doubts' if column == 'doubt_h' else 'histogram'}({value})" for column, value in histograms.items()]
    more = [f"{column} = {name}.{column} + excluded.{column}" for column in sums]
    more += [f"{column} = histograms({name}.{column}, excluded.{column})" for column in histograms]
    numbers = ", ".join(str(n + 1) for n in range(len(key)))
    return (
        f"INSERT INTO {name} ({', '.join([*key, *sums, *histograms])}) SELECT {', '.join(found)} FROM {raw}"
        f" WHERE {which} GROUP BY {numbers} ON CONFLICT DO UPDATE SET {', '.join(more)}"
    )


def register(db: sqlite3.Connection) -> None:
    """What SQL needs to know of histograms."""
    db.create_aggregate("histogram", 1, _Counting)  # type: ignore[arg-type] # typeshed wants an int from finalize
    db.create_aggregate("doubts", 1, _Doubting)  # type: ignore[arg-type]
    db.create_aggregate("histogram_sum", 1, _Adding)  # type: ignore[arg-type]
    db.create_function("histograms", 2, _together, deterministic=True)


class _Counting:
    def __init__(self) -> None:
        self.counts = Counter[int]()

    def step(self, value: int | None) -> None:
        if value is not None:
            self.counts[bucket(value)] += 1

    def finalize(self) -> bytes:
        return packed(self.counts)


class _Doubting(_Counting):
    def step(self, value: float | None) -> None:
        super().step(None if value is None else doubt(value))


class _Adding(_Counting):
    def step(self, value: bytes | None) -> None:  # type: ignore[override] # of histograms
        if value is not None:
            self.counts.update(unpacked(value))


def _together(one: bytes, other: bytes) -> bytes:
    return packed(added(unpacked(one), unpacked(other)))


class SourceTotal(msgspec.Struct, frozen=True):
    """Of one source. Histograms in microseconds, by stage ("total", "cache", ...); of doubt in millionths."""

    inputs: int
    tokens: int
    cost_nano: int
    local_nano: int
    saved_nano: int
    latency: dict[str, Counter[int]]
    doubt: Counter[int]


class GroupTotal(msgspec.Struct, frozen=True):
    """Of a task or a tenant."""

    inputs: int
    cache: int
    local: int
    frontier: int
    errors: int
    degraded: int
    cost_nano: int


class SpendTotal(msgspec.Struct, frozen=True):
    """Of all attempts, as `cost.tally.Spend` tells them."""

    attempts: int
    settled_nano: int
    estimated_nano: int
    uncertain_nano: int
    batch_nano: int
    simulated_nano: int
    unpriced: int


class Totals(msgspec.Struct, frozen=True):
    """What was rolled up: add it to what the raw rows sum to; nothing is in both."""

    from_us: int | None  # the start of the first hour; None: nothing was rolled up
    until_us: int | None  # the end of the last
    inputs: int
    requests: int
    sources: dict[str, SourceTotal]
    degraded: dict[str, int]
    errors: dict[str, int]
    tasks: dict[str, GroupTotal]
    tenants: dict[str, GroupTotal]
    spend: SpendTotal


def rolled_up(db: sqlite3.Connection, since_us: int = 0) -> tuple[int, int]:
    """How many inputs since then are kept by the hour only, and until when (unix microseconds; 0: none)."""
    inputs, last = db.execute(
        "SELECT coalesce(sum(inputs), 0), max(hour) FROM input_hours WHERE hour >= ?", (since_us // HOUR_US,)
    ).fetchone()
    return inputs, 0 if last is None else (last + 1) * HOUR_US


def totals(db: sqlite3.Connection, since_us: int = 0) -> Totals:
    """What the hour tables sum to, from the hour that holds `since_us` on. `db`: `schema.connect_readonly`'s view."""
    register(db)
    since = since_us // HOUR_US
    first, last, inputs, requests = db.execute(
        "SELECT min(hour), max(hour), coalesce(sum(inputs), 0), coalesce(sum(requests), 0) FROM input_hours"
        " WHERE hour >= ?",
        (since,),
    ).fetchone()
    sources = {}
    for source, n, tokens, cost, local, saved, *kept in db.execute(
        f"""SELECT source, sum(inputs), sum(tokens), sum(cost_nano), sum(local_nano), sum(saved_nano),
        {", ".join(f"histogram_sum({name})" for name in INPUT_HISTOGRAMS)}
        FROM input_hours WHERE hour >= ? GROUP BY 1""",
        (since,),
    ):
        found = {name.removesuffix("_h"): unpacked(value) for name, value in zip(INPUT_HISTOGRAMS, kept, strict=True)}
        sources[source] = SourceTotal(n, tokens, cost, local, saved, doubt=found.pop("doubt"), latency=found)
    return Totals(
        from_us=None if first is None else first * HOUR_US,
        until_us=None if last is None else (last + 1) * HOUR_US,
        inputs=inputs,
        requests=requests,
        sources=sources,
        degraded=_counts(db, since, "degraded"),
        errors=_counts(db, since, "error"),
        tasks=_groups(db, since, "task"),
        tenants=_groups(db, since, "tenant"),
        spend=_spend(db, since),
    )


def _counts(db: sqlite3.Connection, since: int, column: str) -> dict[str, int]:
    query = f"SELECT {column}, sum(inputs) FROM input_hours WHERE hour >= ? AND {column} <> '' GROUP BY 1"
    return dict(db.execute(query, (since,)).fetchall())


def _groups(db: sqlite3.Connection, since: int, by: str) -> dict[str, GroupTotal]:
    rows = db.execute(
        f"""SELECT {by}, sum(inputs), sum(inputs * (source = 'cache')), sum(inputs * (source = 'local')),
        sum(inputs * (source = 'frontier')), sum(inputs * (error <> '')), sum(inputs * (degraded <> '')), sum(cost_nano)
        FROM input_hours WHERE hour >= ? GROUP BY 1""",
        (since,),
    )
    return {name: GroupTotal(*sums) for name, *sums in rows}


def _spend(db: sqlite3.Connection, since: int) -> SpendTotal:
    row = db.execute(
        """SELECT coalesce(sum(attempts), 0), coalesce(sum(cost_nano) FILTER (WHERE state = 'settled'), 0),
        coalesce(sum(cost_nano) FILTER (WHERE state = 'settled' AND estimated = 1), 0),
        coalesce(sum(cost_nano) FILTER (WHERE state = 'uncertain'), 0),
        coalesce(sum(cost_nano) FILTER (WHERE batch = 1), 0),
        coalesce(sum(cost_nano) FILTER (WHERE answered_model LIKE 'simulated/%' OR model LIKE 'simulated/%'), 0),
        coalesce(sum(unpriced) FILTER (WHERE price_version NOT LIKE '$%/h'), 0)
        FROM attempt_hours WHERE hour >= ?""",
        (since,),
    ).fetchone()
    return SpendTotal(*row)
