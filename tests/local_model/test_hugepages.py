"""Weights in huge pages: which memory is meant, and that nothing in it changes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from local_model.hugepages import LARGE, large_blocks, use_huge_pages

SMAPS = """\
7f0000000000-7f0001000000 rw-p 00000000 00:00 0
Size:              16384 kB
Rss:               16000 kB
7f0001000000-7f0002000000 rw-p 00000000 00:00 0
Size:              16384 kB
Rss:                 100 kB
7f0003000000-7f0004000000 r--p 00000000 08:01 77                         /usr/lib/large.so
Rss:               16000 kB
7f0005000000-7f0006000000 rw-s 00000000 00:01 5                          /dev/shm/shared
Rss:               16000 kB
55aa00000000-55aa00800000 rw-p 00000000 00:00 0                          [heap]
Rss:                8192 kB
7ffc00000000-7ffc01000000 rw-p 00000000 00:00 0                          [stack]
Rss:               16000 kB
"""


def test_only_large_private_memory_that_is_in_use_is_meant() -> None:
    """Not reserved memory, not files, not what is shared with others, not the stack."""
    assert large_blocks(SMAPS) == [(0x7F0000000000, 16 << 20), (0x55AA00000000, 8 << 20)]
    assert large_blocks("") == []


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/self/smaps here")
def test_memory_keeps_what_is_in_it() -> None:
    data = np.arange(8 * LARGE // 8, dtype=np.int64)
    before = data.sum()
    moved = use_huge_pages()
    assert moved >= 0
    assert data.sum() == before
    assert (data[:: LARGE // 64] == np.arange(len(data))[:: LARGE // 64]).all()


def test_a_system_without_them_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert use_huge_pages() == 0
