"""A cache in a dict. For unit tests of what stands around the cache."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import msgspec

from router.cache.entry import Entry
from router.cache.types import Slot


class MemoryCache:
    """Implements `router.cache.types.Cache`; nothing expires. `elsewhere` is what other processes buy: found by `sole`,
    as if waited for. `recall` finds the texts (digests) in `remembers`. `generations`, by task, are the
    tests' to change."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.elsewhere: Entry | None = None
        self.claimed: list[Slot] = []
        self.looked_up: list[Slot] = []
        self.remembers: set[bytes] = set()
        self.generations: dict[str, str] = {}

    def recall(self, slots: Sequence[Slot]) -> list[Entry | None]:
        return [self.entries.get(self._key(slot)) if slot.text in self.remembers else None for slot in slots]

    async def lookup(self, slots: Sequence[Slot]) -> list[Entry | None]:
        self.looked_up += slots
        return [self.entries.get(self._key(slot)) for slot in slots]

    def generation(self, task: str) -> str:
        return self.generations.get(task, "")

    def store(self, slot: Slot, entry: Entry, *, since: str = "") -> None:
        if since in ("", self.generation(slot.task)):
            key = self._key(slot)
            self.entries[key] = msgspec.structs.replace(entry, key=key)

    def sole(self, slot: Slot, *, until: float) -> AbstractAsyncContextManager[Entry | None]:  # noqa: ARG002
        self.claimed.append(slot)
        return nullcontext(self.elsewhere)

    @staticmethod
    def _key(slot: Slot) -> str:
        return f"{slot.tenant}:{slot.task}:{slot.text.hex()}:{slot.identity}"
