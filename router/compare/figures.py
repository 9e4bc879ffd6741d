"""From everybody's replies to the same texts to the figures of a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from cost.comparison import Comparison, Confusion, Contender, Paired, judged, most_accurate, percentile, wilson
from cost.prices import SIMULATED
from cost.types import Outcome
from router.compare.askers import REFUSED, REPLIES, Asker, Reply
from router.compare.rows import Row
from router.config import Config

CONFUSIONS = 3
Asked = Mapping[str, tuple[Asker, Sequence[Reply | None]]]  # by contender; None: the row was not asked
Ending = Literal["answered", "refused", "unusable", "failed"]


def compare(
    task: str,
    rows: Sequence[Row],
    asked: Asked,
    *,
    config: Config,
    available: int,
    seed: int,
    within: float,
    price_version: str,
    at: float,
) -> Comparison:
    """The figures of `cost.comparison`. `at`: unix time; `within`: share of rows."""
    contenders = [_contender(asker, rows, asked, config) for asker, _ in asked.values()]
    if best := most_accurate(contenders):
        contenders = [
            msgspec.structs.replace(each, against_best=_paired(rows, asked[each.name][1], asked[best.name][1]))
            if each is not best
            else each
            for each in contenders
        ]
    return judged(
        Comparison(
            task=task,
            at=at,
            rows=len(rows),
            available=available,
            seed=seed,
            gold=any(row.gold is not None for row in rows),
            within=within,
            complete=all(reply is not None for _, replies in asked.values() for reply in replies),
            price_version=price_version,
            contenders=tuple(contenders),
        )
    )


def is_simulated(replies: Iterable[Reply | None]) -> bool:
    return any(call.model.startswith(SIMULATED) for reply in replies if reply for call in reply.calls)


def _ending(reply: Reply) -> Ending:
    if reply.label is not None:
        return "answered"
    if reply.error == REFUSED:
        return "refused"
    return "unusable" if reply.error in REPLIES else "failed"


def _verdict(row: Row, reply: Reply | None) -> bool | None:
    """Right or wrong; None: there is no gold, or no reply came. A reply that is no answer is wrong."""
    if row.gold is None or reply is None or _ending(reply) == "failed":
        return None
    return reply.label == row.gold


def _paired(rows: Sequence[Row], ours: Sequence[Reply | None], best: Sequence[Reply | None]) -> Paired | None:
    pairs = Counter(
        (_verdict(row, one), _verdict(row, other)) for row, one, other in zip(rows, ours, best, strict=True)
    )
    both = sum(count for (one, other), count in pairs.items() if one is not None and other is not None)
    return Paired.of(pairs[True, False], pairs[False, True], both) if both else None


def _contender(asker: Asker, rows: Sequence[Row], asked: Asked, config: Config) -> Contender:
    replies = asked[asker.name][1]
    made = [reply for reply in replies if reply is not None]
    endings = Counter(_ending(reply) for reply in made)
    calls = [call for reply in made for call in reply.calls]
    used = [call.usage for call in calls if call.usage is not None]
    errors = [call.error for call in calls if call.error]
    errors += [reply.error for reply in made if reply.error and not reply.calls]
    verdicts = [_verdict(row, reply) for row, reply in zip(rows, replies, strict=True)]
    right, known = verdicts.count(True), len(verdicts) - verdicts.count(None)
    low, high = wilson(right, known) if known else (None, None)
    replied = [reply for reply in made if _ending(reply) != "failed"]
    took = sorted(reply.latency_us for reply in made if reply.label is not None)
    shares = {name: _agree(replies, others) for name, (_, others) in asked.items() if name != asker.name}
    provider = config.providers.get(asker.name)
    return Contender(
        name=asker.name,
        model=asker.model,
        answered_by=tuple(sorted({call.model for call in calls if call.model and call.error is None})),
        simulated=is_simulated(made),
        asked=len(made),
        answered=endings["answered"],
        refused=endings["refused"],
        unusable=endings["unusable"],
        failed=endings["failed"],
        errors=dict(Counter(errors)),
        stopped=asker.stopped,
        judged=known,
        right=right,
        accuracy=right / known if known else None,
        accuracy_low=low,
        accuracy_high=high,
        agreement={name: share for name, share in shares.items() if share is not None},
        confusions=_confusions(rows, replies),
        spent=sum(call.cost_nano for call in calls),
        nano_per_million=round(sum(reply.cost for reply in replied) * 1_000_000 / len(replied)) if replied else None,
        estimated=sum(map(_is_bound, calls)),
        uncertain=sum(call.state == "uncertain" for call in calls),
        hourly=provider is not None and provider.usd_per_hour is not None,
        input_tokens=sum(u.input + u.cache_read + u.cache_write_5m + u.cache_write_1h for u in used),
        cached_tokens=sum(u.cache_read for u in used),
        output_tokens=sum(u.output for u in used),
        p50_us=percentile(took, 50),
        p95_us=percentile(took, 95),
    )


def _is_bound(call: Outcome) -> bool:
    """Settled, but at an upper bound: no usable usage came back, or no price for it is known. Time needs neither."""
    estimated = call.usage is not None and call.usage.estimated
    by_time = call.price_version.startswith("$")
    return call.state == "settled" and not by_time and (estimated or call.price_version.endswith("bound"))


def _agree(one: Sequence[Reply | None], other: Sequence[Reply | None]) -> float | None:
    both = [
        (ours.label, theirs.label)
        for ours, theirs in zip(one, other, strict=True)
        if ours is not None and theirs is not None and ours.label is not None and theirs.label is not None
    ]
    return sum(ours == theirs for ours, theirs in both) / len(both) if both else None


def _confusions(rows: Sequence[Row], replies: Sequence[Reply | None]) -> tuple[Confusion, ...]:
    """The most frequent; one that occurred once says nothing."""
    wrong = Counter(
        (row.gold, reply.label)
        for row, reply in zip(rows, replies, strict=True)
        if row.gold is not None and reply is not None and reply.label not in (None, row.gold)
    )
    found = [(gold, said, count) for (gold, said), count in wrong.most_common(CONFUSIONS) if count > 1]
    return tuple(Confusion(gold, said, count) for gold, said, count in found if gold and said)
