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
