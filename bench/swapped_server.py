"""`crossover serve` with its engine changed, to measure what the service itself does not do.

    python bench/swapped_server.py HOW FOLDER serve --config FILE ...

HOW: a number, the most texts in one forward; or padded-N, int8 ONNX in padded batches of up to N (its graph is made of
FOLDER/padded.onnx).
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import candidates

from local_model import engines, station
from local_model.encoder import Encoder
from local_model.engines import Opened, Output
from router.cli import main

BATCH_TOKENS = 4_096  # with padding, as many as 32 texts of 128


def swapped(how: str, folder: Path, encoder: Encoder, **asked: Any) -> Opened:
    """What the service opens, changed."""
    opened = engines.open_engine(encoder, **asked)
    engine: Any = opened.engine
    kind, _, number = how.rpartition("-")
    engine.max_items = int(number)
    if kind == "padded":
        shop = candidates.Workshop(str(encoder.path), folder, asked["cache_dir"], engines.cores(), ())
        forward = candidates.onnx_dynamic(shop, engine.max_items)
        engine.forward = lambda batch: Output(forward(batch), None)
        engine.threads, engine.max_tokens = 1, BATCH_TOKENS
    return opened


if __name__ == "__main__":
    how, folder = sys.argv[1], Path(sys.argv[2])
    sys.argv[1:] = sys.argv[3:]
    vars(station)["open_engine"] = partial(swapped, how, folder)
    main()
