"""What is stored under a key. Redis is not trusted: an entry is checked against its key and its task on every read."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Collection
from typing import Literal

import msgspec

Kind = Literal["local", "frontier"]


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One answer. Holds no text, unless `cache.store_preview` asks for one. Has no cycles: thousands are remembered,
    and searching them for garbage would stop the loop."""

    key: str  # the key it was written under
    kind: Kind
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


SEAL_SIZE = 8
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def encode(entry: Entry, secret: bytes) -> bytes:
    """A seal (keyed BLAKE2b of the rest), then the entry: whoever writes to Redis without the secret writes misses."""
    body = _encoder.encode(entry)
    return _seal(body, secret) + body


def decode(data: bytes, key: str, kind: Kind | None, labels: Collection[str] | None, secret: bytes) -> Entry:
    """`kind`, `labels`: what the asker expects, None if unknown (inspection). Raises `Corrupt`."""
    body = data[SEAL_SIZE:]
    if not hmac.compare_digest(data[:SEAL_SIZE], _seal(body, secret)):
        raise Corrupt("its seal is broken")
    try:
        entry = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(type(error).__name__) from None
    if entry.key != key or (kind is not None and entry.kind != kind):
        raise Corrupt("written under another key")
    if labels is not None and (entry.label not in labels or any(label not in labels for label, _ in entry.scores)):
        raise Corrupt("label outside the task's set")
    numbers = [probability for _, probability in entry.scores]
    if entry.confidence is not None:
        numbers.append(entry.confidence)
    if not all(math.isfinite(number) and 0.0 <= number <= 1.0 for number in numbers):
        raise Corrupt("not a probability")
    return entry


def _seal(body: bytes, secret: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=SEAL_SIZE, key=secret).digest()
