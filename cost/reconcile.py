# ruff: noqa: S608 - the parts of the queries are constants of this module
"""The ledger beside what providers say they have billed (`cost.usage_exports`), by day (UTC), model and reply.

A difference is explained if it is no larger than what the ledger itself does not know: calls that are uncertain or open
(billed or not), calls whose usage is an upper bound of ours (`estimated`), calls that a provider may count on another
day (batches; answered after midnight), and what the export has rounded.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from cost.prices import SIMULATED
from cost.schema import DAY_US, connect_readonly
from cost.usage_exports import Billed, same_name

Status = Literal["equal", "explained", "different"]
TOLERANCE = 0.005  # of what the provider says

_PROMPT = "coalesce(input + cache_read + cache_write_5m + cache_write_1h, 0)"
#: Rented by the hour ("$1.2/h") or simulated: no provider's token bill has these.
_BILLED = f"""state <> 'unbilled' AND price_version NOT LIKE '$%/h'
    AND model NOT LIKE '{SIMULATED}%' AND answered_model NOT LIKE '{SIMULATED}%'"""
_NAME = "coalesce(nullif(answered_model, ''), model)"
_CALLS = f"""
    SELECT at_us / {DAY_US}, coalesce(settled_us, at_us) / {DAY_US}, {_NAME}, state, coalesce(estimated, 0), batch,
    count(*), sum(cost_nano), sum({_PROMPT}), sum(coalesce(output, 0)), max({_PROMPT}), max(coalesce(output, 0))
    FROM attempts WHERE {_BILLED} AND at_us >= :first * {DAY_US} AND at_us < :end * {DAY_US} GROUP BY 1, 2, 3, 4, 5, 6
    UNION ALL
    SELECT hour / 24, (hour + CASE WHEN batch THEN 24 ELSE 1 END) / 24, {_NAME}, state, estimated, batch,
    sum(attempts), sum(cost_nano), sum({_PROMPT}), sum(output), sum({_PROMPT}) / sum(attempts),
    sum(output) / sum(attempts)
    FROM attempt_hours WHERE {_BILLED} AND hour >= :first * 24 AND hour < :end * 24 GROUP BY 1, 2, 3, 4, 5, 6"""


class Amount(msgspec.Struct):
    """What the ledger knows, what it may be less or more, and what the provider says (None: nothing)."""

    known: int = 0
    less: int = 0
    more: int = 0
    billed: int | None = None
    rounding: int = 0

    def status(self, tolerance: float) -> Status:
        if self.billed is None:
            return "equal"
        slack = self.rounding + tolerance * abs(self.billed)
        if abs(self.billed - self.known) <= slack:
            return "equal"
        return (
            "explained"
            if self.known - self.less - slack <= self.billed <= self.known + self.more + slack
            else "different"
        )


class Line(msgspec.Struct):
    """A day and a model. `why`: nano-USD of the ledger's that are not certain, by reason."""

    day: int  # since 1970-01-01, UTC
    model: str
    calls: int = 0
    prompt: Amount = msgspec.field(default_factory=Amount)
    output: Amount = msgspec.field(default_factory=Amount)
    cost_nano: Amount = msgspec.field(default_factory=Amount)
    why: dict[str, int] = msgspec.field(default_factory=dict)
    status: Status = "equal"


class Replies(msgspec.Struct):
    """By the provider's own names for its replies."""

    equal: int = 0
    different: list[str] = []  # other tokens or dollars
    not_in_ledger: list[str] = []
    not_in_export: list[str] = []  # settled, on a day of the export


class Reconciliation(msgspec.Struct):
    """`not_compared`: models of the ledger on those days, and their calls, that no export has."""

    lines: list[Line]
    replies: Replies | None
    not_compared: dict[str, int]

    @property
    def holds(self) -> bool:
        replies = self.replies
        wrong = replies is not None and (replies.different or replies.not_in_ledger or replies.not_in_export)
        return not wrong and all(line.status != "different" for line in self.lines)


def reconcile(ledgers: list[Path], billed: list[Billed], *, tolerance: float = TOLERANCE) -> Reconciliation:
    """Compare on the days from the exports' first to their last. Raises `LedgerError`."""
    db = connect_readonly(ledgers)
    try:
        return _reconciled(db, billed, tolerance)
    finally:
        db.close()


def _reconciled(db: sqlite3.Connection, billed: list[Billed], tolerance: float) -> Reconciliation:
    if not billed:
        return Reconciliation([], None, {})
    first, end = min(line.day for line in billed), max(line.day for line in billed) + 1
    lines: defaultdict[tuple[int, str], Line] = defaultdict(lambda: Line(0, ""))
    for said in billed:
        line = lines[said.day, said.model]
        for amount, value in ((line.prompt, said.prompt), (line.output, said.output), (line.cost_nano, said.cost_nano)):
            if value is not None:
                amount.billed = (amount.billed or 0) + value
        line.cost_nano.rounding += said.rounding_nano
    known = {model for _, model in lines}
    not_compared: defaultdict[str, int] = defaultdict(int)
    # A day more on both sides: calls that a provider may count on the next.
    calls = db.execute(_CALLS, {"first": first - 2, "end": end}).fetchall()
    most = _most(calls)
    for day, settled, name, state, estimated, batch, count, cost, prompt, output, *_ in calls:
        model = same_name(name)
        if model not in known:
            not_compared[model] += count if day >= first else 0
            continue
        amounts = (prompt, output, cost)
        if state != "settled":
            amounts = (count * most[model][0], count * most[model][1], cost)
        why = state if state != "settled" else "estimated" if estimated else "batch" if batch else "midnight"
        certain = state == "settled" and not estimated
        for on in range(max(day, first), min(max(day, settled), end - 1) + 1):
            line = lines[on, model]
            _add(line, amounts, certain and on == day, certain and settled == day and not batch, why)
            line.calls += count if on == day else 0
    for (day, model), line in lines.items():
        line.day, line.model = day, model
        found = [amount.status(tolerance) for amount in (line.prompt, line.output, line.cost_nano)]
        silent = all(amount.billed is None for amount in (line.prompt, line.output, line.cost_nano))
        if silent and line.cost_nano.known - line.cost_nano.less > 0:
            found = ["different"]  # a day that the export should have
        line.status = max(found, key=("equal", "explained", "different").index)
    ordered = [lines[key] for key in sorted(lines)]
    with_ids = {said.reply_id: said for said in billed if said.reply_id}
    replies = _replies(db, with_ids, first, end, known, tolerance) if with_ids else None
    return Reconciliation(ordered, replies, {model: count for model, count in not_compared.items() if count})


def _add(line: Line, amounts: tuple[int, int, int], known: bool, fixed: bool, why: str) -> None:
    """`known`: it counts on this day; unless `fixed` it may as well not."""
    for amount, value in zip((line.prompt, line.output, line.cost_nano), amounts, strict=True):
        if known:
            amount.known += value
        if known and not fixed:
            amount.less += value
        if not known:
            amount.more += value
    if not fixed:
        line.why[why] = line.why.get(why, 0) + amounts[2]


def _most(calls: Iterable[tuple[int | str, ...]]) -> dict[str, tuple[int, int]]:
    """By model: the most tokens that a call had (of hours: the mean). What an uncertain call had, nobody knows."""
    found: defaultdict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for call in calls:
        model, prompt, output = same_name(str(call[2])), int(call[10]), int(call[11])
        found[model] = (max(found[model][0], prompt), max(found[model][1], output))
    return found


def _replies(
    db: sqlite3.Connection, billed: dict[str, Billed], first: int, end: int, models: set[str], tolerance: float
) -> Replies:
    found, left = Replies(different=[], not_in_ledger=[], not_in_export=[]), dict(billed)
    for reply, day, settled, name, estimated, batch, cost, prompt, output in db.execute(
        f"""SELECT reply_id, at_us / {DAY_US}, coalesce(settled_us, at_us) / {DAY_US}, {_NAME}, coalesce(estimated, 0),
        batch, cost_nano, {_PROMPT}, coalesce(output, 0) FROM attempts
        WHERE {_BILLED} AND state = 'settled' AND reply_id <> '' AND at_us >= ? AND at_us < ?""",
        ((first - 30) * DAY_US, end * DAY_US),
    ):
        said = left.pop(reply, None)
        if said is None:
            if day >= first and settled < end and not estimated and same_name(name) in models and (not batch):
                found.not_in_export.append(reply)
            continue
        pairs = (
            Amount(prompt, billed=said.prompt),
            Amount(output, billed=said.output),
            Amount(cost, billed=said.cost_nano, rounding=said.rounding_nano),
        )
        if not estimated and any(pair.status(tolerance) == "different" for pair in pairs):
            found.different.append(reply)
        else:
            found.equal += 1
    found.not_in_ledger = list(left)
    return found
