"""A classifier without a model: finds keywords. For the unit tests of what stands around the local tier."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from local_model.scoring import best
from local_model.types import Expired, OverLength, Prediction, QueueFull, TaskInfo

HIDDEN = 8


class KeywordClassifier:
    """Implements `local_model.types.Classifier`: a label wins if one of its keywords is in the text (case ignored).

    `tasks`: task -> label -> keywords, 2 or more labels. The first label that matches gets `confidence`, the others
    share the rest evenly. A text that matches nothing gets the first label by the smallest margin over the others.
    A token is a word. `fail`: called with each text before it is answered; what it returns (not None) is raised by
    that text's future. `hold()` keeps answers back until `release()`.
    """

    def __init__(
        self,
        tasks: Mapping[str, Mapping[str, Sequence[str]]],
        *,
        confidence: float = 0.97,
        max_tokens: int = 256,
        queue_items: int = 256,
        fail: Callable[[str], Exception | None] | None = None,
    ) -> None:
        self._tasks = {name: dict(labels) for name, labels in tasks.items()}
        self._confidence = confidence
        self._max_tokens = max_tokens
        self._queue_items = queue_items
        self._fail = fail
        self._waiting: list[tuple[asyncio.Future[Prediction], str, str, bool, float | None]] | None = None
        self.seen: list[str] = []  # every text that was computed, in order

    def task(self, name: str) -> TaskInfo:
        """KeyError for a task that is not there."""
        labels = tuple(self._tasks[name])
        digest = hashlib.sha256(repr((self._tasks[name], self._confidence)).encode()).hexdigest()
        return TaskInfo(
            name=name,
            labels=labels,
            descriptions={},
            model=f"{name}@{digest[:8]}",
            identity=("keywords", digest, str(self._max_tokens)),
            max_tokens=self._max_tokens,
        )

    def submit(
        self,
        task: str,
        texts: Sequence[str],
        *,
        truncate: bool,
        deadline: float | None,
        tenant: str = "",  # noqa: ARG002
    ) -> list[asyncio.Future[Prediction]]:
        """See `Classifier.submit`."""
        loop = asyncio.get_running_loop()
        if task not in self._tasks:
            raise KeyError(task)
        if self._waiting and len(self._waiting) + len(texts) > self._queue_items:  # an empty queue takes any request
            raise QueueFull(0.5)
        futures: list[asyncio.Future[Prediction]] = []
        for text in texts:
            future: asyncio.Future[Prediction] = loop.create_future()
            futures.append(future)
            if self._waiting is not None:
                self._waiting.append((future, task, text, truncate, deadline))
            else:
                loop.call_soon(self._answer, future, task, text, truncate, deadline)
        return futures

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def status(self) -> dict[str, Any]:
        return {
            **self.stats(),
            "healthy": True,
            "notes": [],
            "encoders": [],
            "tasks": {name: {} for name in self._tasks},
        }

    def stats(self) -> dict[str, int]:
        waiting = len(self._waiting) if self._waiting is not None else 0
        seen = len(self.seen)
        return {
            "waiting": waiting,
            "waiting_tokens": waiting,
            "running": 0,
            "batches": seen,
            "texts": seen,
            "expired": 0,
            "failed": 0,
            "out_of_memory": 0,
            "cancelled": 0,
            "batch_tokens": self._max_tokens,
            "queue_tokens": self._queue_items,
        }

    def tasks(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    @property
    def healthy(self) -> bool:
        return True

    def hold(self) -> None:
        """From now on texts wait in a queue of `queue_items`."""
        self._waiting = []

    def release(self) -> None:
        """Answer what waits, and answer at once from now on."""
        waiting, self._waiting = self._waiting or [], None
        for item in waiting:
            self._answer(*item)

    def _answer(
        self, future: asyncio.Future[Prediction], task: str, text: str, truncate: bool, deadline: float | None
    ) -> None:
        if future.done():
            return
        if deadline is not None and future.get_loop().time() >= deadline:
            future.set_exception(Expired("the deadline passed before the forward began"))
            return
        tokens = len(text.split()) + 2  # as a real tokenizer adds two
        if tokens > self._max_tokens and not truncate:
            future.set_exception(OverLength(tokens, self._max_tokens))
            return
        if self._fail is not None and (error := self._fail(text)) is not None:
            future.set_exception(error)
            return
        self.seen.append(text)
        probabilities = self._probabilities(task, text)
        future.set_result(
            Prediction(
                probabilities=probabilities,
                embedding=_embedding(text),
                top=best(probabilities),
                tokens=tokens,
                truncated=tokens > self._max_tokens,
                queue_us=10,
                run_us=100,
            )
        )

    def _probabilities(self, task: str, text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        labels = self._tasks[task]
        low = text.lower()
        hits = (i for i, words in enumerate(labels.values()) if any(word.lower() in low for word in words))
        hit = next(hits, None)
        n = len(labels)
        best = 1 / n + 0.01 if hit is None else self._confidence
        scores = np.full(n, (1 - best) / (n - 1), np.float32)
        scores[hit or 0] = best
        return scores


def _embedding(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A unit vector that depends on the text alone."""
    raw = np.frombuffer(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=HIDDEN).digest(), np.uint8)
    vector = raw.astype(np.float32) - 127.5
    return (vector / np.linalg.norm(vector)).astype(np.float32)
