"""CPU time of the bare forward with the weights in pages of 4 KiB, and in huge pages (local_model/hugepages.py).

    python bench/hugepages.py

Two processes run the same short made-up texts on two threads, in turn; the median of the ratios within a turn counts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import harness
import numpy as np

from local_model import encoder
from local_model.hugepages import use_huge_pages
from local_model.onnx_engine import artifact
from router.paths import cache_dir

NAME = "hugepages"
TURNS = 40
LENGTHS = (8, 10, 11, 12, 12, 13, 14, 15, 16, 20) * 5  # tokens, as in short messages


def main() -> int:
    children = {
        pages: subprocess.Popen(
            [sys.executable, str(Path(__file__)), pages], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for pages in ("small", "huge")
    }
    seen: dict[str, list[float]] = {pages: [] for pages in children}
    for turn in range(TURNS):
        for pages in sorted(children, reverse=bool(turn % 2)):
            child = children[pages]
            assert child.stdin is not None
            assert child.stdout is not None
            print("go", file=child.stdin, flush=True)
            seen[pages].append(float(child.stdout.readline()))
    for child in children.values():
        child.communicate(timeout=60)
    ratio = statistics.median(small / huge for small, huge in zip(seen["small"], seen["huge"], strict=True))
    rows = [{"pages": pages, "cpu_ms_per_text": statistics.median(took)} for pages, took in seen.items()]
    notes = [f"{row['pages']} pages: {row['cpu_ms_per_text']:.3f} CPU ms a text" for row in rows]
    bars = [harness.Bar("CPU time with small pages over huge ones", ratio, ">= 1", "x", ratio >= 1)]
    return harness.finish(NAME, bars=bars, rows=rows, notes=notes)


def child(huge: bool) -> None:
    session = artifact(encoder.find(), cache_dir(), lambda _: None).session
    feeds = [{"input_ids": np.arange(1_000, 1_000 + length, dtype=np.int64)[None]} for length in LENGTHS]

    def run() -> None:
        for feed in feeds:
            session.run(None, feed)

    run()
    if huge:
        use_huge_pages()
    for _ in sys.stdin:
        used = time.process_time()
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print((time.process_time() - used) * 1000 / (2 * len(feeds)), flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        child(sys.argv[1] == "huge")
    else:
        raise SystemExit(main())
