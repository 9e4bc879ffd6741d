"""What no single key of the config shows: other keys, the disk and the environment belong to it."""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from router import paths
from router.config import Config, Model, Provider, Task

Key = tuple[str, ...]
Problem = tuple[Key, str]

#: A value of `api_key_env` that is shown in messages. What looks otherwise may be the key itself.
VARIABLE = re.compile(r"^[A-Z][A-Z0-9]{0,15}(_[A-Z0-9]{1,16}){1,7}$")


def check(config: Config, written: Mapping[str, Any], path: Path, environ: Mapping[str, str]) -> Iterator[Problem]:
    """Keys and messages. `config` is what could be used of what was `written`: what is absent there, mistakes and
    all, is what nobody gave."""
    if not written.get("tasks"):
        yield ("tasks",), "no task is configured; add a [tasks.NAME] section, or use `serve --model`"
    for name, task in config.tasks.items():
        yield from _task(("tasks", name), task, written["tasks"][name], path)
        if task.over_length == "escalate" and not written.get("providers"):
            yield ("tasks", name, "over_length"), '"escalate" needs a provider; use "truncate" or "reject"'
    source, revision = config.model.source, config.model.revision
    yield from _source(("model", "source"), path, source)
    if revision is not None and (source == Model().source or _is_folder(path, source)):
        yield ("model", "revision"), "only a model from the hub has a revision; take it out"
    for name, provider in config.providers.items():
        yield from _provider(("providers", name), provider, environ)
    if not _is_url(config.cache.url):
        yield ("cache", "url"), "this is no URL that can be used; write redis://USER:PASSWORD@HOST:PORT/NUMBER"
    given = written.get("auth")
    if not is_loopback(config.server.host) and not (isinstance(given, dict) and given.get("keys")):
        yield (
            ("server", "host"),
            f"{config.server.host} can be reached from other machines, but [[auth.keys]] is empty; add a key, "
            'or use host = "127.0.0.1"',
        )
    tenants = {key.tenant for key in config.auth.keys}
    for name in config.auth.limits:
        if name not in tenants:
            yield ("auth", "limits", name), f"no key in [[auth.keys]] is for tenant {name}"
    if sum(hardware.this_machine for hardware in config.hardware.values()) > 1:
        yield ("hardware",), "only one entry can have this_machine = true"


def notes(config: Config, path: Path) -> Iterator[str]:
    """Said at start: defaults that cost or expose something."""
    if config.providers and config.budget.usd_per_day is None:
        yield (
            f"budget.usd_per_day is not set: paid calls stop at ${config.budget_usd:.2f} a day (UTC); "
            "uncertain texts then get the local label, marked degraded"
        )
    if not config.providers:
        yield "no provider is configured: uncertain texts get the local label, marked degraded: no_provider"
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


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


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
    try:  # the plain JSON: the type it has is in `local_model.heads`, which needs numpy
        labels = [str(label["name"]) for label in json.loads(manifest.read_bytes())["labels"]]
    except (OSError, ValueError, LookupError, TypeError):
        yield (*here, "head"), f"{manifest} can't be read; make the head anew with `crossover learn`"
        return
    yield from _labels((*here, "policy", "labels"), task.policy.labels, labels)
    yield from _labels((*here, "descriptions"), task.descriptions, labels)


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


def _provider(here: Key, provider: Provider, environ: Mapping[str, str]) -> Iterator[Problem]:
    from cost.prices import PriceTable

    url = provider.base_url
    on_this_machine = url is not None and _is_url(url) and is_loopback(urlsplit(url).hostname or "")
    variable, key = provider.key_variable, environ.get(provider.key_variable, "")
    named = f"the environment variable {variable}"
    if not VARIABLE.match(variable):
        named = "the environment variable that api_key_env names (its name, not the key itself, belongs there)"
    if not key and not on_this_machine:
        yield here, f"{named} is not set; it holds the API key"
    if not key.isascii() or (key and not key.isprintable()) or " " in key:
        yield here, f"{named} has blanks, line breaks or other signs in it that no API key has; set it again"
    prices = PriceTable.load()
    if provider.price is None and prices.price(provider.model) is None:
        yield (
            (*here, "model"),
            f"no price is known for {provider.model!r} (price table of {prices.version}); "
            f"add [providers.{here[-1]}.price] with dollars per million tokens, or correct the name",
        )
    if url is None:
        return
    if not _is_url(url):
        yield (*here, "base_url"), "this is no URL that can be used; write https://HOST or https://HOST:PORT/PATH"
    elif "@" in urlsplit(url).netloc:
        yield (*here, "base_url"), "this holds a user or a password; the key belongs into the environment"
    elif url.startswith("http://") and not on_this_machine:
        yield (*here, "base_url"), "must be https:// unless it is on this machine"


def _is_url(url: str) -> bool:
    """Whether clients can take it apart: their own messages would quote it, password and all."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    has_place = bool(parts.hostname) if parts.scheme in ("http", "https", "redis", "rediss") else True
    return has_place and url.isprintable() and " " not in url
