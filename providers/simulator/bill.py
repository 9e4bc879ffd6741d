"""The simulator's own bill, against which a ledger is checked: totals for a reader, items for a test."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import msgspec

from cost.types import Usage

#: Items kept; the totals hold all.
_KEPT = 200_000


class Item(msgspec.Struct):
    """One reply that was computed, and so is charged. `seen`: its usage was sent whole and true; False: the caller
    can't know it. `model` is the one of the wire, after "simulated/"."""

    reply_id: str
    format: str
    model: str
    usage: Usage
    batch: bool = False
    seen: bool = False
    text: str | None = None  # only where the simulator records


class Bill:
    """`lines`: by format and model, how many calls, how many of them unseen, the tokens; by format, what was refused
    and costs nothing."""

    def __init__(self) -> None:
        self.lines: dict[str, Counter[str]] = {}
        self.items: deque[Item] = deque(maxlen=_KEPT)

    def charge(self, item: Item) -> Item:
        self.items.append(item)
        usage = item.usage
        self._line(item).update(
            calls=1,
            unseen=1,
            input=usage.input,
            cache_read=usage.cache_read,
            cache_write_5m=usage.cache_write_5m,
            output=usage.output,
            reasoning=usage.reasoning,
        )
        return item

    def was_seen(self, item: Item) -> None:
        item.seen = True
        self._line(item)["unseen"] -= 1

    def refuse(self, style: str) -> None:
        self.lines.setdefault(style, Counter()).update(refused=1)

    def told(self, *, items: bool) -> dict[str, Any]:
        """For GET /_sim/bill."""
        told: dict[str, Any] = {"simulated": True, "bill": self.lines}
        if items:
            told |= {"items": list(self.items), "items_kept": _KEPT}
        return told

    def _line(self, item: Item) -> Counter[str]:
        name = f"{item.format} {item.model}{' batch' if item.batch else ''}"
        return self.lines.setdefault(name, Counter())
