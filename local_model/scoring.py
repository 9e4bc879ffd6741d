"""From an engine's output to what is told of each text. Runs on the engine's threads, so that the loop has no numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from local_model.engines import Output
from local_model.heads import Head
from local_model.types import TOP, ModelError, NotFinite, Prediction


class Text(NamedTuple):
    """One text to compute."""

    ids: list[int]
    tokens: int  # of the whole text
    truncated: bool
    head: Head  # of its task


class Scored(NamedTuple):
    """What the model says of one text: the first fields of `Prediction`."""

    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32]
    top: tuple[tuple[int, float], ...]


def prediction(scored: Scored, text: Text, *, queue_us: int, run_us: int) -> Prediction:
    """What the caller of `text` gets."""
    return Prediction(*scored, text.tokens, text.truncated, queue_us, run_us)


def score(output: Output, batch: Sequence[Text]) -> list[Scored | ModelError]:
    """One pass of the encoder, then each task's head on its own rows. A text that is not finite fails alone."""
    heads = {id(text.head): text.head for text in batch}
    if len(heads) == 1:
        return _score(output, batch[0].head)
    results: list[Scored | ModelError] = [NotFinite("")] * len(batch)
    for head in heads.values():
        rows = [row for row, text in enumerate(batch) if text.head is head]
        part = Output(output.embeddings[rows], None if output.logits is None else output.logits[rows])
        for row, result in zip(rows, _score(part, head), strict=True):
            results[row] = result
    return results


def _score(output: Output, head: Head) -> list[Scored | ModelError]:
    return [
        Scored(row, embedding, best(row))
        # One sum finds what is not finite in fewer steps than looking at each value, and finite ones can't overflow it.
        if math.isfinite(float(row.sum()) + float(embedding.sum()))
        else NotFinite("the model gave no finite score for this text")
        for row, embedding in zip(head.probabilities(output), output.embeddings, strict=True)
    ]


def best(probabilities: NDArray[np.float32]) -> tuple[tuple[int, float], ...]:
    """(labels,) to the (index, probability) of the TOP best, best first; ties by index, as argmax has it."""
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    return tuple(zip(order.tolist(), probabilities[order].tolist(), strict=True))
