"""The local model: tasks, and the encoders under them. Tasks on the same encoder share its engine and its queue."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from local_model import encoder as encoders
from local_model import probes
from local_model.batcher import OnBatch
from local_model.encoder import Encoder
from local_model.engines import cores, place
from local_model.footprint import Weights, require_fits
from local_model.heads import Head, load_head, model_head
from local_model.station import ModelSettings, Station
from local_model.types import LoadError, Prediction, TaskInfo

log = logging.getLogger(__name__)

__all__ = ["LocalModel", "ModelSettings", "TaskSpec"]


class TaskSpec(msgspec.Struct, frozen=True):
    """A task: a head folder on the settings' encoder, or (`model`) a sequence-classification model of its own.

    With neither the settings' source must be a sequence-classification model.
    """

    name: str
    head: Path | None = None
    model: str | None = None


class _Task(msgspec.Struct, frozen=True):
    info: TaskInfo
    head: Head
    station: Station


class LocalModel:
    """Implements `local_model.types.Classifier`. Life: `load` (blocks) → `warm` (blocks) → `start` → … → `close`.

    `with model:` says that it is in use; `idle` waits until nobody uses it any more.
    """

    def __init__(self, stations: Sequence[Station], tasks: Sequence[_Task], notes: tuple[str, ...] = ()) -> None:
        self._stations = stations
        self._notes = notes
        self._tasks = {task.info.name: task for task in tasks}
        self._started = False
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @classmethod
    def load(
        cls,
        settings: ModelSettings,
        tasks: Sequence[TaskSpec],
        *,
        cache_dir: Path,
        progress: Callable[[str], None] | None = None,
        beside: LocalModel | None = None,
    ) -> Self:
        """Find, check and load all that the tasks need; the first time an encoder is met its int8 graph is built.

        Tasks with the same source share one encoder, one engine and one queue; so does a model loaded `beside` another
        one that has the same encoder with the same settings. Raises LoadError.
        """
        found: dict[str, Encoder] = {}
        for spec in tasks:
            source = spec.model or settings.source
            if source not in found:
                revision = settings.revision if source == settings.source else None
                found[source] = encoders.find(source, revision=revision, max_tokens=settings.max_tokens)
        heads = {
            source: [spec.head for spec in tasks if spec.head is not None and (spec.model or settings.source) == source]
            for source in found
        }
        stations: dict[str, Station] = {}
        for source, encoder in found.items():
            for station in [] if beside is None else beside._stations:
                if station.would_serve(settings, encoder, heads[source]):
                    stations[source] = station
        new = [encoder for source, encoder in found.items() if source not in stations]
        notes = _proof(new, settings)
        opened: list[Station] = []
        try:
            for encoder in new:
                station = Station(settings, encoder, heads[encoder.source], cache_dir, progress)
                stations[encoder.source] = station
                opened.append(station)
            loaded = [_load_task(spec, stations[spec.model or settings.source]) for spec in tasks]
        except BaseException:
            for station in opened:
                station.close()
            raise
        return cls(list(stations.values()), loaded, notes)

    def warm(self) -> None:
        """Warm each encoder that does not run yet: see `Station.warm`; and check that each head answers the probe texts
        as where it was fitted. Blocks. Raises LoadError."""
        for station in self._stations:
            if not station.started:
                station.warm()
        for name, task in self._tasks.items():
            if task.station.probes is not None:
                kind = task.station.opened.engine.kind
                self._notes += probes.check(name, task.head, kind, task.station.probes)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the engine threads; answers are delivered on `loop`."""
        self._started = True
        for station in self._stations:
            station.start(loop)

    def limit(self, settings: ModelSettings) -> None:
        """How much may wait from now on, per encoder; `settings` is like those that it was loaded with."""
        for station in self._stations:
            station.limit(settings)

    def close(self, timeout: float = 10.0) -> None:
        """Finish what was admitted, for at most `timeout` seconds per encoder, and stop the threads. Blocks.

        An encoder that another model shares runs on.
        """
        started, self._started = self._started, False
        for station in self._stations:
            if started or not station.started:  # never started itself, or closed, it owns no part in what another runs
                station.close(timeout)

    def __enter__(self) -> None:
        self._users += 1
        self._unused.clear()

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def idle(self) -> None:
        """Until nobody uses it."""
        await self._unused.wait()

    @property
    def healthy(self) -> bool:
        """Every engine thread lives and none hangs."""
        return all(station.batcher.healthy for station in self._stations)

    def on_death(self, callback: Callable[[BaseException], None]) -> None:
        """`callback` is called on the loop, once per encoder, when an engine thread died."""
        for station in self._stations:
            station.batcher.on_death = callback

    def on_batch(self, callback: OnBatch) -> None:
        """`callback(texts)` is called on the engine's thread for every forward."""
        for station in self._stations:
            station.batcher.on_batch = callback

    # --- Classifier

    def tasks(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    def task(self, name: str) -> TaskInfo:
        """KeyError for a task that is not there."""
        return self._tasks[name].info

    def submit(
        self, task: str, texts: Sequence[str], *, truncate: bool, deadline: float | None, tenant: str = ""
    ) -> list[asyncio.Future[Prediction]]:
        """See `Classifier.submit`. KeyError for a task that is not there."""
        known = self._tasks[task]
        return known.station.submit(known.head, texts, truncate=truncate, deadline=deadline, tenant=tenant)

    def stats(self) -> dict[str, int]:
        """Sums over the encoders of `Batcher.stats`, as far as they can be added."""
        total: dict[str, int] = {}
        for station in self._stations:
            for key, value in station.batcher.stats().items():
                total[key] = total.get(key, 0) + value
        return total

    def status(self) -> dict[str, Any]:
        """What `/v1/status` shows of the model: JSON types only, no text."""
        notes = [*self._notes, *(note for station in self._stations for note in station.notes)]
        notes += [note for task in self._tasks.values() for note in task.head.notes]
        return {
            "healthy": self.healthy,
            **self.stats(),
            "notes": list(dict.fromkeys(notes)),
            "encoders": [station.status() for station in self._stations],
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


def _proof(new: Sequence[Encoder], settings: ModelSettings) -> tuple[str, ...]:
    """That all of them fit the device together, before anything is loaded; raises LoadError where they do not.

    On a device that the config names, and of threads that would all have their longest text at once, a doubt is only
    told: the estimate is an upper bound.
    """
    if not new:
        return ()
    device = place(settings.engine, settings.device)
    usual: Weights = "bf16" if device.startswith("cuda") else "fp32" if settings.engine == "torch" else "int8"
    precision: Weights = usual if settings.precision == "auto" else settings.precision
    try:
        require_fits(new, device=device, precision=precision, threads=settings.threads or cores())
    except LoadError as doubt:
        if settings.device == "auto":
            require_fits(new, device=device, precision=precision)  # else only all threads at their longest are too much
        log.warning("%s", doubt)
        return (str(doubt),)
    return ()


def _load_task(spec: TaskSpec, station: Station) -> _Task:
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


def _digest(*parts: str) -> str:
    """sha256 over length-prefixed parts, hex."""
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()
