"""Where things are kept: the user's state folder, the cache folder, and what is shipped with the package."""

from __future__ import annotations

import os
from pathlib import Path


def state_dir() -> Path:
    """Ledger, embedded Redis, run files, the cache secret: what should survive a restart."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(os.environ.get("CROSSOVER_STATE_DIR") or Path(base) / "crossover")


def cache_dir() -> Path:
    """Built model artifacts: what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CROSSOVER_CACHE_DIR") or Path(base) / "crossover")


def shipped(name: str, in_checkout: str) -> Path:
    """A data file: inside the package when installed, at its place in the repository in a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / name
    return installed if installed.exists() else here.parent / in_checkout


def relative_to(config: Path, value: str) -> Path:
    """A path in the config, seen from the config's folder."""
    return (config.parent / Path(value).expanduser()).resolve()


def head_path(config: Path, value: str) -> Path:
    """A task's `head`: a folder seen from the config, or the name of one shipped with `local_model`."""
    local = relative_to(config, value)
    shipped_head = Path(__file__).resolve().parent.parent / "local_model" / "heads" / value
    return shipped_head if "/" not in value and not local.exists() and shipped_head.exists() else local


def model_source(config: Path, value: str) -> str:
    """[model] `source` or a task's `model`: the folder seen from the config if there is one, else `value`, a hub id."""
    local = relative_to(config, value)
    return str(local) if local.is_dir() else value
