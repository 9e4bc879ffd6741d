"""Fits a head on embeddings: logistic regression, with honest accuracy and temperature from cross-validation."""

from __future__ import annotations

import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from local_model.calibration import accuracy_interval, calibration_error, fit_temperature
from local_model.engines import Engine
from local_model.heads import softmax
from local_model.tokenize import TextTokenizer

#: Inverse regularization. On L2-normalised embeddings the usual 1.0 is far too strong.
C = 30.0
FOLDS = 5
UNSEEN = -30.0  # logit of a label that a fold's training rows do not have


class Fitted(msgspec.Struct, frozen=True):
    """A head, and how it did on rows it was not fitted on. Arrays are in the order of `labels` and of the rows."""

    labels: tuple[str, ...]
    weight: NDArray[np.float32]  # (labels, hidden)
    bias: NDArray[np.float32]  # (labels,)
    temperature: float
    predicted: NDArray[np.int64]  # (rows,) label index by cross-validation, -1: the row could not be held out
    targets: NDArray[np.int64]  # (rows,)
    metrics: dict[str, float]
    warnings: tuple[str, ...]


def embed(
    engine: Engine,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """(n, hidden) embeddings of `texts`, as the engine computes them in service; too long texts are cut.

    `progress` is called with the number of texts done since the last call.
    """
    ids = [tokenizer.encode(text, truncate=True).ids for text in texts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    batches = [order[i : i + engine.max_items] for i in range(0, len(order), engine.max_items)]

    def run(batch: list[int]) -> NDArray[np.float32]:
        found = engine.forward([ids[i] for i in batch]).embeddings
        if progress is not None:
            progress(len(batch))
        return found

    with ThreadPoolExecutor(engine.threads) as pool:
        rows = np.concatenate(list(pool.map(run, batches)))
    embeddings = np.empty_like(rows)
    embeddings[order] = rows
    return embeddings


def fit_head(
    embeddings: NDArray[np.float32],
    labels: Sequence[str],
    texts: Sequence[str],
    *,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Fitted:
    """Fit on all rows; accuracy and temperature come from rows held out in turn. ValueError below two labels.

    `texts` only tell which rows are the same: a text is never in the rows fitted on and in those held out at once.
    A label with a single row is fitted, but can't be held out, so it is missing from the accuracy (and warned about).
    """
    say = progress or (lambda _message: None)
    names = tuple(sorted(set(labels)))
    if len(names) < 2:
        raise ValueError(f"a head needs rows of two labels or more, these have {len(names)}")
    index = {name: i for i, name in enumerate(names)}
    targets = np.array([index[label] for label in labels], np.int64)
    keys = [text_key(text) for text in texts]
    notes = _warnings(names, labels, keys)

    groups_per_label = Counter(target for _key, target in set(zip(keys, targets.tolist(), strict=True)))
    testable = np.array([groups_per_label[target] >= 2 for target in targets.tolist()])
    logits = np.full((len(targets), len(names)), np.nan)
    group = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    groups = np.array([group[key] for key in keys])
    fewest = min((n for n in groups_per_label.values() if n >= 2), default=0)
    folds = max(2, min(FOLDS, fewest))
    if testable.any() and len(set(groups[testable].tolist())) >= folds:
        rows = np.flatnonzero(testable)
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # small classes: said better in `_warnings`
            splits = list(splitter.split(embeddings[rows], targets[rows], groups[rows]))
        for fold, (_, held) in enumerate(splits):
            say(f"cross-validation {fold + 1} of {folds}")
            test = rows[held]
            train = np.setdiff1d(np.arange(len(targets)), test)
            if len(set(targets[train].tolist())) < 2:
                continue
            weight, bias, known = _regress(embeddings[train], targets[train], len(names))
            scores = embeddings[test] @ weight.T + bias
            scores[:, ~known] = UNSEEN
            logits[test] = scores
    held_out = ~np.isnan(logits).any(axis=1)
    say("fitting on all rows")
    weight, bias, _ = _regress(embeddings, targets, len(names))
    temperature, metrics = _measure(logits[held_out], targets[held_out], len(targets))
    predicted = np.full(len(targets), -1, np.int64)
    predicted[held_out] = logits[held_out].argmax(axis=1)
    return Fitted(
        labels=names,
        weight=weight,
        bias=bias,
        temperature=temperature,
        predicted=predicted,
        targets=targets,
        metrics=metrics,
        warnings=notes,
    )


def text_key(text: str) -> str:
    """Two texts that differ in case, spaces or Unicode form only are the same text."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _regress(
    embeddings: NDArray[np.float32], targets: NDArray[np.int64], labels: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """(weight, bias, which labels had rows)."""
    model = LogisticRegression(C=C, max_iter=2_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits of a convex problem
        model.fit(embeddings, targets)
    found, rows, offsets = model.classes_, model.coef_, model.intercept_
    if len(found) == 2:  # one row stands for both: softmax((-z/2, z/2)) = sigmoid(z)
        rows, offsets = np.concatenate([-rows, rows]) / 2, np.concatenate([-offsets, offsets]) / 2
    weight = np.zeros((labels, embeddings.shape[1]), np.float32)
    bias = np.full(labels, UNSEEN, np.float32)
    weight[found], bias[found] = rows, offsets
    known = np.zeros(labels, bool)
    known[found] = True
    return weight, bias, known


def _measure(logits: NDArray[np.float64], targets: NDArray[np.int64], rows: int) -> tuple[float, dict[str, float]]:
    """Temperature and metrics of the held-out rows; temperature 1 where none could be held out."""
    total = len(targets)
    if not total:
        return 1.0, {"rows": float(rows), "held_out": 0.0}
    learnable = logits[np.arange(total), targets] > UNSEEN  # a label the fold never saw says nothing about T
    temperature = fit_temperature(logits[learnable], targets[learnable]) if learnable.any() else 1.0
    right = logits.argmax(axis=1) == targets
    confidences = softmax(logits / temperature).max(axis=1)
    low, high = accuracy_interval(int(right.sum()), total)
    return temperature, {
        "rows": float(rows),
        "held_out": float(total),
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "calibration_error": calibration_error(confidences, right),
    }


def _warnings(names: Sequence[str], labels: Sequence[str], keys: Sequence[str]) -> tuple[str, ...]:
    notes: list[str] = []
    if len(labels) < 10 * len(names):
        notes.append(
            f"{len(labels)} rows for {len(names)} labels: below ten rows a label, accuracy and confidence are rough"
        )
    counts = Counter(labels)
    if single := [name for name in names if counts[name] == 1]:
        notes.append(f"labels with one row can't be checked: {', '.join(single[:10])}{' …' * (len(single) > 10)}")
    if repeated := len(keys) - len(set(keys)):
        notes.append(f"{repeated} rows repeat a text; copies are kept together in cross-validation")
    by_key: dict[str, set[str]] = {}
    for key, label in zip(keys, labels, strict=True):
        by_key.setdefault(key, set()).add(label)
    if torn := sum(len(found) > 1 for found in by_key.values()):
        notes.append(f"{torn} texts carry more than one label: no head can answer those right")
    return tuple(notes)
