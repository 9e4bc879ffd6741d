"""Reads a config file and the environment, and reports every problem at once: file, line, key, what to do.

This module compares what was written with the types in `router.config`; what only several keys, the disk and the
environment show together is in `router.config_checks`.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from router import config_checks, paths
from router.config import Config
from router.config_checks import Key

ENV_PREFIX = "CROSSOVER_"
#: Keys whose values are not shown: people put secrets there, if only by mistake. So is everything below [auth].
SECRET = {"api_key_env", "base_url", "url", "secret", "sha256"}
_NOTHING: Any = object()  # what is left of a value with a mistake in it


class ConfigError(Exception):
    """One or more problems; `str()` lists them all, one a line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Loaded(msgspec.Struct, frozen=True):
    config: Config
    path: Path  # relative paths in the config start from its folder
    notes: tuple[str, ...] = ()  # said at start: defaults that cost or expose something
    overridden: frozenset[Key] = frozenset()  # keys that the environment set


def default_path() -> Path:
    """`./crossover.toml`, else the one shipped with the package."""
    local = Path("crossover.toml")
    return local if local.exists() else paths.shipped("crossover.toml", "crossover.toml")


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ, *, serving: bool = True) -> Loaded:
    """Raises `ConfigError` with all problems found. `serving` false: what only serving needs may be missing or wrong
    (tasks, heads, models, keys, prices)."""
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
        line = re.search(r"\(at line (\d+)", str(error))
        where = f"{path}:{line.group(1) if line else len(text.splitlines())}"
        raise ConfigError([f"{where}: not valid TOML: {error}"]) from None
    return load_tree(tree, path, environ, text=text, serving=serving)


def load_tree(
    tree: Mapping[str, Any],
    path: Path,
    environ: Mapping[str, str] = os.environ,
    *,
    text: str = "",
    serving: bool = True,
) -> Loaded:
    """A config that is in no file, or not only: `path` is what messages call it and where relative paths start,
    `text` where lines are counted. The environment overrides it. Raises `ConfigError`."""
    written = copy.deepcopy(dict(tree))
    problems: list[str] = []
    overrides = _apply_environment(written, environ, problems)
    where = _Places(path, text, overrides)
    # What has no mistake in it is checked further, so that one run names them all.
    config = msgspec.convert(_check(Config, written, (), where, problems), Config)
    if serving:
        found = config_checks.check(config, written, path, environ)
        problems += [f"{where(key)}: {message}" for key, message in found]
    if problems:
        raise ConfigError(problems)
    notes = (*config_checks.notes(config, path), *_nearly(environ))
    return Loaded(config, path, notes, frozenset(overrides))


def ledger_path(loaded: Loaded) -> Path:
    """[ledger] path, else the one in the state folder."""
    path = loaded.config.ledger.path
    return paths.relative_to(loaded.path, path) if path else paths.state_dir() / "ledger.db"


# the environment -----------------------------------------------------------------------------------------------------


def _apply_environment(tree: dict[str, Any], environ: Mapping[str, str], problems: list[str]) -> dict[Key, str]:
    """Write `CROSSOVER_A__B=value` into `tree`; gives which variable set which key. Names are taken as they stand in
    the tree, whatever their case ([tasks.Banking]), else in lower case."""
    overrides: dict[Key, str] = {}
    for variable, value in environ.items():
        if not variable.startswith(ENV_PREFIX) or "__" not in variable:
            continue
        *sections, last = variable.removeprefix(ENV_PREFIX).split("__")
        node: Any = tree
        key: Key = ()
        for section in sections:
            key = (*key, _as_written(section, node))
            node = node.setdefault(key[-1], {})
            if not isinstance(node, dict):
                problems.append(
                    f"environment variable {variable}: {'.'.join(key)} is not a section, so nothing in it can be set; "
                    "change the file, or unset the variable"
                )
                break
        else:
            key = (*key, _as_written(last, node))
            node[key[-1]] = value if _is_text(_kind_at(key)) else _parse_value(value)
            overrides[key] = variable
    return overrides


def _nearly(environ: Mapping[str, str]) -> list[str]:
    """Variables with one underscore too few. No problem: Kubernetes sets some like them for a service of this name."""
    meant = {
        f"{ENV_PREFIX}{section}_{name}".upper(): f"{ENV_PREFIX}{section}__{name}".upper()
        for section, kind in _hints(Config).items()
        for name in _hints(kind)
    }
    return [
        f"environment variable {variable} is not read; did you mean {meant[variable]} (two underscores)?"
        for variable in environ
        if variable in meant
    ]


def _as_written(name: str, node: Mapping[str, Any]) -> str:
    lower = name.lower()
    return lower if lower in node else next((known for known in node if known.lower() == lower), lower)


def _kind_at(key: Key) -> Any:
    """The type of the value at `key`; None if there is no such key."""
    kind: Any = Config
    for name in key:
        kind = _section(kind)
        kind = get_args(kind)[1] if get_origin(kind) is dict else _hints(kind).get(name)
    return kind


def _is_text(kind: Any) -> bool:
    if get_origin(kind) in (types.UnionType, typing.Union, Annotated):
        return any(_is_text(part) for part in get_args(kind))
    return kind is str


def _parse_value(value: str) -> Any:
    """As TOML would read it; what is not TOML is a string."""
    try:
        return tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return value


# where a key stands --------------------------------------------------------------------------------------------------


class _Places:
    """Where a key stands: `file:line: key`, or the environment variable that set it."""

    def __init__(self, path: Path, text: str, overrides: Mapping[Key, str]) -> None:
        self._path = path
        self._overrides = overrides
        self._lines: dict[Key, int] = {}
        section: Key = ()
        for number, line in enumerate(text.splitlines(), 1):
            if header := re.match(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?", line):
                section = tuple(part.strip().strip("\"'") for part in header.group(2).split("."))
                self._lines.setdefault(section, number)
                if header.group(1) == "[[":  # the next of a list
                    before = sum(key[:-1] == section and key[-1].isdigit() for key in self._lines)
                    section = (*section, str(before))
                    self._lines[section] = number
            elif key := re.match(r"^\s*([A-Za-z0-9_.\-\"']+)\s*=", line):
                parts = tuple(part.strip("\"'") for part in key.group(1).split("."))
                self._lines.setdefault(section + parts, number)

    def __call__(self, key: Key) -> str:
        name = ".".join(key)
        for length in range(len(key), 0, -1):
            if key[:length] in self._overrides:
                return f"environment variable {self._overrides[key[:length]]} ({name})"
            if key[:length] in self._lines:
                return f"{self._path}:{self._lines[key[:length]]}: {name}"
        # a section that only the environment speaks of
        if variable := next((self._overrides[known] for known in self._overrides if known[: len(key)] == key), None):
            return f"environment variable {variable} ({name})"
        return f"{self._path}: {name}"


# the types -----------------------------------------------------------------------------------------------------------


def _check(kind: Any, value: Any, key: Key, where: _Places, problems: list[str]) -> Any:
    """Compare `value` with the type, descending into sections, so that one mistake does not hide the next.

    Gives what is left of it without the mistakes; `_NOTHING` if it can't be used at all.
    """
    kind = _section(kind)
    if _hints(kind):
        return _check_section(kind, value, key, where, problems)
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            problems.append(f"{where(key)}: should be a section")
            return _NOTHING
        name_kind, item_kind = get_args(kind)
        kept = {}
        for name, item in value.items():
            good = _convert(name, name_kind, (*key, name), where, problems, what="the name: ")
            kept[name] = _check(item_kind, item, (*key, name), where, problems) if good is not _NOTHING else good
        return {name: item for name, item in kept.items() if item is not _NOTHING}
    if get_origin(kind) is tuple and isinstance(value, list):
        items = [_check(get_args(kind)[0], item, (*key, str(i)), where, problems) for i, item in enumerate(value)]
        return [item for item in items if item is not _NOTHING]
    return _convert(value, kind, key, where, problems)


def _check_section(kind: Any, value: Any, key: Key, where: _Places, problems: list[str]) -> Any:
    if not isinstance(value, dict):
        problems.append(f"{where(key)}: should be a section")
        return _NOTHING
    hints = _hints(kind)
    kept = {}
    for name, item in value.items():
        if name in hints:
            kept[name] = _check(hints[name], item, (*key, name), where, problems)
        else:
            close = difflib.get_close_matches(name, hints, 1, 0.5)
            advice = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(hints)}"
            problems.append(f"{where((*key, name))}: unknown key; {advice}")
    required = {field.name for field in msgspec.structs.fields(kind) if field.required}
    problems += [f"{where(key)}: `{name}` is missing" for name in hints if name in required and name not in value]
    kept = {name: item for name, item in kept.items() if item is not _NOTHING}
    return kept if required <= kept.keys() else _NOTHING


def _convert(value: Any, kind: Any, key: Key, where: _Places, problems: list[str], what: str = "") -> Any:
    try:
        msgspec.convert(value, kind)
        return value
    except msgspec.ValidationError as error:
        told = str(error).split(" - at ")[0].replace("`", "").replace("Expected", "expected")
    if choices := _choices(kind):
        told = f"permitted: {', '.join(choices)}"
    elif isinstance(value, str) and (described := _description(kind)):
        told = f"expected {described}"
    secret = key[0] == "auth" or key[-1] in SECRET
    shown = "" if secret or isinstance(value, dict | list) else f"is {value!r}; "
    problems.append(f"{where(key)}: {what}{shown}{told}")
    return _NOTHING


def _choices(kind: Any) -> list[str]:
    """Of a Literal, if need be inside a union."""
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return [choice for part in get_args(kind) for choice in _choices(part)]


def _description(kind: Any) -> str:
    """What a pattern wants, in words."""
    if isinstance(kind, msgspec.Meta):
        return kind.description or ""
    return next(filter(None, map(_description, get_args(kind))), "")


def _section(kind: Any) -> Any:
    """`Price | None` is `Price`: TOML has no null."""
    return (
        next((part for part in get_args(kind) if _hints(part)), kind) if get_origin(kind) is types.UnionType else kind
    )


def _hints(kind: Any) -> dict[str, Any]:
    """The keys of a section, with their types; empty for what is none."""
    is_section = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    return typing.get_type_hints(kind, include_extras=True) if is_section else {}
