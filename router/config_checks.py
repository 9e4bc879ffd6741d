"""What no single key of the config shows: other keys, the disk and the environment belong to it."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cost.prices import PriceTable
from providers.addresses import is_loopback, is_url
from providers.settings import MOST_DECISION_LABELS
from router import paths, provider_checks
from router.config import LOCAL_TENANT, Config, Model, Task

Key = tuple[str, ...]
Problem = tuple[Key, str]


def check(config: Config, written: Mapping[str, Any], path: Path, environ: Mapping[str, str]) -> Iterator[Problem]:
    """Keys and messages. `config` is what could be used of what was `written`: what is absent there, mistakes and
    all, is what nobody gave."""
    if not written.get("tasks"):
        yield ("tasks",), "no task is configured; add a [tasks.NAME] section, or use `serve --model`"
    for name, task in config.tasks.items():
        yield from _task(("tasks", name), task, written["tasks"][name], path)
        yield from _too_many_labels(name, task, config, path)
        if task.over_length == "escalate" and not written.get("providers"):
            yield ("tasks", name, "over_length"), '"escalate" needs a provider; use "truncate" or "reject"'
    source, revision = config.model.source, config.model.revision
    yield from _source(("model", "source"), path, source)
    if revision is not None and (source == Model().source or _is_folder(path, source)):
        yield ("model", "revision"), "only a model from the hub has a revision; take it out"
    for name, provider in config.providers.items():
        yield from provider_checks.check(("providers", name), provider, environ)
    if not is_url(config.cache.url):
        yield ("cache", "url"), "this is no URL that can be used; write redis://USER:PASSWORD@HOST:PORT/NUMBER"
    given = written.get("auth")
    if not is_loopback(config.server.host) and not (isinstance(given, dict) and given.get("keys")):
        yield (
            ("server", "host"),
            f"{config.server.host} can be reached from other machines, but [[auth.keys]] is empty; add a key, "
            'or use host = "127.0.0.1"',
        )
    tenants = _tenants(given)
    for name in config.auth.limits:
        if name not in tenants:
            yield ("auth", "limits", name), f"no key in [[auth.keys]] is for tenant {name}"
    yield from _budget(config, written, tenants)
    yield from _hardware(config)
    yield from _prices(config)


def notes(config: Config, path: Path) -> Iterator[str]:
    """Said at start: defaults that cost or expose something."""
    budget = config.budget
    if config.providers and budget.usd_per_day is None:
        then = "are then refused (503)" if budget.when_out == "refuse" else "then get the local label, marked degraded"
        yield (
            f"budget.usd_per_day is not set: paid calls stop at ${config.budget_usd:.2f} a day (UTC); "
            f"uncertain texts {then}"
        )
    for scope, limits in (("tasks", budget.tasks), ("tenants", budget.tenants)):
        for name, usd in limits.items():
            if usd > config.budget_usd:
                yield (
                    f"budget.{scope}.{name} is ${usd:g} a day, but budget.usd_per_day (${config.budget_usd:g}) "
                    "stops all paid calls before"
                )
    if not config.providers:
        yield "no provider is configured: uncertain texts get the local label, marked degraded: no_provider"
    if config.providers and (old := PriceTable.load().stale(time.time())):
        yield old
    if not config.auth.keys:
        yield "no API keys are configured: only this machine can connect, and everybody is tenant 'local'"
    models = [(f"tasks.{name}", task.model, task.revision) for name, task in config.tasks.items() if task.model]
    if any(task.head for task in config.tasks.values()) and config.model.source != Model().source:
        models.append(("model", config.model.source, config.model.revision))
    for section, source, revision in models:
        if revision is None and "@" not in source and not _is_folder(path, source):
            yield (
                f"[{section}] {source} is taken from the model hub as it is today; pin its commit with `revision`, "
                "and answers and cache stay what they are"
            )


def _tenants(auth: Any) -> list[str]:
    """Whom the keys are for, whatever else is wrong with them."""
    keys = auth.get("keys") if isinstance(auth, dict) else None
    found = [key.get("tenant") for key in keys if isinstance(key, dict)] if isinstance(keys, list) else []
    return [name for name in found if isinstance(name, str)]


def _budget(config: Config, written: Mapping[str, Any], tenants: list[str]) -> Iterator[Problem]:
    tasks = written.get("tasks")
    for name in config.budget.tasks:
        if isinstance(tasks, dict) and name not in tasks:
            yield ("budget", "tasks", name), f"there is no task {name}; {_meant(name, tasks)}"
    known = [*tenants, LOCAL_TENANT]  # that one needs no key: the command line's, and without keys everybody's
    for name in config.budget.tenants:
        if name not in known:
            yield ("budget", "tenants", name), f"no key in [[auth.keys]] is for tenant {name}; {_meant(name, known)}"


def _hardware(config: Config) -> Iterator[Problem]:
    if sum(hardware.this_machine for hardware in config.hardware.values()) > 1:
        yield ("hardware",), "only one entry can have this_machine = true"
    for name, machine in config.hardware.items():
        here = ("hardware", name)
        if machine.billing == "always_on":
            for key in ("cold_start_s", "idle_s"):
                if getattr(machine, key) is not None:
                    yield (*here, key), 'this belongs to billing = "autoscaled"; add that, or take it out'
            if machine.min_replicas == 0:
                yield (*here, "min_replicas"), 'always on means at least 1; 0 needs billing = "autoscaled"'
        elif machine.this_machine:
            yield (*here, "this_machine"), "the machine that serves is on as long as it serves; take out `billing`"


def _prices(config: Config) -> Iterator[Problem]:
    """A price that has changed has a day for each change."""
    for name, provider in config.providers.items():
        if provider.price is None:
            continue
        here = ("providers", name, "price")
        rows = (*provider.price.earlier, provider.price)
        if len(rows) > 1 and any(row.since is None for row in rows[1:]):
            yield (
                (*here, "since"),
                "each price after the first of `earlier` needs the day it holds from: since = 2026-10-07",
            )
        days = [row.since for row in rows if row.since is not None]
        if days != sorted(set(days)):
            yield (*here, "earlier"), "the oldest price comes first, each with a later day than the one before"
        if days and days[-1] > datetime.now(UTC).date():
            yield (
                (*here, "since"),
                f"{days[-1]} is not yet; write it down on the day, calls are booked at this price now",
            )


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean `{close[0]}`?" if close else f"known: {', '.join(sorted(set(known)))}"


def _task(here: Key, task: Task, written: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    if ("head" in written) == ("model" in written):
        yield here, "give either `head` (a folder made by `crossover learn`) or `model`, not both"
    if "revision" in written and "model" not in written:
        yield (*here, "revision"), "this belongs to a `model` from the hub, and there is none; take it out"
    if task.model is not None:
        yield from _source((*here, "model"), path, task.model)
        if task.revision is not None and _is_folder(path, task.model):
            yield (*here, "revision"), "only a model from the hub has a revision; take it out"
    if task.head is None:
        return
    manifest = paths.head_path(path, task.head) / "manifest.json"
    if not manifest.exists():
        yield (*here, "head"), f"no head at {manifest.parent}; make one with `crossover learn --task {here[-1]}`"
        return
    labels = _labels_of(manifest)
    if labels is None:
        yield (*here, "head"), f"{manifest} can't be read; make the head anew with `crossover learn`"
        return
    yield from _labels((*here, "policy", "labels"), task.policy.labels, labels)
    yield from _labels((*here, "descriptions"), task.descriptions, labels)
    for place, example in enumerate(task.examples):
        for (*_, name), what in _labels(here, [example.label], labels):
            yield (*here, "examples", str(place)), f"label {name!r}: {what}"


def _labels_of(manifest: Path) -> list[str] | None:
    """From the plain JSON: the type it has is in `local_model.heads`, which needs numpy."""
    try:
        return [str(label["name"]) for label in json.loads(manifest.read_bytes())["labels"]]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _too_many_labels(name: str, task: Task, config: Config, path: Path) -> Iterator[Problem]:
    if task.head is None or task.policy.escalate == "never":
        return
    count = len(_labels_of(paths.head_path(path, task.head) / "manifest.json") or ())
    for provider, asked in config.providers.items():
        if asked.kind == "openai-decisions" and count > MOST_DECISION_LABELS:
            yield (
                ("providers", provider, "kind"),
                f"OpenAI Decisions takes {MOST_DECISION_LABELS} labels at most and the head of task {name} has "
                f'{count}; use kind = "openai"',
            )


def _labels(here: Key, named: Iterable[str], labels: list[str]) -> Iterator[Problem]:
    for label in named:
        if label not in labels:
            close = difflib.get_close_matches(label, labels, 3, 0.5) or labels[:3]
            yield (*here, label), f"the head has no such label; it has {', '.join(close)}, ... ({len(labels)} in all)"


def _source(here: Key, path: Path, source: str) -> Iterator[Problem]:
    if (source.startswith((".", "/", "~")) or source.count("/") > 1) and not _is_folder(path, source):
        yield here, f"there is no folder {paths.relative_to(path, source)}; a model of the hub is written OWNER/NAME"


def _is_folder(path: Path, source: str) -> bool:
    return paths.relative_to(path, source).is_dir()
