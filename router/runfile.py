"""A running service leaves a note of itself, so that `crossover cache` and `crossover report` find it unaided."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import psutil

from router import paths


class RunFile(msgspec.Struct, frozen=True):
    pid: int
    started: float  # of the process: a pid may come again
    url: str
    redis_url: str  # of the embedded one; another is in the config, perhaps with a password
    ledger: str
    config: str
    state_dir: str


def folder() -> Path:
    return Path(os.environ.get("CROSSOVER_RUN_DIR") or paths.state_dir() / "run")


@contextmanager
def announce(url: str, redis_url: str, ledger: Path, config: Path) -> Iterator[None]:
    """Write the note, and remove it in the end."""
    pid = os.getpid()
    note = RunFile(
        pid,
        psutil.Process(pid).create_time(),
        url,
        redis_url,
        str(ledger),
        str(config.resolve()),
        str(paths.state_dir().resolve()),
    )
    path = folder() / f"{pid}.json"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_suffix(".tmp")
    draft.touch(mode=0o600)
    draft.write_bytes(msgspec.json.encode(note))
    draft.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def running() -> list[RunFile]:
    """Services that are alive, the latest first; notes of dead ones are removed."""
    found: list[RunFile] = []
    for path in folder().glob("*.json"):
        try:
            note = msgspec.json.decode(path.read_bytes(), type=RunFile)
        except (OSError, msgspec.MsgspecError):
            continue
        try:
            alive = abs(psutil.Process(note.pid).create_time() - note.started) < 1.0
        except psutil.Error:
            alive = False
        if alive:
            found.append(note)
        else:
            with suppress(OSError):
                path.unlink()
    return sorted(found, key=lambda note: note.started, reverse=True)
