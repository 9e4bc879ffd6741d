"""The local model in service: loaded, warmed, watched, and replaced while requests run."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from cost.types import NANO_PER_USD, Machine
from local_model import engines, footprint
from local_model.encoder import find
from local_model.model import LocalModel, ModelSettings, TaskSpec
from local_model.types import LoadError
from router import paths
from router.ask import TaskRoute
from router.config import Config, Hardware
from router.config_file import Loaded
from router.siblings import Place
from router.wiring import model_settings, task_route, task_specs, this_machine

log = structlog.get_logger("crossover")

#: What the local tier's device time costs when [hardware] names no machine: a 2-core box at list price.
DEFAULT_HARDWARE = Hardware(usd_per_hour=0.0816, this_machine=True)


class LocalTier:
    """`load` (again and again), then `close`. A request takes its task's route out of `tasks` once, and with it the
    model and the cache identity that belong together."""

    def __init__(
        self, place: Place, *, on_death: Callable[[BaseException], None], on_batch: Callable[[int], None]
    ) -> None:
        self.model: LocalModel | None = None
        self.tasks: Mapping[str, TaskRoute] = {}
        self._place = place
        self._wanted: Wanted | None = None  # what `model` was loaded from
        self._on_death = on_death
        self._on_batch = on_batch
        self._watching: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    async def load(self, loaded: Loaded, *, secret: bytes, chain: str) -> None:
        """Serve the tasks of this config. Where it names other heads or models than before, or what lies there was
        changed, they are loaded and warmed beside what serves now; requests that are inside finish on the old model,
        which is closed when the last of them has left. Raises LoadError; the old model then serves on."""
        wanted = await asyncio.to_thread(_wanted, loaded, self._place)
        old = self.model
        same = old is not None and self._wanted is not None and wanted.is_like(self._wanted)
        model = old if old is not None and same else await self._warmed(wanted, old)
        try:
            nano_per_us = _nano_per_us(loaded.config, _threads(model) * self._place.of)
            tasks = {
                name: task_route(name, loaded.config, model, secret, chain, nano_per_us) for name in loaded.config.tasks
            }
        except BaseException:
            if model is not old:
                await asyncio.to_thread(model.close)
            raise
        self.tasks = tasks
        model.limit(wanted.settings)
        if model is old:
            return
        model.on_death(self._on_death)
        model.on_batch(self._on_batch)
        model.start(asyncio.get_running_loop())
        self.model, self._wanted = model, wanted
        if old is not None:
            retiring = asyncio.create_task(_retire(old))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    async def _warmed(self, wanted: Wanted, old: LocalModel | None) -> LocalModel:
        settings = await asyncio.to_thread(on_a_gpu_of_its_own, wanted.settings, wanted.specs, self._place)
        model = await asyncio.to_thread(
            LocalModel.load,
            settings,
            wanted.specs,
            cache_dir=paths.cache_dir(),
            progress=lambda text: log.info("loading", step=text),
            beside=old,
        )
        try:
            await asyncio.to_thread(model.warm)
        except BaseException:
            await asyncio.to_thread(model.close)
            raise
        return model

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        if self.model is not None:
            await asyncio.to_thread(self.model.close)
        await asyncio.gather(*self._retiring)

    async def _watch(self) -> None:
        """A forward that hangs is as dead as a thread that ended: the supervisor starts a new process."""
        while self.model is not None and self.model.healthy:  # noqa: ASYNC110 - absence of progress has no event
            await asyncio.sleep(1.0)
        self._on_death(TimeoutError())

    def machine(self, config: Config) -> Machine:
        """What the ledger notes of this machine: what capacity is computed from."""
        assert self.model is not None
        encoders = self.model.status()["encoders"]
        hardware = this_machine(config)
        return Machine(
            threads=_threads(self.model) * self._place.of,
            device=encoders[0]["device"],
            cores=engines.cores(),
            engine=encoders[0]["kind"],
            usd_per_hour=hardware.usd_per_hour if hardware else None,
        )


class Wanted(NamedTuple):
    """What a model is loaded from."""

    settings: ModelSettings
    specs: list[TaskSpec]
    files: list[tuple[str, int, int]]  # of heads and of models in folders: path, time of change, size

    def is_like(self, other: Wanted) -> bool:
        """Whether a model that was loaded from one would do for both."""
        return self.settings.is_like(other.settings) and self == other._replace(settings=self.settings)


def _wanted(loaded: Loaded, place: Place) -> Wanted:
    settings, specs = model_settings(loaded, place.of), task_specs(loaded)
    folders = {Path(source) for spec in specs for source in (spec.head, spec.model) if source is not None}
    files = [file for folder in {*folders, Path(settings.source)} if folder.is_dir() for file in folder.iterdir()]
    stamps = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return Wanted(settings, specs, sorted(stamps))


def on_a_gpu_of_its_own(settings: ModelSettings, specs: Sequence[TaskSpec], place: Place) -> ModelSettings:
    """Each of several workers takes a GPU. Raises LoadError where there are too few, with the memory it would take: on
    one GPU they would not be faster than one worker, which keeps it busy."""
    where = engines.place(settings.engine, settings.device)
    if place.of == 1 or not where.startswith("cuda"):
        return settings
    gpus = 1 if ":" in where else _gpus()
    if place.of <= gpus:
        return msgspec.structs.replace(settings, device=f"cuda:{place.number}")
    sources = {spec.model or settings.source for spec in specs}
    precision: footprint.Weights = "bf16" if settings.precision == "auto" else settings.precision
    each = footprint.CUDA_CONTEXT
    for source in sources:
        revision = settings.revision if source == settings.source else None
        shape = footprint.shape_of(find(source, revision=revision, max_tokens=settings.max_tokens))
        each += footprint.need(shape, precision, device=where)
    raise LoadError(
        f"server.workers = {place.of}, but {gpus} GPU{'s' if gpus > 1 else ''}: each worker would take about "
        f"{each / 1e9:.1f} GB of it, together {place.of * each / 1e9:.1f} GB, and be no faster than one, which keeps a "
        f'GPU busy; use --workers {gpus}, or device = "cpu"'
    )


def _gpus() -> int:
    """As many as CUDA will see."""
    import pynvml

    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return len(visible.split(","))
    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetCount())


async def _retire(model: LocalModel) -> None:
    await model.idle()
    on_gpu = any(encoder["device"].startswith("cuda") for encoder in model.status()["encoders"])
    await asyncio.to_thread(model.close)
    if on_gpu:
        # A compiled network is part of a cycle, and out of the collector's sight since it was loaded.
        del model
        gc.unfreeze()
        gc.collect()  # stops the loop for some tenths of a second
        gc.freeze()
    log.info("replaced", step="the old model is closed")


def _threads(model: LocalModel) -> int:
    return sum(encoder["threads"] for encoder in model.status()["encoders"])


def _nano_per_us(config: Config, threads: int) -> float:
    """What a microsecond of one of so many engine threads costs."""
    hardware = this_machine(config) or DEFAULT_HARDWARE
    return hardware.usd_per_hour * NANO_PER_USD / 3600e6 / threads
