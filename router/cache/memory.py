"""What this process remembers: the answers used last, bounded in bytes."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from sys import getsizeof

from router.cache.entry import Entry, Kind
from router.cache.types import Slot

Key = tuple[str, str, bytes, Kind, str]  # a slot without its labels

#: What a place costs beside its key and its entry: a node of the ordered dict, the tuple around the entry and two
#: numbers. Measured with tracemalloc (tests/router/test_memory.py).
PLACE_BYTES = 330


class Memory:
    """Least recently used first out. A place belongs to a generation of its task and is served for that one only; it
    expires like the entry in Redis. `clock` is in seconds.

    Own code: of cachetools (8.0), TTLCache bounds bytes and time, one time for all, and takes 1.4 us for a hit where
    this takes 0.3; its LRUCache is as fast and lacks the rest.
    """

    def __init__(self, most_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most_bytes
        self._clock = clock
        self._places: OrderedDict[Key, tuple[Entry, str, float, int]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._places)

    def get(self, slot: Slot, generation: str, now: float) -> Entry | None:
        key = slot[:-1]
        place = self._places.get(key)
        if place is None:
            return None
        entry, belongs, expires, _ = place
        if belongs != generation or now >= expires:
            self._forget(key)
            return None
        self._places.move_to_end(key)
        return entry

    def put(self, slot: Slot, generation: str, entry: Entry, seconds: float) -> None:
        """Remember for `seconds`; what is larger than all there is room for is not."""
        key = slot[:-1]  # the labels are a part of the identity
        if key in self._places:
            self._forget(key)
        size = PLACE_BYTES + getsizeof(key) + getsizeof(slot.text) + size_of(entry)
        if seconds <= 0 or size > self._most:
            return
        self._places[key] = (entry, generation, self._clock() + seconds, size)
        self.bytes += size
        while self.bytes > self._most:
            self._forget(next(iter(self._places)))

    def _forget(self, key: Key) -> None:
        self.bytes -= self._places.pop(key)[3]


def size_of(entry: Entry) -> int:
    """Bytes, as if nothing were shared: of entries made here the labels are."""
    size = getsizeof(entry) + getsizeof(entry.scores)
    for part in (entry.key, entry.label, entry.model, entry.preview, entry.at, entry.confidence):
        size += getsizeof(part)
    for pair in entry.scores:
        size += getsizeof(pair) + getsizeof(pair[0]) + getsizeof(pair[1])
    return size
