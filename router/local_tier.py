"""The local model in service: loaded, warmed, watched, and replaced while requests run."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Mapping

import structlog

from cost.types import NANO_PER_USD, Machine
from local_model.engines import cores
from local_model.model import LocalModel
from router import paths
from router.config import Config, Hardware
from router.config_file import Loaded
from router.pipeline import TaskRoute
from router.wiring import model_settings, task_route, task_specs, this_machine

log = structlog.get_logger("crossover")

#: What the local tier's device time costs when [hardware] names no machine: a 2-core box at list price.
DEFAULT_HARDWARE = Hardware(usd_per_hour=0.0816, this_machine=True)


class LocalTier:
    """`load` (again and again), then `close`. A request takes its task's route out of `tasks` once, and with it the
    model and the cache identity that belong together."""

    def __init__(self, *, on_death: Callable[[BaseException], None], on_batch: Callable[[int], None]) -> None:
        self.model: LocalModel | None = None
        self.tasks: Mapping[str, TaskRoute] = {}
        self._on_death = on_death
        self._on_batch = on_batch
        self._watching: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    async def load(self, loaded: Loaded, *, secret: bytes, chain: str) -> None:
        """Load and warm what the config names, beside what serves now; then swap. Requests that are inside finish on
        the old one, which is closed when the last of them has left. Raises LoadError; the old one then serves on."""
        old = self.model
        model = await asyncio.to_thread(
            LocalModel.load,
            model_settings(loaded),
            task_specs(loaded),
            cache_dir=paths.cache_dir(),
            progress=lambda text: log.info("loading", step=text),
            beside=old,
        )
        try:
            await asyncio.to_thread(model.warm)
            nano_per_us = _nano_per_us(loaded.config, model)
            tasks = {
                name: task_route(name, loaded.config, model, secret, chain, nano_per_us) for name in loaded.config.tasks
            }
        except BaseException:
            await asyncio.to_thread(model.close)
            raise
        model.on_death(self._on_death)
        model.on_batch(self._on_batch)
        model.start(asyncio.get_running_loop())
        self.model, self.tasks = model, tasks
        if old is not None:
            retiring = asyncio.create_task(_retire(old))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

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
            threads=_threads(self.model),
            device=encoders[0]["device"],
            cores=cores(),
            engine=encoders[0]["kind"],
            usd_per_hour=hardware.usd_per_hour if hardware else None,
        )


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


def _nano_per_us(config: Config, model: LocalModel) -> float:
    """What a microsecond of one engine thread costs."""
    hardware = this_machine(config) or DEFAULT_HARDWARE
    return hardware.usd_per_hour * NANO_PER_USD / 3600e6 / _threads(model)
