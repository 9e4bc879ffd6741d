"""Metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

from cost.types import NANO_PER_USD
from cost.types import Outcome as Attempt
from router.outcome import Outcome

#: Seconds: from a cache hit to a slow frontier.
LATENCY = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


#: Names of models that are told apart.
MOST_MODELS = 100
#: Not measured by a worker itself.
WORKER_UP = "crossover_worker_up"


class Telemetry:
    """One registry a service, so that two in one process (tests) don't share counters."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.caching = False  # whether a miss is one

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"crossover_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"crossover_{name}", text, labels, registry=registry)

        self.requests = counter("requests", "HTTP answers of /v1/classify", "status")
        self.inputs = counter("inputs", "Inputs answered", "task", "source", "degraded")
        self.errors = counter(
            "errors", "Inputs and requests that got a problem, by type; ledger: rows that were not written", "type"
        )
        self.escalations = counter("escalations", "Inputs that wanted a frontier answer", "task", "outcome")
        self.spend = counter(
            "spend_usd",
            "Paid calls, in dollars; estimated: settled at the upper bound, for want of a usage that makes sense",
            "provider",
            "model",
            "state",
        )
        self.saved = counter("saved_usd", "What cache hits had cost when they were answered first", "task")
        self.attempts = counter("provider_attempts", "Calls to a provider", "provider", "outcome")
        self.unpriced = gauge(
            "unpriced_models", "Models that a provider was asked for, or named, without a price", "provider"
        )
        self.lookups = counter(
            "cache_lookups",
            "Inputs by result (hit_*, miss) and the tier that hit; lookups that failed (error, corrupt)",
            "result",
            "tier",
        )
        self.remembered = gauge("cache_memory_bytes", "Answers that this process remembers, in front of Redis")
        self.coalesced = counter("coalesced", "Inputs that shared a computation in flight")
        self.latency = Histogram(
            "crossover_latency_seconds",
            "A request, from the first byte",
            ["source"],
            buckets=LATENCY,
            registry=registry,
        )
        self.stage = Histogram(
            "crossover_stage_seconds", "One stage of an input", ["stage"], buckets=LATENCY, registry=registry
        )
        self.batch = Histogram(
            "crossover_batch_size", "Texts a forward", buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=registry
        )
        self.queue = gauge("queue_items", "Texts waiting for the local model")
        self.queue_tokens = gauge("queue_tokens", "Tokens waiting for the local model, and the most that may", "kind")
        self.batch_tokens = gauge(
            "batch_tokens", "Tokens a batch may have now; less after running out of memory", "source"
        )
        self.out_of_memory = gauge(
            "out_of_memory_batches", "Batches that did not fit the device since it was loaded", "source"
        )
        self.model_parameters = gauge("model_parameters", "Parameters of a loaded encoder", "source")
        self.model_bytes = gauge("model_bytes", "Its weights as they are served", "source")
        self.budget = gauge("budget_usd", "The day's limit for paid calls")
        self.spent_today = gauge("spent_today_usd", "Spent and reserved since midnight UTC")
        self.budget_used = gauge(
            "budget_used_ratio",
            "Share of a budget that is spent or reserved: the day's, a task's, that of the tenant nearest its limit",
            "scope",
            "task",
        )
        self.breaker = gauge("breaker_open", "1 while the target is not asked", "target")
        self.ledger_writable = gauge("ledger_writable", "0: paid calls are stopped")
        self.config_reloads = counter("config_reloads", "Changed configs by result (loaded, refused)", "result")
        self.config_refused = gauge("config_refused", "1 while the config file holds what can't be served")
        self.config_loaded = gauge("config_loaded_timestamp_seconds", "When the config that is served was loaded")
        self.config_info = gauge("config_info", "1 for the config that is served", "digest")
        for result in ("loaded", "refused"):
            self.config_reloads.labels(result)
        gauge(WORKER_UP.removeprefix("crossover_"), "Of several workers: whether it answers", "worker")
        self.ready = gauge("ready", "1 once the model is warm")
        self.price_age = gauge("price_age_days", "Age of the price table")
        self.resident = gauge("resident_bytes", "Resident memory of this process")
        self.gpu_memory = gauge("gpu_memory_bytes", "GPU memory", "kind")
        self.gpu_utilization = gauge("gpu_utilization_ratio", "GPU utilization")
        self.resident.set_function(lambda: psutil.Process().memory_info().rss)

        self._models: set[str] = set()  # of paid calls
        #: `metric.labels(*labels)`, remembered: it takes a lock and is asked several times an input.
        self._child: Callable[..., Any] = lru_cache(maxsize=None)(lambda metric, *labels: metric.labels(*labels))

    def answered(self, task: str, outcomes: Sequence[Outcome], seconds: float) -> None:
        """Count one request's inputs."""
        child = self._child
        for outcome in outcomes:
            source, degraded = outcome.source, outcome.degraded
            child(self.inputs, task, source, degraded or "").inc()
            child(self.latency, source).observe(seconds)
            if outcome.local_us:
                child(self.stage, "queue").observe(outcome.queue_us / 1e6)
                child(self.stage, "local").observe(outcome.local_us / 1e6)
            if outcome.cache_us:
                child(self.stage, "cache").observe(outcome.cache_us / 1e6)
            if source == "cache":
                child(self.lookups, f"hit_{outcome.answered_by}", outcome.cache_tier or "").inc()
            elif outcome.cache_us and self.caching and not outcome.coalesced:
                child(self.lookups, "miss", "").inc()
            if source == "local" and degraded is None and not outcome.coalesced:
                continue
            if outcome.error is not None:
                child(self.errors, outcome.error).inc()
            if source == "frontier":
                child(self.escalations, task, "answered").inc()
            elif degraded is not None:
                child(self.escalations, task, degraded).inc()
            if outcome.frontier_us:
                child(self.stage, "frontier").observe(outcome.frontier_us / 1e6)
            if outcome.saved_nano:
                child(self.saved, task).inc(outcome.saved_nano / NANO_PER_USD)
            if outcome.coalesced:
                self.coalesced.inc()

    def attempted(self, provider: str, model: str, outcome: Attempt) -> None:
        """Count a paid call that has ended. What answered named the model: such names are not endless."""
        if model not in self._models:
            model = model if len(self._models) < MOST_MODELS else "other"
            self._models.add(model)
        estimated = outcome.usage is not None and outcome.usage.estimated
        self.attempts.labels(provider, outcome.error or "answered").inc()
        state = "estimated" if estimated else outcome.state
        self.spend.labels(provider, model, state).inc(outcome.cost_nano / NANO_PER_USD)

    def config_was_loaded(self, digest: str) -> None:
        self.config_refused.set(0)
        self.config_loaded.set_to_current_time()
        self.config_info.clear()
        self.config_info.labels(digest).set(1)

    def config_was_refused(self) -> None:
        self.config_refused.set(1)
        self.config_reloads.labels("refused").inc()


# of several workers ---------------------------------------------------------------------------------------------------

Family = tuple[str, str, str, list[tuple[str, dict[str, str], float]]]  # name, help, type, samples


def dump(registry: CollectorRegistry) -> bytes:
    """What a worker measured, for `together`."""
    return msgspec.msgpack.encode(
        [
            (f.name, f.documentation, f.type, [(s.name, s.labels, s.value) for s in f.samples])
            for f in registry.collect()
        ]
    )


def together(told: Mapping[int, bytes | None]) -> bytes:
    """The Prometheus text format, from what each worker dumped. Of several, each sample names its worker."""
    several = len(told) > 1
    merged: dict[str, Metric] = {}
    for number, dumped in told.items():
        worker = {"worker": str(number)} if several else {}
        for name, text, kind, samples in [] if dumped is None else msgspec.msgpack.decode(dumped, type=list[Family]):
            family = merged.setdefault(name, Metric(name, text, kind))
            for sample, labels, value in samples:
                family.add_sample(sample, {**labels, **worker}, value)
    if several:
        for number, dumped in told.items():
            merged[WORKER_UP].add_sample(WORKER_UP, {"worker": str(number)}, float(dumped is not None))
    return generate_latest(_Families(list(merged.values())))


class _Families(NamedTuple):
    """What `generate_latest` takes for a registry."""

    families: list[Metric]

    def collect(self) -> list[Metric]:
        return self.families
