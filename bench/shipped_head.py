"""Makes local_model/heads/banking77 again: the train rows of banking77, without those that the recorded frontier
answers are about (so that bench/recorded.py measures texts which the head has not seen).

    CROSSOVER_BENCH_DATA=DIR python bench/shipped_head.py [FOLDER]
    python bench/shipped_head.py --measured FOLDER

The second keeps the shipped weights and adds to them the quality that FOLDER's manifest has and the probe scores of
this machine: made again, the int8 head comes out to the bit, the fp32 one nearly. Making takes some
minutes. The labels' descriptions were written for this project; they are taken from the shipped manifest.
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import msgspec

from local_model import encoder, probes, tokenize
from local_model.engines import Kind, open_engine
from local_model.heads import load_head, read_manifest, save_head
from local_model.learning import learn
from router.paths import cache_dir

SHIPPED = Path(__file__).resolve().parents[1] / "local_model" / "heads" / "banking77"


def main() -> None:
    if sys.argv[1:2] == ["--measured"]:
        add_measurements(Path(sys.argv[2]))
    else:
        make(Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED)


def make(folder: Path) -> None:
    data = Path(os.environ["CROSSOVER_BENCH_DATA"])
    shipped = read_manifest(SHIPPED)
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
        descriptions={label.name: label.description for label in shipped.labels},
        provenance={
            "made_by": "bench/shipped_head.py",
            **{key: shipped.provenance[key] for key in ("data", "citation", "license")},
        },
        progress=lambda progress: None if progress.done else print(progress.stage, file=sys.stderr),
    )
    for kind, entry in read_manifest(folder).engines.items():
        print(kind, "same weights as shipped:", entry.sha256 == shipped.engines[kind].sha256)
        print("  ", {name: round(value, 4) for name, value in entry.metrics.items()})
        print("  ", entry.quality)
    print(*learned.notes, sep="\n")


def add_measurements(folder: Path) -> None:
    found, shipped, made = encoder.find(encoder.DEFAULT), read_manifest(SHIPPED), read_manifest(folder)
    kinds: tuple[Kind, ...] = ("onnx-int8", "torch-fp32")
    rows = probes.token_ids(tokenize.load(found, cache_dir()))
    heads = {kind: load_head(SHIPPED, kind, found) for kind in kinds}
    engines = {
        kind: open_engine(found, name=name, device="cpu", cache_dir=cache_dir()).engine
        for kind, name in zip(kinds, ("onnx", "torch"), strict=True)
    }
    save_head(
        SHIPPED,
        task=shipped.task,
        labels=[label.name for label in shipped.labels],
        encoder=found,
        fitted={
            kind: (head.weight, head.bias, head.temperature, shipped.engines[kind].metrics)
            for kind, head in heads.items()
        },
        descriptions={label.name: label.description for label in shipped.labels},
        provenance=shipped.provenance,
        # without speeds: it is served on other machines than this one
        quality={kind: msgspec.structs.replace(made.engines[kind].quality, texts_per_second=None) for kind in kinds},
        probes={kind: head.probabilities(probes.run(engines[kind], rows)) for kind, head in heads.items()},
    )
    after = read_manifest(SHIPPED)
    for kind in kinds:
        same = after.engines[kind].sha256 == shipped.engines[kind].sha256
        print(kind, "weights unchanged" if same else "WEIGHTS CHANGED", after.engines[kind].quality)


if __name__ == "__main__":
    main()
