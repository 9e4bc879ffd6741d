"""Makes local_model/heads/banking77 again: the train rows of banking77, without those that the recorded frontier
answers are about (so that bench/recorded.py measures texts which the head has not seen).

    CROSSOVER_BENCH_DATA=DIR python bench/shipped_head.py [FOLDER]

The labels' descriptions were written for this project; they are taken from the shipped manifest.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

from local_model import encoder
from local_model.learning import learn
from router.paths import cache_dir

SHIPPED = Path(__file__).resolve().parents[1] / "local_model" / "heads" / "banking77"


def main() -> None:
    data = Path(os.environ["CROSSOVER_BENCH_DATA"])
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED
    manifest = json.loads((SHIPPED / "manifest.json").read_text(encoding="utf-8"))
    with (data / "recorded_gpt4" / "banking77.csv").open(encoding="utf-8", newline="") as file:
        held_out = {row["text"].strip() for row in csv.DictReader(file)}
    with (data / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["text"].strip() not in held_out]
    learned = learn(
        "banking",
        [row["text"] for row in rows],
        [row["category"] for row in rows],
        encoder=encoder.find(encoder.DEFAULT),
        folder=folder,
        cache_dir=cache_dir(),
        engine="all",
        descriptions={label["name"]: label["description"] for label in manifest["labels"]},
        provenance={
            "made_by": "bench/shipped_head.py",
            **{key: manifest["provenance"][key] for key in ("data", "citation", "license")},
        },
        progress=lambda progress: print(progress, file=sys.stderr),
    )
    for kind, fitted in learned.fitted.items():
        print(kind, {name: round(value, 4) for name, value in fitted.metrics.items()})


if __name__ == "__main__":
    main()
