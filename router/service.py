"""Everything a request needs, built once: the only place where parts are opened, wired together and closed."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Literal

import msgspec
import structlog

from cost.ledger import Ledger
from cost.prices import PriceTable
from cost.retention import Upkeep
from cost.types import NANO_PER_USD, LedgerError
from local_model.model import LocalModel
from providers.chain import Chain
from router import paths, policy
from router.admission import FrontDoor, Tenant
from router.ask import Ask, TaskRoute
from router.cache import keys
from router.cache.client import RedisCache
from router.cache.embedded import EmbeddedRedis, EmbeddedRedisError
from router.cache.types import Cache, NoCache
from router.config import Config
from router.config_file import Loaded, ledger_path
from router.local_tier import LocalTier
from router.pipeline import Pipeline
from router.problems import ProblemError
from router.reload import Adopted, taken_over
from router.reporting import budget, price_table
from router.siblings import ALONE, Place
from router.telemetry import Telemetry
from router.types import ANY_REASON, ClassifyRequest, Degraded
from router.wiring import config_digest, inspection_notes, lane_settings, make_provider

log = structlog.get_logger("crossover")


#: Requests leave next to no cycles: the usual thresholds (700, 10, 10) took a twentieth of a cache hit.
GARBAGE = (20_000, 50, 100)


class Service:
    """`open()`, then requests are answered once `state` is "ready", then `close()`."""

    def __init__(
        self, loaded: Loaded, *, on_fatal: Callable[[str], None] = lambda _reason: None, place: Place = ALONE
    ) -> None:
        """`place`: which of several workers this is; they count tenants' rates together."""
        self.config: Config = loaded.config
        self.loaded = loaded
        self._place = place
        self.on_fatal = on_fatal
        self.state: Literal["warming", "ready", "leaving", "draining", "failed"] = "warming"
        self.started = time.time()
        self.door = FrontDoor(self.config, rates=place.rates)
        self.telemetry = Telemetry()
        self.prices = price_table(self.config)
        self.local = LocalTier(place, on_death=self._model_died, on_batch=self.telemetry.batch.observe)
        self.ledger_path = ledger_path(loaded)
        self.redis_url: str = ""
        self.secret = b""  # keys the cache's digests
        self.cache: Cache = NoCache()
        self.ledger: Ledger
        self.config_digest = ""  # of the config that is served
        self.chain: Chain
        self._pipeline: Pipeline | None = None
        self._stack = AsyncExitStack()
        self._loading: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()

    # opening and closing ---------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Books, cache and providers now; the model in the background, so that /health answers meanwhile."""
        try:
            await self._open_parts()
        except BaseException:
            await self._stack.aclose()
            raise
        self._loading = asyncio.create_task(self._load())

    async def _open_parts(self) -> None:
        stack, telemetry, config = self._stack, self.telemetry, self.config
        self.ledger = await asyncio.to_thread(Ledger.open, self.ledger_path)
        stack.push_async_callback(asyncio.to_thread, self.ledger.close)
        if config.ledger.retention_days and self._place.number == 0:  # of several workers, one
            failed = partial(log.warning, "ledger_not_rolled_up")
            upkeep = Upkeep(self.ledger_path, config.ledger.retention_days, on_error=lambda e: failed(error=str(e)))
            upkeep.start()
            stack.push_async_callback(asyncio.to_thread, upkeep.stop)
        telemetry.ledger_writable.set_function(lambda: float(self.ledger.writable))
        telemetry.spent_today.set_function(lambda: self.ledger.spent_today_nano() / NANO_PER_USD)
        telemetry.price_age.set_function(lambda: float(self.prices.age_days(time.time())))
        telemetry.ready.set_function(lambda: float(self.state == "ready"))

        self.secret = await asyncio.to_thread(keys.load_secret, config.cache.secret, paths.state_dir())
        await self._open_cache()
        self.chain = Chain(
            [make_provider(name, config) for name in config.providers],
            ledger=self.ledger,
            prices=PriceTable.load(),  # a price in the config is its provider's alone: in its lane's settings
            budget=budget(self.config),
            lanes=lane_settings(config),
            on_attempt=telemetry.attempted,
        )
        stack.push_async_callback(self.chain.close)
        for name in config.providers:  # the alert looks at its increase, and a counter that begins at 1 has none
            telemetry.attempts.labels(name, "AuthFailed")
        self._serve(self.loaded)

    async def _open_cache(self) -> None:
        """A Redis that can't be had is no reason not to start: /ready says so, and it is tried again."""
        config, telemetry = self.config, self.telemetry
        if config.cache.url == "off":
            return
        self.redis_url = config.cache.url
        revive: Callable[[], Awaitable[None]] | None = None
        if config.cache.url == "embedded":
            server = EmbeddedRedis(paths.state_dir(), config.cache.memory_mb)
            self.redis_url = server.url
            self._stack.push_async_callback(asyncio.to_thread, server.stop)
            revive = partial(asyncio.to_thread, server.ensure)
            try:
                await asyncio.to_thread(server.start)
            except EmbeddedRedisError as error:
                log.warning("embedded_redis", error=str(error))
        cache = RedisCache(
            self.redis_url,
            secret=self.secret,
            ttl_s=config.cache.ttl_s,
            lookup_s=config.cache.lookup_ms / 1000,
            memory_bytes=config.cache.memory_bytes,
            on_lookup=lambda result: telemetry.lookups.labels(result, "redis").inc(),
            revive=revive,
        )
        telemetry.breaker.labels("redis").set_function(lambda: float(cache.breaker.open))
        telemetry.breaker.labels("redis_writes").set_function(lambda: float(cache.writes.open))
        telemetry.remembered.set_function(lambda: cache.memory_bytes)
        self._stack.push_async_callback(cache.close)
        await cache.open()
        self.cache = cache
        telemetry.caching = True

    async def _load(self) -> None:
        """Load and warm the model; a failure here is fatal, and says why."""
        self._stack.push_async_callback(self.local.close)
        try:
            await self.local.load(self.loaded, secret=self.secret, chain=self._chain_name())
        except Exception as error:  # noqa: BLE001 - whatever it is, the service can't work without a model
            self.state = "failed"
            log.error("load_failed", error=f"{type(error).__name__}: {error}")  # noqa: TRY400 - said in one line
            self.on_fatal(str(error))
            return
        await self._note_local()
        self._pipeline = Pipeline(
            cache=self.cache,
            frontier=self.chain,
            ledger=self.ledger,
            digest=partial(keys.text_digest, self.secret),
            local_deadline_s=self.config.server.local_deadline_ms / 1000,
            store_preview=self.config.cache.store_preview,
            on_ledger_error=lambda _error: self.telemetry.errors.labels("ledger").inc(),
        )
        self.telemetry.queue.set_function(lambda: float(self.model.stats()["waiting"]) if self.model else 0.0)
        gc.freeze()  # what was loaded stays: searching it for garbage again and again stops all threads
        gc.set_threshold(*GARBAGE)
        if self.state == "warming":  # it may be leaving already
            self.state = "ready"
        log.info("ready", tasks=list(self.tasks), seconds=round(time.time() - self.started, 1))

    async def reload(self, loaded: Loaded) -> Adopted:
        """Serve another config: what of it needs no restart (`router.reload`). Nothing fails meanwhile. Raises
        LoadError if heads or models of it can't be loaded; what serves now then serves on."""
        async with self._reloading:
            await self.wait_until_ready()
            started = time.monotonic()
            config, needs_restart = taken_over(self.config, loaded.config)
            loaded = msgspec.structs.replace(loaded, config=config)
            notes = [note for note in loaded.notes if note not in self.loaded.notes]
            await self.local.load(loaded, secret=self.secret, chain=self._chain_name())
            self._serve(loaded)
            self.telemetry.config_reloads.labels("loaded").inc()
            await self._note_local()
            return Adopted(list(self.tasks), round(time.monotonic() - started, 3), needs_restart, notes)

    def _serve(self, loaded: Loaded) -> None:
        """From the next request on; in one step, so that none sees half of it."""
        self.loaded, self.config = loaded, loaded.config
        self.config_digest = config_digest(self.secret, self.config)
        self.door.reload(self.config)
        self.chain.terms.budget = budget(self.config)
        self.telemetry.config_was_loaded(self.config_digest)
        self.telemetry.budget.set(self.config.budget_usd)
        self._refuses = frozenset[Degraded]({"budget"} if self.config.budget.when_out == "refuse" else ())

    async def _note_local(self) -> None:
        """For reports and `crossover cache get`: what answers from now on."""
        with suppress(LedgerError):  # whether the books can be written is seen elsewhere
            await self.ledger.note_machine(self.local.machine(self.config))
        if isinstance(self.cache, RedisCache):
            self.cache.publish(inspection_notes(self.tasks))

    def _chain_name(self) -> str:
        return " > ".join(f"{name}/{model_name}" for name, model_name in self.chain.configured())

    async def wait_until_ready(self) -> None:
        """For whoever uses the service in process. Raises what `pipeline` raises if the model could not be loaded."""
        if self._loading is not None:
            await self._loading
        _ = self.pipeline

    def leave(self) -> None:
        """/ready turns red; requests are still answered."""
        if self.state in ("warming", "ready"):
            self.state = "leaving"

    async def close(self) -> None:
        """Wait for the model to be loaded (a thread can't be stopped), then close all parts in reverse order."""
        self.state = "draining"
        if self._loading is not None:
            await asyncio.wait({self._loading})
        async with self._reloading:  # what is being loaded is closed with the rest
            if self._pipeline is not None:
                await self._pipeline.close()
            await self._stack.aclose()

    # what requests see -----------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> Mapping[str, TaskRoute]:
        return self.local.tasks

    @property
    def model(self) -> LocalModel | None:
        return self.local.model

    @property
    def pipeline(self) -> Pipeline:
        """Raises `warming`, `draining` or `model-failed` while there is no answering."""
        if self.state == "draining":
            raise ProblemError("draining", "send this to another replica", retry_after=1.0)
        if self._pipeline is None or self.state == "failed":
            if self.state == "failed":
                raise ProblemError("model-failed", "it died or can't be loaded; the process ends, to be started again")
            raise ProblemError("warming", "GET /ready says when to come back", retry_after=2.0)
        return self._pipeline

    def task(self, name: str | None) -> TaskRoute:
        """Raises `unknown-task`."""
        tasks = self.tasks
        if name is None and len(tasks) == 1:
            return next(iter(tasks.values()))
        if task := tasks.get(name or ""):
            return task
        why = "several tasks are configured; name one" if name is None else "no such task; configured are"
        raise ProblemError("unknown-task", f"{why}: {', '.join(sorted(tasks))}")

    def ask(
        self,
        request: ClassifyRequest,
        tenant: Tenant,
        request_id: str,
        started_ns: int,
        *,
        deadline_ms: int | None = None,
        read_cache: bool = True,
        write_cache: bool = True,
    ) -> Ask:
        """The request, with what the config and the caller's key say of it. Raises `unknown-task`."""
        route = self.task(request.task)
        configured = self.config.tasks[route.info.name]
        longest_ms = self.config.server.deadline_ms
        milliseconds = longest_ms if deadline_ms is None else min(deadline_ms, longest_ms)
        return Ask(
            request_id=request_id,
            tenant=tenant.name,
            task=route,
            texts=[request.input] if isinstance(request.input, str) else request.input,
            rules=policy.rules_for(
                configured.policy,
                configured.over_length,
                tenant=tenant.escalate,
                route=request.route,
                provider=bool(self.config.providers),
            ),
            deadline=asyncio.get_running_loop().time() + milliseconds / 1000,
            started_ns=started_ns,
            refuses=ANY_REASON if request.strict else self._refuses,
            coalesce=read_cache,
            read_cache=read_cache and self.telemetry.caching,
            write_cache=write_cache and self.telemetry.caching,
        )

    def degradations(self) -> list[str]:
        """What does not work while answers still flow. Shown by /ready, never as red."""
        found = self.cache.degradations() if isinstance(self.cache, RedisCache) else []
        if not self.ledger.writable:
            found.append("ledger")
        found += [f"provider:{lane['name']}" for lane in self.chain.status() if lane["breaker"] == "open"]
        return found

    # what the parts report -------------------------------------------------------------------------------------------

    def _model_died(self, error: BaseException) -> None:
        if self.state in ("draining", "failed"):
            return
        self.state = "failed"
        log.error("model_died", error=type(error).__name__)
        self.on_fatal(f"the local model died: {type(error).__name__}")
