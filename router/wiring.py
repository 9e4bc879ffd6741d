"""From the configuration to the parts: what is loaded, who is asked, what an answer's identity is made of."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from cost.types import NANO_PER_USD
from local_model.engines import cores
from local_model.model import LocalModel, ModelSettings, TaskSpec
from providers.settings import LaneSettings
from providers.types import Example, Label, Provider
from router.ask import TaskRoute
from router.cache import inspect, keys
from router.config import Config, Hardware
from router.config_file import Loaded
from router.paths import head_path, model_source
from router.reporting import own_price

#: Of the local deadline: as much work may wait for the local model, so that what is admitted is also answered in time.
QUEUE_PART = 0.6
#: Of what may wait, for one of several tenants.
TENANT_SHARE = 0.5


def model_settings(loaded: Loaded, workers: int = 1) -> ModelSettings:
    """Several workers share the cores; a number of threads that the config names is each worker's."""
    model = loaded.config.model
    tenants = {key.tenant for key in loaded.config.auth.keys}
    return ModelSettings(
        source=model_source(loaded.path, model.source),
        revision=model.revision,
        engine=model.engine,
        device=model.device,
        threads=model.threads or (max(1, cores() // workers) if workers > 1 else 0),
        precision=model.precision,
        optimize=model.optimize,
        queue_s=QUEUE_PART * loaded.config.server.local_deadline_ms / 1000,
        queue_tokens=model.queue_tokens,
        tenant_share=TENANT_SHARE if len(tenants) > 1 else 1.0,
        max_tokens=model.max_tokens,
    )


def task_specs(loaded: Loaded) -> list[TaskSpec]:
    specs = []
    for name, task in loaded.config.tasks.items():
        model = None if task.model is None else model_source(loaded.path, task.model)
        if model is not None and task.revision is not None:
            model = f"{model}@{task.revision}"
        head = None if task.head is None else head_path(loaded.path, task.head)
        specs.append(TaskSpec(name=name, head=head, model=model))
    return specs


def this_machine(config: Config) -> Hardware | None:
    return next((hardware for hardware in config.hardware.values() if hardware.this_machine), None)


def make_provider(name: str, config: Config) -> Provider:
    from providers.build import build

    provider = config.providers[name]
    return build(
        provider.kind,
        name=name,
        model=provider.model,
        # On this machine a server may ask for none; in a cloud there are other credentials.
        api_key=os.environ.get(provider.key_variable) or ("" if provider.via else "none"),
        settings=provider.settings,
    )


def lane_settings(config: Config) -> dict[str, LaneSettings]:
    """By provider name."""

    def nano(usd: float | None) -> int | None:
        return None if usd is None else round(usd * NANO_PER_USD)

    return {
        name: LaneSettings(
            provider.max_in_flight,
            nano(provider.usd_per_hour),
            own_price=None if provider.price is None else own_price(provider.price),
        )
        for name, provider in config.providers.items()
    }


def task_route(
    name: str, config: Config, model: LocalModel, secret: bytes, chain: str, nano_per_us: float
) -> TaskRoute:
    """Everything that changes an answer goes into its identity; the policy, applied on read, does not."""
    from providers.prompt import prompt_digest

    info, task = model.task(name), config.tasks[name]
    labels = tuple(
        Label(label, task.descriptions.get(label) or info.descriptions.get(label, "")) for label in info.labels
    )
    examples = tuple(Example(example.text, example.label) for example in task.examples)
    local_parts = dict(part.partition("=")[::2] for part in info.identity)
    frontier_parts = {"prompt and labels": prompt_digest(labels, task.instructions, examples), "providers": chain}
    return TaskRoute(
        info=info,
        classifier=model,
        nano_per_us=nano_per_us,
        labels=labels,
        label_names=frozenset(info.labels),
        instructions=task.instructions,
        examples=examples,
        local_parts=local_parts,
        frontier_parts=frontier_parts,
        local_identity=identity(secret, "local", local_parts),
        frontier_identity=identity(secret, "frontier", frontier_parts),
    )


def identity(secret: bytes, kind: str, parts: Mapping[str, str]) -> str:
    return keys.identity_digest(secret, (kind, *(text for part in parts.items() for text in part)))


def config_digest(secret: bytes, config: Config) -> str:
    """Tells configs apart, and nothing of what is in them."""
    return keys.identity_digest(secret, ("config", msgspec.json.encode(config, order="deterministic").decode()))


def inspection_notes(tasks: Mapping[str, TaskRoute]) -> dict[str, bytes]:
    """For `crossover cache get`: what today's identities are made of."""
    notes: dict[str, bytes] = {}
    for name, route in tasks.items():
        notes[keys.current_key(name)] = msgspec.json.encode(
            inspect.Current(route.local_identity, route.frontier_identity)
        )
        notes[keys.identity_key(route.local_identity)] = msgspec.json.encode(route.local_parts)
        notes[keys.identity_key(route.frontier_identity)] = msgspec.json.encode(route.frontier_parts)
    return notes
