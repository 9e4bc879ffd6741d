"""A cache in a dict. For unit tests of what stands around the cache."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from router.cache.entry import Entry
from router.cache.types import Slot


class MemoryCache:
    """Implements `router.cache.types.Cache`; nothing expires."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    async def lookup(self, slots: Sequence[Slot]) -> list[Entry | None]:
        return [self.entries.get(self._key(slot)) for slot in slots]

    def store(self, slot: Slot, entry: Entry) -> None:
        key = self._key(slot)
        self.entries[key] = msgspec.structs.replace(entry, key=key)

    @staticmethod
    def _key(slot: Slot) -> str:
        return f"{slot.tenant}:{slot.task}:{slot.text.hex()}:{slot.identity}"
