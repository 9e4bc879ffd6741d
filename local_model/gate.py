"""The quality gate: what an engine's precision costs in answers, and which engine is fast without costing too much.

An engine is held against fp32: the same texts, each engine with the head that was fitted on it. Pure functions; the
figures are kept with what was built (a head folder's manifest, the int8 graph's manifest).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from local_model.engines import Kind

#: Where accept and escalate part when decisions are compared; a task's own threshold is not known when it is measured.
THRESHOLD = 0.8
#: Texts whose label differs from fp32's. The shipped int8 head has 1.5 % on its held-out rows; torch's own
#: quantize_dynamic had 4.7 % on the same task.
DISAGREE = 0.03
#: Decisions at the threshold that differ. The shipped int8 head has 2.5 %.
FLIPPED = 0.05
#: Accuracy given up, a share. The shipped int8 head gives up 0.06 points held out, 0.32 on test rows.
LOST = 0.005
#: Calibration error added. A temperature fitted on the engine itself adds about nothing.
MISCALIBRATED = 0.02
#: A limit is exceeded if it is by so many standard deviations of what the number of texts lets one measure.
SIGMAS = 3.0


class Quality(msgspec.Struct, frozen=True, omit_defaults=True):
    """One engine's answers against fp32's. Shares are of `texts`; what needs true labels is None without them."""

    texts: int
    label_agreement: float
    largest_shift: float  # max |p_max - p_max of fp32|: told, not judged, since it grows with the number of texts
    accepts_flipped: float  # accept or escalate at the threshold, each engine with its own head
    calibration_error: float | None = None
    calibration_lost: float | None = None  # against fp32
    accuracy: float | None = None
    accuracy_lost: float | None = None  # points against fp32
    texts_per_second: float | None = None  # when it was built, on the machine that built it


class Choice(NamedTuple):
    kind: Kind
    why: str  # a sentence for /v1/status
    failed: dict[Kind, str]  # candidates that fail, with the figures


def measure(
    mine: NDArray[np.floating[Any]],
    fp32: NDArray[np.floating[Any]],
    gold: NDArray[np.integer[Any]] | None = None,
    threshold: float = THRESHOLD,
    texts_per_second: float | None = None,
) -> Quality:
    """`mine`, `fp32`: (n, labels) probabilities, n > 0, labels in the same order; `gold`: (n,) indices.

    A row of `mine` that is not finite counts as another label and a flipped decision.
    """
    finite = np.isfinite(mine).all(axis=1)
    mine = np.where(finite[:, None], mine, 0.0)
    top, top32 = mine.max(axis=1), fp32.max(axis=1)
    label = np.where(finite, mine.argmax(axis=1), -1)
    label32 = fp32.argmax(axis=1)
    known: dict[str, float] = {}
    if gold is not None:
        from local_model.calibration import calibration_error  # scipy: not while a service starts

        right, right32 = label == gold, label32 == gold
        known["accuracy"] = float(right.mean())
        known["accuracy_lost"] = float(right32.mean() - right.mean()) * 100
        known["calibration_error"] = calibration_error(top, right)
        known["calibration_lost"] = known["calibration_error"] - calibration_error(top32, right32)
    return Quality(
        texts=len(mine),
        label_agreement=float((label == label32).mean()),
        largest_shift=float(np.abs(top - top32).max()),
        accepts_flipped=float((((top >= threshold) != (top32 >= threshold)) | ~finite).mean()),
        texts_per_second=texts_per_second,
        **known,
    )


def verdict(quality: Quality) -> list[str]:
    """Why it fails; empty: it passes. Few texts prove little, so they are judged more mildly."""
    n = quality.texts
    disagree = 1 - quality.label_agreement
    reasons = []
    if disagree > (limit := DISAGREE + _noise(DISAGREE, n)):
        reasons.append(f"{disagree:.1%} of {n:,} texts get another label than on fp32 (limit {limit:.1%})")
    if quality.accepts_flipped > (limit := FLIPPED + _noise(FLIPPED, n)):
        reasons.append(
            f"{quality.accepts_flipped:.1%} of {n:,} decisions to accept or escalate differ from fp32's "
            f"(limit {limit:.1%})"
        )
    # only the texts with another label can be lost or won, each by chance: sqrt(their number) of them
    if (lost := quality.accuracy_lost) is not None and lost > (limit := 100 * (LOST + _noise(disagree, n))):
        reasons.append(f"{lost:.2f} points of accuracy are lost against fp32 (limit {limit:.2f})")
    if (lost := quality.calibration_lost) is not None and lost > (limit := MISCALIBRATED + _noise(0.05, n)):
        reasons.append(f"the calibration error grows by {lost:.3f} against fp32 (limit {limit:.3f})")
    return reasons


def _noise(share: float, texts: int) -> float:
    """How far above `share` a sample of so many texts may lie by chance."""
    return SIGMAS * math.sqrt(max(share * (1 - share), 0.0) / texts)


def choose(order: Sequence[Kind], known: Mapping[Kind, Sequence[Quality]]) -> Choice:
    """The fastest candidate that passes, for every head on the encoder.

    `order`: candidates, the fastest first as a rule; where every one that passes was timed, its own speed counts.
    `known`: a candidate's figures, one per head; none: nobody measured, it may serve. fp32 is what others are held
    against, so it never fails. If all fail, the last of `order` is taken.
    """
    failed = {
        kind: f"{kind} fails the quality gate: {'; '.join(reasons)}"
        for kind in order
        if (reasons := [reason for quality in known.get(kind, ()) for reason in verdict(quality)])
    }
    passing = [kind for kind in order if kind not in failed]
    if not passing:
        return Choice(order[-1], "no engine passes the quality gate; " + "; ".join(failed.values()), failed)
    speeds = {kind: min((q.texts_per_second or 0.0 for q in known.get(kind, ())), default=0.0) for kind in passing}
    best = max(passing, key=speeds.__getitem__) if all(speeds.values()) else passing[0]
    return Choice(best, "; ".join([_praise(best, len(order) > 1, known.get(best, ())), *failed.values()]), failed)


def _praise(kind: Kind, fastest: bool, known: Sequence[Quality]) -> str:
    if kind == "torch-fp32":
        return kind
    if not known:
        return f"{kind}, never held against fp32"
    worst = min(known, key=lambda quality: quality.label_agreement)
    passes = "first of those that pass" if fastest else "which passes"
    return (
        f"{kind}, {passes} the quality gate ({worst.label_agreement:.1%} of "
        f"{worst.texts:,} texts get fp32's label, {worst.accepts_flipped:.1%} of the accepts at {THRESHOLD} differ)"
    )
