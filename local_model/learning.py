"""From labelled texts to a head folder: what `crossover learn` does, and how the shipped head was made."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from local_model import gate, probes, tokenize
from local_model.calibration import fit_temperature
from local_model.encoder import DEFAULT, Encoder
from local_model.engines import EngineName, Kind, Output, Precision, open_engine
from local_model.heads import Head, save_head, softmax
from local_model.tokenize import TextTokenizer
from local_model.training import FOLDS, C, Fitted, embed, fit_head, text_key

SEED = 0
#: Up to so many rows a second engine's head is fitted as well, so that the task survives a change of engine.
CHEAP_ROWS = 2_000
#: So many rows are held against fp32: enough to judge by, and fitted in seconds.
GATE_ROWS = 1_000
#: Below so many rows a speed is noise.
SPEED_ROWS = 200
#: In samples of 30 texts the default tokenizer makes 1.01 to 1.19 tokens of an English word, 1.54 and more of one in
#: 17 other languages (French, Vietnamese and Hindi lowest); texts with codes or emoji are as the rest of their words.
TOKENS_PER_WORD = 1.35
FOREIGN_LETTERS = 0.2  # share that is not ASCII: 0 in English, up to 0.1 in what else is written in Latin letters
MULTILINGUAL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"


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


class _Embedded(NamedTuple):
    embeddings: NDArray[np.float32]  # (rows, hidden)
    probes: Output
    texts_per_second: float | None
    kind: Kind
    recipe: str


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
    precision: Precision = "auto",
    descriptions: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Learned:
    """Embed on the engine that will serve (and torch, if "all" or cheap), fit, hold against fp32, write `folder`.

    If "auto" meets an engine that fails the quality gate, torch's head is fitted as well, for the service to take.
    `provenance` is added to what is known here: rows, labels, date, seed, versions. Raises LoadError, ValueError.
    """
    tell = progress or (lambda _progress: None)
    tokenizer = tokenize.load(encoder, cache_dir)
    notes = [note] if (note := language_note(texts, encoder, tokenizer)) else []
    embedded: dict[Kind, _Embedded] = {}
    fitted: dict[Kind, Fitted] = {}

    def on(name: EngineName, wanted: Precision, rows: Sequence[str]) -> _Embedded:
        opened = open_engine(
            encoder,
            name=name,
            device=device,
            threads=threads,
            precision=wanted,
            cache_dir=cache_dir,
            progress=lambda message: tell(Progress(message)),
        )
        notes.extend(opened.notes)
        serving = opened.engine
        count = _Counter(tell, f"embedding on {serving.kind}", len(rows))
        asked = probes.run(serving, probes.token_ids(tokenizer))
        started = time.perf_counter()
        embeddings = embed(serving, tokenizer, rows, count)
        speed = len(rows) / (time.perf_counter() - started) if len(rows) >= SPEED_ROWS else None
        serving.close()
        return _Embedded(embeddings, asked, speed, serving.kind, serving.recipe)

    def fit(name: EngineName, wanted: Precision) -> None:
        found = on(name, wanted, texts)
        if not np.isfinite(found.embeddings).all():
            notes.append(f"{encoder.source} gives values that are not finite on {found.kind}: no head for it")
        elif found.kind not in fitted:
            stage = functools.partial(_tell_stage, tell, found.kind)
            fitted[found.kind] = fit_head(found.embeddings, labels, texts, seed=SEED, progress=stage)
            embedded[found.kind] = found

    if engine == "all":
        fit("onnx", "auto")
        fit("torch", precision)
    else:
        fit(engine, precision)
    cheap = engine == "auto" and (not fitted or len(texts) <= CHEAP_ROWS)
    if "torch-fp32" not in fitted and (engine == "all" or cheap):
        fit("torch", "fp32")
    if not fitted:
        raise ValueError(f"no engine gave embeddings that a head can be fitted on: {'; '.join(notes)}")

    quality: dict[Kind, gate.Quality] = {}
    rows = _held_out_rows(next(iter(fitted.values())), len(texts) if engine == "all" else GATE_ROWS)
    if len(rows):
        tell(Progress("holding the heads against fp32"))
        some = [texts[i] for i in rows]
        fp32 = embedded["torch-fp32"].embeddings[rows] if "torch-fp32" in embedded else on("torch", "fp32", some)[0]
        quality = _qualities(embedded, fp32, rows, [labels[i] for i in rows], some)
    choice = gate.choose(tuple(fitted), {kind: [found] for kind, found in quality.items()})
    if choice.failed and engine == "auto" and "torch-fp32" not in fitted:
        fit("torch", "fp32")
        choice = choice._replace(kind="torch-fp32" if "torch-fp32" in fitted else choice.kind)
    notes += choice.failed.values()
    fitted = {choice.kind: fitted[choice.kind], **fitted}
    save_head(
        folder,
        task=task,
        labels=fitted[choice.kind].labels,
        encoder=encoder,
        fitted={kind: (head.weight, head.bias, head.temperature, head.metrics) for kind, head in fitted.items()},
        descriptions=descriptions,
        quality=quality,
        probes={kind: _head(head).probabilities(embedded[kind].probes) for kind, head in fitted.items()},
        provenance={
            "made_by": "crossover learn",
            "date": datetime.now(UTC).date().isoformat(),
            "rows": len(texts),
            "labels": len(fitted[choice.kind].labels),
            "seed": SEED,
            "method": f"logistic regression, C = {C:g}; temperature and metrics from held-out folds",
            "max_tokens": encoder.max_tokens,
            "recipes": {kind: found.recipe for kind, found in embedded.items()},
            "versions": {
                name: version(name)
                for name in ("torch", "transformers", "tokenizers", "onnxruntime", "scikit-learn", "numpy")
            },
            **(provenance or {}),
        },
    )
    return Learned(folder, fitted, tuple(dict.fromkeys(notes)))


def language_note(texts: Sequence[str], encoder: Encoder, tokenizer: TextTokenizer) -> str | None:
    """A warning if the texts do not look English and the encoder is the default one, which knows English only."""
    if encoder.source != DEFAULT:
        return None
    special = len(tokenizer.encode("", truncate=True).ids)
    words = tokens = letters = foreign = 0
    for text in texts[:: max(1, len(texts) // GATE_ROWS)]:
        plain = [word for raw in text[:1000].split() if (word := raw.strip(".,;:!?\"'()…")).isalpha()]
        words += len(plain)
        tokens += tokenizer.encode(" ".join(plain), truncate=True).tokens - special
        letters += sum(char.isalpha() for char in text)
        foreign += sum(char.isalpha() and not char.isascii() for char in text)
    if tokens <= TOKENS_PER_WORD * words and foreign <= FOREIGN_LETTERS * letters:
        return None
    return (
        f"the texts do not look English, and the default encoder {DEFAULT} knows English only: set [model] source to a "
        f"multilingual encoder (for example {MULTILINGUAL}) and run this again"
    )


def _held_out_rows(fitted: Fitted, most: int) -> NDArray[np.int64]:
    """At most `most` of the rows that could be held out, drawn at random; sorted."""
    rows = np.flatnonzero(fitted.predicted >= 0)
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(SEED).choice(rows, most, replace=False))
    return rows


def _qualities(
    embedded: Mapping[Kind, _Embedded],
    fp32: NDArray[np.float32],
    rows: NDArray[np.int64],
    labels: Sequence[str],
    texts: Sequence[str],
) -> dict[Kind, gate.Quality]:
    """Each engine against fp32 on `rows`, each by heads of its own that have not seen the row. Empty: too few rows."""
    gold = np.unique(labels, return_inverse=True)[1]
    try:
        mine = {kind: _held_out(each.embeddings[rows], gold, texts) for kind, each in embedded.items()}
        wanted = mine["torch-fp32"] if "torch-fp32" in mine else _held_out(fp32, gold, texts)
    except ValueError:  # scikit-learn: a fold without two labels
        return {}
    return {
        kind: gate.measure(found, wanted, gold, texts_per_second=embedded[kind].texts_per_second)
        for kind, found in mine.items()
    }


def _held_out(embeddings: NDArray[np.float32], gold: NDArray[np.int64], texts: Sequence[str]) -> NDArray[np.float64]:
    """(rows, labels) calibrated probabilities, each from a head fitted on other texts. Raises ValueError."""
    group = {key: i for i, key in enumerate(dict.fromkeys(map(text_key, texts)))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few rows of a label, a label that a fold lacks, last digits of the fit
        found = cross_val_predict(
            LogisticRegression(C=C, max_iter=2_000),
            embeddings,
            gold,
            groups=[group[text_key(text)] for text in texts],
            cv=StratifiedGroupKFold(min(FOLDS, len(group)), shuffle=True, random_state=SEED),
            method="predict_log_proba",
        )
    logits = np.maximum(found, -1e3)  # of a label that the fold lacks: the lowest number there is
    return softmax(logits / fit_temperature(logits, gold))


def _head(fitted: Fitted) -> Head:
    return Head(fitted.labels, False, fitted.temperature, "", weight=fitted.weight, bias=fitted.bias)


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
