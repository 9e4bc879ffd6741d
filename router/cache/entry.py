"""What is stored under a key. Redis is not trusted: an entry is checked against its key and its task on every read."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal

import msgspec

#: Labels kept of a local answer, best first: enough for `top_k` and for another threshold.
KEPT_SCORES = 10


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One answer. Holds no text, unless `cache.store_preview` asks for one."""

    key: str  # the key it was written under
    kind: Literal["local", "frontier"]
    at: float  # unix time
    label: str
    confidence: float | None
    scores: tuple[tuple[str, float], ...]
    model: str
    cost_nano: int  # what the answer cost when it was made
    tokens: int
    truncated: bool
    preview: str | None = None


class Corrupt(ValueError):
    """Bytes that are no entry of this key."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def encode(entry: Entry) -> bytes:
    return _encoder.encode(entry)


def decode(data: bytes, key: str, labels: Collection[str] | None) -> Entry:
    """`labels`: the task's, None if unknown (inspection). Raises `Corrupt`."""
    try:
        entry = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(type(error).__name__) from None
    if entry.key != key:
        raise Corrupt("written under another key")
    if labels is not None and (entry.label not in labels or any(label not in labels for label, _ in entry.scores)):
        raise Corrupt("label outside the task's set")
    numbers = [probability for _, probability in entry.scores]
    if entry.confidence is not None:
        numbers.append(entry.confidence)
    if not all(math.isfinite(number) and 0.0 <= number <= 1.0 for number in numbers):
        raise Corrupt("not a probability")
    return entry
