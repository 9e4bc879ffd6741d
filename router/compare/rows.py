"""The rows that all classifiers of a comparison are asked."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from router.cache.keys import normalize


class Row(NamedTuple):
    text: str  # normalized, as it is asked
    gold: str | None = None


def sample(rows: Iterable[Row], count: int, seed: int) -> list[Row]:
    """`count` different texts, the same ones for the same seed; a larger sample contains a smaller one."""

    def draw(row: Row) -> bytes:
        return blake2b(f"{seed}\0{row.text}".encode("utf-8", "replace"), digest_size=16).digest()

    unique: dict[str, Row] = {}
    for row in rows:
        if text := normalize(row.text):
            unique.setdefault(text, Row(text, row.gold))
    return sorted(unique.values(), key=draw)[:count]
