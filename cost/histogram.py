"""Counts of whole numbers in fixed logarithmic buckets, after HdrHistogram (http://hdrhistogram.org). Pure functions.

Numbers below 64 have a bucket each; above, each power of two is cut into 32. The middle of a bucket is at most 1/64
(1.6 %) off what was counted in it (`ERROR`). Histograms of any rows add up to the histogram of all of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import msgspec

ERROR = 1 / 64  # relative, of a quantile
DOUBT = 1_000_000  # confidences are counted as their doubt, in millionths

Histogram = Mapping[int, int]  # bucket -> how many


def bucket(value: int) -> int:
    """Of a number >= 0; whatever is below counts as 0 (a clock that was set back)."""
    value = max(0, value)
    shift = max(0, value.bit_length() - 6)
    return (shift << 5) + (value >> shift)


def middle(bucket: int) -> int:
    """What stands for the numbers in it."""
    if bucket < 64:
        return bucket
    shift = (bucket >> 5) - 1
    return ((bucket - (shift << 5)) << shift) + (1 << shift >> 1)


def added(*histograms: Histogram) -> Counter[int]:
    total = Counter[int]()
    for histogram in histograms:
        total.update(histogram)
    return total


def quantile(histogram: Histogram, q: float) -> int | None:
    """Nearest rank, 0 < q <= 1, off by `ERROR` at most; None if nothing was counted."""
    wanted = max(1, math.ceil(sum(histogram.values()) * q))
    for number in sorted(histogram):
        wanted -= histogram[number]
        if wanted <= 0:
            return middle(number)
    return None


def doubt(confidence: float) -> int:
    """1 - confidence in millionths: so what is near 1, where thresholds lie, is kept finest."""
    return round((1 - confidence) * DOUBT)


def confidence(doubt: int) -> float:
    return 1 - doubt / DOUBT


def packed(histogram: Histogram) -> bytes:
    """As it stands in the ledger."""
    return msgspec.msgpack.encode(dict(sorted(histogram.items())))


def unpacked(kept: bytes) -> Counter[int]:
    """Raises `msgspec.DecodeError` for what is none."""
    return Counter(msgspec.msgpack.decode(kept, type=dict[int, int]))
