"""The seam: what the pipeline sees of the cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from router.cache.entry import Entry, Kind


class Slot(NamedTuple):
    """Where one answer belongs: all parts of a key but the generation, which the cache knows."""

    tenant: str
    task: str
    text: bytes  # digest
    kind: Kind
    identity: str
    labels: Collection[str]


class Cache(Protocol):
    """Neither method raises."""

    async def lookup(self, slots: Sequence[Slot]) -> list[Entry | None]:
        """The entries of `slots`, in order; None for a miss or a failure."""
        ...

    def store(self, slot: Slot, entry: Entry) -> None:
        """Write in the background; `entry.key` is filled in."""
        ...


class NoCache:
    """`cache.url = "off"`."""

    async def lookup(self, slots: Sequence[Slot]) -> list[Entry | None]:
        return [None] * len(slots)

    def store(self, slot: Slot, entry: Entry) -> None:
        pass
