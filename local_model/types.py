"""What goes into the local model, what comes out, and every way it can fail.

ModelError
├── LoadError          an artifact is missing, altered or does not fit; raised at start only
├── OverLength         the text has more tokens than the model reads
├── QueueFull          admission refused; nothing of the request was computed
├── Expired            the deadline passed before the forward began
├── NotFinite          the model gave NaN or infinity for this text
└── EngineFailed       the forward raised, or the engine thread is dead
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


TOP = 10  # the scores that an answer can show


class Prediction(msgspec.Struct, frozen=True):
    """The local model's answer for one text."""

    probabilities: NDArray[np.float32]  # (n_labels,) calibrated; sums to 1, or each in [0, 1] for a multi-label head
    embedding: NDArray[np.float32]  # (hidden,) pooled, L2-normalised
    top: tuple[tuple[int, float], ...]  # (label's index, probability) of the best TOP, best first; ties by index
    tokens: int  # of the whole text; an estimate where a long one was truncated
    truncated: bool
    queue_us: int  # admission to forward
    run_us: int  # the forward's device time, this text's share


class TaskInfo(msgspec.Struct, frozen=True):
    """What a loaded task is: everything that changes its answers is in `identity`."""

    name: str
    labels: tuple[str, ...]
    descriptions: dict[str, str]  # label -> description, where the manifest has one
    model: str  # shown to callers: "banking@3f2a9c01"
    identity: tuple[str, ...]  # labels, encoder, tokenizer, quantization, head, calibration, max length
    max_tokens: int
    multi_label: bool = False


class Classifier(Protocol):
    """The seam (`local_model.model.LocalModel`; `local_model.fake.KeywordClassifier` in unit tests)."""

    def task(self, name: str) -> TaskInfo: ...

    def submit(
        self, task: str, texts: Sequence[str], *, truncate: bool, deadline: float | None, tenant: str = ""
    ) -> list[asyncio.Future[Prediction]]:
        """Admit all texts or none (raises `QueueFull`), and give one future each, in order.

        Call it on the event loop; `deadline` is in the loop's time. What concerns one text (`OverLength`, `Expired`,
        `NotFinite`, `EngineFailed`) is raised by its future alone. Cancel a future and its text is not computed.
        Tenants share the engine fairly.
        """
        ...

    def status(self) -> dict[str, Any]: ...

    def __enter__(self) -> None:
        """It is in use: what replaces it lets it finish first."""
        ...

    def __exit__(self, *_: object) -> None: ...


class ModelError(Exception):
    """Base of what the local tier raises."""


class LoadError(ModelError):
    """An artifact is missing, altered or does not fit. The message names the file and what to do."""


class OverLength(ModelError):
    """The text has more tokens than the model reads. `about`: it was too long to count, `tokens` is an estimate."""

    def __init__(self, tokens: int, limit: int, *, about: bool = False) -> None:
        super().__init__(f"the text has {'about ' if about else ''}{tokens} tokens, the model reads {limit}")
        self.tokens = tokens
        self.limit = limit


class QueueFull(ModelError):
    """Admission refused; `retry_after` seconds from now there should be room."""

    def __init__(self, retry_after: float) -> None:
        retry_after = max(0.1, retry_after)
        super().__init__(f"the local model's queue is full; try again in {retry_after:.1f} s")
        self.retry_after = retry_after


class Expired(ModelError):
    """The deadline passed before the forward began."""


class NotFinite(ModelError):
    """The model gave NaN or infinity for this text."""


class EngineFailed(ModelError):
    """The forward raised, or the engine thread is dead."""
