"""The local model: tasks, the encoders under them, and one batcher per encoder."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from local_model import encoder as encoders
from local_model import tokenize
from local_model.batcher import Batcher, OnBatch
from local_model.encoder import DEFAULT, Encoder
from local_model.engines import EngineName, Opened, open_engine
from local_model.heads import Head, load_head, model_head
from local_model.scoring import Scored, Text, score
from local_model.types import EngineFailed, LoadError, ModelError, OverLength, Prediction, TaskInfo

WARM_TOKENS = 32  # a usual text: what the rate is measured with
WARM_ROUNDS = 8


class ModelSettings(msgspec.Struct, frozen=True):
    """How encoders are run. `source`: "all-MiniLM-L6-v2", a folder, or a hub id with `revision` ("name@revision")."""

    source: str = DEFAULT
    revision: str | None = None
    engine: EngineName = "auto"
    device: str = "auto"  # "cpu", "cuda", "cuda:1"
    threads: int = 0  # 0: all cores
    queue_items: int = 256  # texts waiting, per encoder
    max_tokens: int | None = None  # None: what the model was made for


class TaskSpec(msgspec.Struct, frozen=True):
    """A task: a head folder on the settings' encoder, or (`model`) a sequence-classification model of its own.

    With neither the settings' source must be a sequence-classification model.
    """

    name: str
    head: Path | None = None
    model: str | None = None


class _Station(msgspec.Struct, frozen=True):
    """One encoder in service."""

    encoder: Encoder
    tokenizer: tokenize.TextTokenizer
    opened: Opened
    batcher: Batcher


class _Task(msgspec.Struct, frozen=True):
    info: TaskInfo
    head: Head
    station: _Station


class LocalModel:
    """Implements `local_model.types.Classifier`. Life: `load` (blocks) → `warm` (blocks) → `start` → … → `close`."""

    def __init__(self, stations: Sequence[_Station], tasks: Sequence[_Task]) -> None:
        self._stations = stations
        self._tasks = {task.info.name: task for task in tasks}

    @classmethod
    def load(
        cls,
        settings: ModelSettings,
        tasks: Sequence[TaskSpec],
        *,
        cache_dir: Path,
        progress: Callable[[str], None] | None = None,
    ) -> Self:
        """Find, check and load all that the tasks need; the first time an encoder is met its int8 graph is built.

        Tasks with the same source share one encoder, one engine and one queue. Raises LoadError.
        """
        stations: dict[str, _Station] = {}
        loaded: list[_Task] = []
        for spec in tasks:
            source = spec.model or settings.source
            if source not in stations:
                stations[source] = _open(settings, source, cache_dir, progress)
            loaded.append(_load_task(spec, stations[source]))
        return cls(list(stations.values()), loaded)

    def warm(self) -> None:
        """Run each engine a few times, the longest text first (out of memory shows now), and measure its rate. Blocks.

        Raises LoadError if the model gives nonsense.
        """
        for station in self._stations:
            engine = station.opened.engine
            longest = _probe(station, station.encoder.max_tokens)
            usual = [_probe(station, min(WARM_TOKENS, station.encoder.max_tokens))] * engine.max_items
            output = engine.forward([longest])
            if not np.isfinite(output.embeddings).all():
                raise LoadError(f"{station.encoder.source} gives values that are not finite on {engine.kind}")
            engine.forward(usual)
            started = time.perf_counter()
            for _ in range(WARM_ROUNDS):
                engine.forward(usual)
            station.batcher.observe(WARM_ROUNDS * len(usual), time.perf_counter() - started)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the engine threads; answers are delivered on `loop`."""
        for station in self._stations:
            station.batcher.start(loop)

    def close(self, timeout: float = 10.0) -> None:
        """Finish what was admitted, for at most `timeout` seconds per encoder, and stop the threads. Blocks."""
        for station in self._stations:
            station.batcher.close(timeout)

    @property
    def healthy(self) -> bool:
        """Every engine thread lives and none hangs."""
        return all(station.batcher.healthy for station in self._stations)

    def on_death(self, callback: Callable[[BaseException], None]) -> None:
        """`callback` is called on the loop, once per encoder, when an engine thread died."""
        for station in self._stations:
            station.batcher.on_death = callback

    def on_batch(self, callback: OnBatch) -> None:
        """`callback(texts, tokens, microseconds)` is called on the engine's thread after every forward."""
        for station in self._stations:
            station.batcher.on_batch = callback

    # --- Classifier

    def tasks(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    def task(self, name: str) -> TaskInfo:
        """KeyError for a task that is not there."""
        return self._tasks[name].info

    def submit(
        self, task: str, texts: Sequence[str], *, truncate: bool, deadline: float | None
    ) -> list[asyncio.Future[Prediction]]:
        """See `Classifier.submit`. KeyError for a task that is not there."""
        known = self._tasks[task]
        batcher, tokenizer = known.station.batcher, known.station.tokenizer
        batcher.room(len(texts))  # before any work is done for a request that would be refused
        ready: list[Text] = []
        refused: dict[int, ModelError] = {}
        for position, text in enumerate(texts):
            try:
                encoded = tokenizer.encode(text, truncate=truncate)
            except OverLength as error:
                refused[position] = error
            except UnicodeError:
                refused[position] = EngineFailed("the text is not valid Unicode")
            else:
                ready.append(Text(encoded.ids, encoded.tokens, encoded.truncated, known.head))
        admitted = iter(batcher.submit(ready, deadline=deadline))
        return [_failed(refused[i]) if i in refused else next(admitted) for i in range(len(texts))]

    def stats(self) -> dict[str, int]:
        """Sums over the encoders of `Batcher.stats`: waiting, running, batches, texts, expired, cancelled, failed."""
        total: dict[str, int] = {}
        for station in self._stations:
            for key, value in station.batcher.stats().items():
                total[key] = total.get(key, 0) + value
        return total

    def status(self) -> dict[str, Any]:
        """What `/v1/status` shows of the model: JSON types only, no text."""
        notes = [note for station in self._stations for note in (*station.encoder.notes, *station.opened.notes)]
        notes += [note for task in self._tasks.values() for note in task.head.notes]
        return {
            "healthy": self.healthy,
            **self.stats(),
            "notes": list(dict.fromkeys(notes)),
            "encoders": [_describe(station) for station in self._stations],
            "tasks": {
                name: {
                    "model": task.info.model,
                    "source": task.station.encoder.source,
                    "labels": len(task.info.labels),
                    "multi_label": task.info.multi_label,
                    "temperature": task.head.temperature,
                    "max_tokens": task.info.max_tokens,
                }
                for name, task in self._tasks.items()
            },
        }


def _open(settings: ModelSettings, source: str, cache_dir: Path, progress: Callable[[str], None] | None) -> _Station:
    revision = settings.revision if source == settings.source else None
    found = encoders.find(source, revision=revision, max_tokens=settings.max_tokens)
    opened = open_engine(
        found,
        name=settings.engine,
        device=settings.device,
        threads=settings.threads,
        cache_dir=cache_dir,
        progress=progress,
    )
    engine = opened.engine

    def run(batch: Sequence[Text]) -> list[Scored | ModelError]:
        return score(engine.forward([text.ids for text in batch]), batch)

    batcher = Batcher(
        run,
        threads=engine.threads,
        max_items=engine.max_items,
        max_tokens=engine.max_tokens,
        queue_items=settings.queue_items,
    )
    return _Station(found, tokenize.load(found, cache_dir), opened, batcher)


def _load_task(spec: TaskSpec, station: _Station) -> _Task:
    encoder, engine = station.encoder, station.opened.engine
    head = model_head(encoder) if spec.head is None else load_head(spec.head, engine.kind, encoder)
    identity = (
        f"labels={_digest(*head.labels)}",
        f"encoder={encoder.digest}",
        f"tokenizer={encoder.tokenizer_digest}",
        f"engine={engine.kind}/{engine.recipe}",
        f"head={head.digest}",
        f"temperature={head.temperature!r}",
        f"max_tokens={encoder.max_tokens}",
        f"multi_label={head.multi_label}",
    )
    info = TaskInfo(
        name=spec.name,
        labels=head.labels,
        descriptions=head.descriptions,
        model=f"{spec.name}@{_digest(*identity)[:8]}",
        identity=identity,
        max_tokens=encoder.max_tokens,
        multi_label=head.multi_label,
    )
    return _Task(info, head, station)


def _describe(station: _Station) -> dict[str, Any]:
    encoder, opened = station.encoder, station.opened
    return {
        "source": encoder.source,
        "revision": encoder.revision,
        "digest": encoder.digest,
        "engine": opened.engine.kind.partition("-")[0],
        "kind": opened.engine.kind,
        "why": opened.why,
        "device": opened.engine.device,
        "threads": opened.engine.threads,
        "max_tokens": encoder.max_tokens,
        "texts_per_second": round(station.batcher.rate),
        **opened.engine.status(),
        **station.batcher.stats(),
    }


def _probe(station: _Station, tokens: int) -> list[int]:
    """Token ids of a made-up text of exactly `tokens` tokens."""
    return station.tokenizer.encode("a " * tokens, truncate=True).ids


def _digest(*parts: str) -> str:
    """sha256 over length-prefixed parts, hex."""
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()


def _failed(error: ModelError) -> asyncio.Future[Prediction]:
    future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future
