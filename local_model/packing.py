"""Which of the waiting texts ride together."""

from __future__ import annotations

from collections.abc import Sequence


def pick(lengths: Sequence[int], max_items: int, max_tokens: int) -> list[int]:
    """Indices of the texts for one batch: text 0 (the oldest) and those nearest to it in length.

    `lengths` in order of arrival, in tokens; the batch is padded to its longest. At most `max_items` texts and
    `max_tokens` padded tokens, except that text 0 alone always goes.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    low = high = order.index(0)
    while high - low + 1 < max_items:
        size = high - low + 2
        shorter = low > 0 and size * lengths[order[high]] <= max_tokens
        longer = high + 1 < len(order) and size * lengths[order[high + 1]] <= max_tokens
        if shorter and longer:
            shorter = lengths[0] - lengths[order[low - 1]] <= lengths[order[high + 1]] - lengths[0]
        if shorter:
            low -= 1
        elif longer:
            high += 1
        else:
            break
    return order[low : high + 1]
