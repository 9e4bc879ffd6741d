"""Reads a config file and the environment, and reports every problem at once: file, line, key, what to do."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from router import paths
from router.config import Config

ENV_PREFIX = "CROSSOVER_"


class ConfigError(Exception):
    """One or more problems; `str()` lists them all, one a line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Loaded(msgspec.Struct, frozen=True):
    config: Config
    path: Path  # relative paths in the config start from its folder
    notes: tuple[str, ...] = ()  # said at start: defaults that cost or expose something


def default_path() -> Path:
    """`./crossover.toml`, else the one shipped with the package."""
    local = Path("crossover.toml")
    return local if local.exists() else paths.shipped("crossover.toml", "crossover.toml")


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ, *, serving: bool = True) -> Loaded:
    """Raises `ConfigError` with all problems found. `serving` false: what only serving needs (keys) may be missing."""
    path = path or default_path()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; give another file with --config"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: not UTF-8 text"]) from None
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from None
    overrides = _apply_environment(tree, environ)

    where = _Places(path, text, overrides)
    problems: list[str] = []
    _check(Config, tree, (), where, problems)
    if problems:
        raise ConfigError(problems)
    config = msgspec.convert(tree, Config)
    problems += [f"{where(key)}: {message}" for key, message in _cross_checks(config, path, environ, serving)]
    if problems:
        raise ConfigError(problems)
    return Loaded(config, path, tuple(_notes(config)))


def relative_to(path: Path, value: str) -> Path:
    """A path in the config, seen from the config's folder."""
    return (path.parent / Path(value).expanduser()).resolve()


def head_path(path: Path, value: str) -> Path:
    """A task's `head`: a folder seen from the config, or the name of one shipped with `local_model`."""
    local = relative_to(path, value)
    shipped = Path(__file__).resolve().parent.parent / "local_model" / "heads" / value
    return shipped if "/" not in value and not local.exists() and shipped.exists() else local


def _cross_checks(
    config: Config, path: Path, environ: Mapping[str, str], serving: bool
) -> list[tuple[tuple[str, ...], str]]:
    """What no single key can show."""
    from cost.prices import PriceTable

    found: list[tuple[tuple[str, ...], str]] = []
    if not config.tasks:
        found.append((("tasks",), "no task is configured; add a [tasks.NAME] section, or use `serve --model`"))
    for name, task in config.tasks.items():
        here = ("tasks", name)
        if (task.head is None) == (task.model is None):
            found.append((here, "give either `head` (a folder made by `crossover learn`) or `model`, not both"))
        elif task.head is not None and not (head_path(path, task.head) / "manifest.json").exists():
            missing = head_path(path, task.head)
            found.append(((*here, "head"), f"no head at {missing}; make one with `crossover learn --task {name}`"))
        if task.over_length == "escalate" and not config.providers:
            found.append(((*here, "over_length"), '"escalate" needs a provider; use "truncate" or "reject"'))
    prices = PriceTable.load()
    for name, provider in config.providers.items():
        here = ("providers", name)
        on_this_machine = provider.base_url is not None and _is_loopback_url(provider.base_url)
        if serving and not environ.get(provider.key_variable) and not on_this_machine:
            found.append((here, f"the environment variable {provider.key_variable} is not set; it holds the API key"))
        if provider.price is None and prices.price(provider.model) is None:
            found.append(
                (
                    (*here, "model"),
                    f"no price is known for {provider.model!r} (price table of {prices.version}); "
                    f"add [providers.{name}.price] with dollars per million tokens, or correct the name",
                )
            )
        if provider.base_url and provider.base_url.startswith("http://") and not on_this_machine:
            found.append(((*here, "base_url"), "must be https:// unless it is on this machine"))
    if not config.auth.keys and not is_loopback(config.server.host):
        found.append(
            (
                ("server", "host"),
                f"{config.server.host} can be reached from other machines, but [[auth.keys]] is empty; add a key, "
                'or use host = "127.0.0.1"',
            )
        )
    if sum(hardware.this_machine for hardware in config.hardware.values()) > 1:
        found.append((("hardware",), "only one entry can have this_machine = true"))
    return found


def _notes(config: Config) -> list[str]:
    notes = []
    if config.providers and config.budget.usd_per_day is None:
        notes.append(
            f"budget.usd_per_day is not set: paid calls stop at ${config.budget_usd:.2f} a day (UTC); "
            "uncertain texts then get the local label, marked degraded"
        )
    if not config.providers:
        notes.append("no provider is configured: uncertain texts get the local label, marked degraded: no_provider")
    if not config.auth.keys:
        notes.append("no API keys are configured: only this machine can connect, and everybody is tenant 'local'")
    return notes


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _is_loopback_url(url: str) -> bool:
    match = re.match(r"^https?://(\[[^\]]+\]|[^/:]+)", url)
    return bool(match) and is_loopback(match.group(1) if match else "")


def _apply_environment(tree: dict[str, Any], environ: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Write `CROSSOVER_A__B=value` into `tree`; gives which variable set which key."""
    overrides: dict[tuple[str, ...], str] = {}
    for variable, value in environ.items():
        if not variable.startswith(ENV_PREFIX) or "__" not in variable:
            continue
        key = tuple(part.lower() for part in variable.removeprefix(ENV_PREFIX).split("__"))
        node = tree
        for part in key[:-1]:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                break
            node = child
        else:
            node[key[-1]] = _parse_value(value)
            overrides[key] = variable
    return overrides


def _parse_value(value: str) -> Any:
    """As TOML would read it; what is not TOML is a string: `redis://...` needs no quotes."""
    try:
        return tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return value


class _Places:
    """Where a key stands: `file:line: key`, or the environment variable that set it."""

    def __init__(self, path: Path, text: str, overrides: Mapping[tuple[str, ...], str]) -> None:
        self._path = path
        self._overrides = overrides
        self._lines: dict[tuple[str, ...], int] = {}
        section: tuple[str, ...] = ()
        for number, line in enumerate(text.splitlines(), 1):
            if header := re.match(r"^\s*\[\[?\s*([^\]]+?)\s*\]\]?", line):
                section = tuple(part.strip().strip("\"'") for part in header.group(1).split("."))
                self._lines.setdefault(section, number)
            elif key := re.match(r"^\s*([A-Za-z0-9_.\-\"']+)\s*=", line):
                parts = tuple(part.strip("\"'") for part in key.group(1).split("."))
                self._lines.setdefault(section + parts, number)

    def __call__(self, key: tuple[str, ...]) -> str:
        name = ".".join(key)
        if key in self._overrides:
            return f"environment variable {self._overrides[key]} ({name})"
        for length in range(len(key), 0, -1):
            if key[:length] in self._lines:
                return f"{self._path}:{self._lines[key[:length]]}: {name}"
        return f"{self._path}: {name}"


def _check(kind: Any, value: Any, key: tuple[str, ...], where: _Places, problems: list[str]) -> None:
    """Compare `value` with the type, descending into sections, so that one mistake does not hide the next."""
    if get_origin(kind) is types.UnionType and isinstance(value, dict):
        kind = next((k for k in get_args(kind) if isinstance(k, type) and issubclass(k, msgspec.Struct)), kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if not isinstance(value, dict):
            problems.append(f"{where(key)}: should be a section, not {value!r}")
            return
        hints = typing.get_type_hints(kind, include_extras=True)
        for name, item in value.items():
            if name in hints:
                _check(hints[name], item, (*key, name), where, problems)
            else:
                close = difflib.get_close_matches(name, hints, 1, 0.5)
                advice = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(hints)}"
                problems.append(f"{where((*key, name))}: unknown key; {advice}")
        problems += [
            f"{where(key)}: `{field.name}` is missing"
            for field in msgspec.structs.fields(kind)
            if field.required and field.name not in value
        ]
        return
    arguments = get_args(kind)
    if get_origin(kind) is dict and isinstance(value, dict):
        for name, item in value.items():
            _convert(name, arguments[0], (*key, name), where, problems, what="the name")
            _check(arguments[1], item, (*key, name), where, problems)
    elif get_origin(kind) is tuple and isinstance(value, list):
        for number, item in enumerate(value):
            _check(arguments[0], item, (*key, str(number)), where, problems)
    else:
        _convert(value, kind, key, where, problems)


def _convert(value: Any, kind: Any, key: tuple[str, ...], where: _Places, problems: list[str], what: str = "") -> None:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        secret = key[-1] in ("secret", "sha256", "url")  # a value here may be a secret somebody misplaced
        shown = "" if secret else f" (it is {value!r})"
        problems.append(f"{where(key)}: {what + ': ' if what else ''}{_in_words(str(error))}{shown}")


def _in_words(message: str) -> str:
    return message.split(" - at ")[0].replace("`", "").replace("Expected", "expected").replace("Invalid", "invalid")
