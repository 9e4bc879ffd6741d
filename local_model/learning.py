"""From labelled texts to a head folder: what `crossover learn` does, and how the shipped head was made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from local_model import tokenize
from local_model.encoder import Encoder
from local_model.engines import EngineName, Kind, open_engine
from local_model.heads import save_head
from local_model.training import C, Fitted, embed, fit_head

SEED = 0
#: Up to so many rows a second engine's head is fitted as well, so that the task survives a change of engine.
CHEAP_ROWS = 2_000


class Learned(msgspec.Struct, frozen=True):
    """A head folder was written. `fitted`: by engine kind, the one that serves here first."""

    folder: Path
    fitted: dict[Kind, Fitted]
    notes: tuple[str, ...]


class Progress(msgspec.Struct, frozen=True):
    """Where long work is: `stage` says what; `done` of `total` texts while embedding, else None."""

    stage: str
    done: int | None = None
    total: int | None = None


def learn(
    task: str,
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    encoder: Encoder,
    folder: Path,
    cache_dir: Path,
    engine: EngineName | Literal["all"] = "auto",
    device: str = "auto",
    threads: int = 0,
    descriptions: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Learned:
    """Embed on the engine that will serve (and a second one, if "all" or cheap), fit, write `folder`.

    `provenance` is added to what is known here: rows, labels, date, seed, versions. Raises LoadError, ValueError.
    """
    tell = progress or (lambda _progress: None)
    names: list[EngineName] = ["onnx", "torch"] if engine == "all" else [engine]
    if engine == "auto" and len(texts) <= CHEAP_ROWS:
        names.append("torch")
    fitted: dict[Kind, Fitted] = {}
    notes: list[str] = []
    for name in names:
        opened = open_engine(
            encoder,
            name=name,
            device=device,
            threads=threads,
            cache_dir=cache_dir,
            progress=lambda message: tell(Progress(message)),
        )
        notes += opened.notes
        kind = opened.engine.kind
        if kind in fitted:
            continue
        count = _Counter(tell, f"embedding on {kind}", len(texts))
        embeddings = embed(opened.engine, tokenize.load(encoder, cache_dir), texts, count)
        if not np.isfinite(embeddings).all():
            notes.append(f"{encoder.source} gives values that are not finite on {kind}: no head for it")
            continue
        fitted[kind] = fit_head(
            embeddings, labels, texts, seed=SEED, progress=functools.partial(_tell_stage, tell, kind)
        )
    if not fitted:
        raise ValueError(f"no engine gave embeddings that a head can be fitted on: {'; '.join(notes)}")
    first = next(iter(fitted.values()))
    save_head(
        folder,
        task=task,
        labels=first.labels,
        encoder=encoder,
        fitted={kind: (head.weight, head.bias, head.temperature, head.metrics) for kind, head in fitted.items()},
        descriptions=descriptions,
        provenance={
            "made_by": "crossover learn",
            "date": datetime.now(UTC).date().isoformat(),
            "rows": len(texts),
            "labels": len(first.labels),
            "seed": SEED,
            "method": f"logistic regression, C = {C:g}; temperature and metrics from held-out folds",
            "max_tokens": encoder.max_tokens,
            "versions": {
                name: version(name)
                for name in ("torch", "transformers", "tokenizers", "onnxruntime", "scikit-learn", "numpy")
            },
            **(provenance or {}),
        },
    )
    return Learned(folder, fitted, tuple(dict.fromkeys(notes)))


def _tell_stage(tell: Callable[[Progress], None], kind: Kind, stage: str) -> None:
    tell(Progress(f"{kind}: {stage}"))


class _Counter:
    """Adds up the texts done, for a progress bar. Called from the engine's threads; a lost update does not matter."""

    def __init__(self, tell: Callable[[Progress], None], stage: str, total: int) -> None:
        self._tell, self._stage, self._total, self._done = tell, stage, total, 0
        tell(Progress(stage, 0, total))

    def __call__(self, texts: int) -> None:
        self._done += texts
        self._tell(Progress(self._stage, self._done, self._total))
