"""The seam: what the pipeline sees of the cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
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
    """No method raises."""

    def recall(self, slots: Sequence[Slot]) -> list[Entry | None]:
        """What this process remembers: no waiting, microseconds."""
        ...

    async def lookup(self, slots: Sequence[Slot]) -> list[Entry | None]:
        """The entries of `slots`, in order; None for a miss or a failure."""
        ...

    def generation(self, task: str) -> str:
        """What every purge changes, as far as is known here; "" where it isn't."""
        ...

    def store(self, slot: Slot, entry: Entry, *, since: str = "") -> None:
        """Remember at once, write in the background; `entry.key` is filled in. Not kept if the task was purged after
        `since`: its `generation` when the answer was begun ("": not known then)."""
        ...

    def sole(self, slot: Slot, *, until: float) -> AbstractAsyncContextManager[Entry | None]:
        """For what is bought: an answer that another process was buying just now, waited for; or None: buy it, and
        `store` it before the block ends. Nobody else does meanwhile, unless nobody can tell (Redis is down) or half of
        the time until `until` (the loop's time) was spent waiting."""
        ...


class NoCache:
    """`cache.url = "off"`."""

    def recall(self, slots: Sequence[Slot]) -> list[Entry | None]:
        return [None] * len(slots)

    async def lookup(self, slots: Sequence[Slot]) -> list[Entry | None]:
        return [None] * len(slots)

    def generation(self, task: str) -> str:  # noqa: ARG002
        return ""

    def store(self, slot: Slot, entry: Entry, *, since: str = "") -> None:
        pass

    def sole(self, slot: Slot, *, until: float) -> AbstractAsyncContextManager[Entry | None]:  # noqa: ARG002
        return nullcontext()
