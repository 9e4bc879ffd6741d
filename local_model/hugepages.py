"""Puts the weights into huge pages.

A forward for one text streams through all weights. In pages of 4 KiB that is thousands of entries for a TLB that holds
fewer, and each miss waits for memory (bench/hugepages.py: 1 to 13 % of a short text's CPU time, most on a busy host).
"""

from __future__ import annotations

import ctypes
import sys

LARGE = 4 << 20  # bytes of a mapping that are in memory, for it to be worth while
#: madvise(2): use huge pages here from now on; and (Linux 6.1) put what is here into them now.
HUGEPAGE, COLLAPSE = 14, 25


def use_huge_pages() -> int:
    """Move this process's large blocks of private memory into huge pages; gives how many bytes were moved or were there
    already. Does nothing (0) where the system has none to give.

    Call it when a model was loaded and has run once: its weights are packed by then.
    """
    if not sys.platform.startswith("linux"):
        return 0
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        madvise = libc.madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        with open("/proc/self/smaps", encoding="utf-8") as file:  # noqa: PTH123 - a line at a time
            blocks = large_blocks(file.read())
    except (OSError, AttributeError, ValueError):
        return 0
    moved = 0
    for start, size in blocks:
        madvise(start, size, HUGEPAGE)
        if madvise(start, size, COLLAPSE) == 0:
            moved += size
    return moved


def large_blocks(smaps: str) -> list[tuple[int, int]]:
    """(address, bytes) of the private anonymous mappings of which LARGE bytes or more are in memory."""
    blocks: list[tuple[int, int]] = []
    start = end = 0
    anonymous = False
    for line in smaps.splitlines():
        name, _, value = line.partition(" ")
        if "-" in name and not name.endswith(":"):
            first, _, last = name.partition("-")
            fields = line.split()
            start, end = int(first, 16), int(last, 16)
            anonymous = "w" in fields[1] and "p" in fields[1] and (len(fields) < 6 or fields[5] == "[heap]")
        elif name == "Rss:" and anonymous and int(value.split()[0]) * 1024 >= LARGE:
            blocks.append((start, end - start))
    return blocks
