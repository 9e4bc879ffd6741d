"""How often the local model agreed with the frontier, by how sure it was: of texts that both have answered.

Such texts were answered locally for want of a frontier (degraded), and bought at another time. They are the doubtful
ones, not a random sample; audits will give one.
"""

from __future__ import annotations

import msgspec

from cost.comparison import wilson
from cost.whatif import FINE, Answers

BINS = 10


class Bin(msgspec.Struct, frozen=True):
    """Texts whose confidence lies from `low` to below `high`; `agreement` with its 95 % interval."""

    low: float
    high: float
    confidence: float  # their mean
    judged: int
    agreement: float
    agreement_low: float
    agreement_high: float


def bins(found: Answers) -> list[Bin]:
    """Those of ten equal bins that have a text."""
    lines = []
    for i in range(BINS):
        inside = [mark for mark in found.judged if i == min(BINS - 1, mark * BINS // FINE)]
        judged = sum(found.judged[mark] for mark in inside)
        if judged:
            agreed = sum(found.agreed.get(mark, 0) for mark in inside)
            mean = sum(mark * found.judged[mark] for mark in inside) / judged / FINE
            lines.append(Bin(i / BINS, (i + 1) / BINS, mean, judged, agreed / judged, *wilson(agreed, judged)))
    return lines
