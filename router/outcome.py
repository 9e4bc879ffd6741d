"""What became of one input, inside the service: the wire's answer and the ledger's row are both made from it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec
from msgspec import UNSET

from cost.types import NANO_PER_USD, InputRow, Source
from local_model.types import Prediction, TaskInfo
from providers.types import FrontierAnswer, FrontierUnavailable
from router.cache.entry import Entry
from router.problems import ProblemError
from router.types import Answer, Degraded, Failed, LatencyMs

CacheTier = Literal["memory", "redis"]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """An answer (`label` is set) or an error (`error` and `detail` are). Times are in microseconds."""

    source: Source
    label: str | None = None
    confidence: float | None = None
    scores: tuple[tuple[str, float], ...] = ()
    model: str = ""
    answered_by: Literal["local", "frontier"] | None = None
    cache_tier: CacheTier | None = None
    degraded: Degraded | None = None
    error: str | None = None
    detail: str = ""
    truncated: bool = False
    coalesced: bool = False
    tokens: int = 0
    cost_nano: int = 0
    local_nano: int = 0
    saved_nano: int = 0
    cache_us: int = 0
    queue_us: int = 0
    local_us: int = 0
    frontier_us: int = 0

    @property
    def cacheable(self) -> bool:
        """Degraded answers and errors are never kept."""
        return self.source in ("local", "frontier") and self.degraded is None and self.error is None

    @property
    def depends_on_deadline(self) -> bool:
        """A caller with more time would have got something else: not to be shared with one."""
        return self.degraded == "deadline" or self.error == "deadline"


def failed(error: str, detail: str, *, tokens: int = 0) -> Outcome:
    return Outcome(source="error", error=error, detail=detail, tokens=tokens)


def from_entry(entry: Entry, tier: CacheTier, took_us: int) -> Outcome:
    """A hit costs nothing; it saves what a frontier was paid when it answered first."""
    return Outcome(
        source="cache",
        cache_tier=tier,
        answered_by=entry.kind,
        label=entry.label,
        confidence=entry.confidence,
        scores=entry.scores,
        model=entry.model,
        truncated=entry.truncated,
        tokens=entry.tokens,
        saved_nano=entry.cost_nano if entry.kind == "frontier" else 0,
        cache_us=took_us,
    )


def from_prediction(prediction: Prediction, task: TaskInfo, nano_per_us: float) -> Outcome:
    """The most probable label, and what the device time cost."""
    scores = tuple((task.labels[index], probability) for index, probability in prediction.top)
    cost = round(prediction.run_us * nano_per_us)
    return Outcome(
        source="local",
        label=scores[0][0],
        confidence=scores[0][1],
        scores=scores,
        model=task.model,
        truncated=prediction.truncated,
        tokens=prediction.tokens,
        cost_nano=cost,
        local_nano=cost,
        queue_us=prediction.queue_us,
        local_us=prediction.run_us,
    )


def from_frontier(answer: FrontierAnswer, local: Outcome) -> Outcome:
    """The frontier's answer, with the local model's part of time and cost."""
    return msgspec.structs.replace(
        local,
        source="frontier",
        label=answer.label,
        confidence=answer.confidence,
        scores=answer.scores,
        model=answer.model,
        truncated=False,
        error=None,
        detail="",
        cost_nano=local.local_nano + answer.cost_nano,
        frontier_us=answer.latency_us,
    )


def bought_elsewhere(entry: Entry, local: Outcome, waited_us: int) -> Outcome:
    """Another process paid for it while this one waited; the local model's part was this one's own."""
    return msgspec.structs.replace(
        local,
        source="frontier",
        label=entry.label,
        confidence=entry.confidence,
        scores=entry.scores,
        model=entry.model,
        truncated=False,
        coalesced=True,
        error=None,
        detail="",
        frontier_us=waited_us,
    )


def degraded(local: Outcome, why: FrontierUnavailable) -> Outcome:
    """The local label instead of the frontier's; where there is none either, the local error stays."""
    return msgspec.structs.replace(
        local,
        degraded=None if local.label is None else why.reason,
        cost_nano=local.local_nano + why.cost_nano,
        frontier_us=why.latency_us,
        detail=f"{local.detail}; and no frontier answer can be had: {why}" if local.label is None else str(why),
    )


def refuse_degraded(outcome: Outcome, reasons: Collection[Degraded]) -> Outcome:
    """An answer that is degraded for one of these reasons is an error."""
    if outcome.degraded not in reasons:
        return outcome
    detail = f"the frontier's answer was wanted ({outcome.degraded}): {outcome.detail}"
    return msgspec.structs.replace(outcome, source="error", label=None, error="degraded", detail=detail)


def retry_after_s(outcome: Outcome, now: float) -> float:
    """Seconds until it is worth asking again: at once, or when the budgets of the next UTC day begin."""
    return 86_400 - now % 86_400 if outcome.degraded == "budget" else 1.0


def shared(outcome: Outcome) -> Outcome:
    """For a caller who waited for another's computation: it was paid once."""
    return msgspec.structs.replace(outcome, coalesced=True, cost_nano=0, local_nano=0)


def to_entry(outcome: Outcome, at: float, preview: str | None) -> Entry:
    """`key` is filled in by the cache."""
    assert outcome.label is not None
    return Entry(
        key="",
        kind="frontier" if outcome.source == "frontier" else "local",
        at=at,
        label=outcome.label,
        confidence=outcome.confidence,
        scores=outcome.scores,
        model=outcome.model,
        cost_nano=outcome.cost_nano,
        tokens=outcome.tokens,
        truncated=outcome.truncated,
        preview=preview,
    )


def to_row(
    outcome: Outcome, *, request_id: str, index: int, at_us: int, tenant: str, task: str, text: bytes, total_us: int
) -> InputRow:
    return InputRow(
        request_id=request_id,
        index=index,
        at_us=at_us,
        tenant=tenant,
        task=task,
        source=outcome.source,
        model=outcome.model,
        label=outcome.label,
        confidence=outcome.confidence,
        answered_by=outcome.answered_by,
        cache_tier=outcome.cache_tier,
        degraded=outcome.degraded,
        error=outcome.error,
        truncated=outcome.truncated,
        coalesced=outcome.coalesced,
        tokens=outcome.tokens,
        text_digest=text,
        cost_nano=outcome.cost_nano,
        local_nano=outcome.local_nano,
        saved_nano=outcome.saved_nano,
        total_us=total_us,
        cache_us=outcome.cache_us,
        queue_us=outcome.queue_us,
        local_us=outcome.local_us,
        frontier_us=outcome.frontier_us,
    )


def to_wire(outcome: Outcome, *, total_us: int, top_k: int | None) -> Answer | Failed:
    if outcome.label is None:
        return Failed(ProblemError(outcome.error or "internal", outcome.detail).problem())
    assert outcome.source != "error"
    return Answer(
        label=outcome.label,
        confidence=None if outcome.confidence is None else round(outcome.confidence, 6),
        source=outcome.source,
        model=outcome.model,
        degraded=outcome.degraded,
        certified=False,
        truncated=outcome.truncated,
        coalesced=outcome.coalesced,
        cost_usd=outcome.cost_nano / NANO_PER_USD,
        latency_ms=LatencyMs(
            total=total_us / 1000,
            cache=outcome.cache_us / 1000 or None,
            queue=outcome.queue_us / 1000 or None,
            local=outcome.local_us / 1000 or None,
            frontier=outcome.frontier_us / 1000 or None,
        ),
        cache_tier=outcome.cache_tier or UNSET,
        answered_by=outcome.answered_by or UNSET,
        scores=UNSET if top_k is None else [(label, round(p, 6)) for label, p in outcome.scores[:top_k]],
    )
