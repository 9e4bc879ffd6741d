"""A running service follows its config file: when the file is read, and what of it is taken over."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog

from local_model.types import LoadError
from providers.addresses import is_loopback
from router.config import Config
from router.config_file import ConfigError, Loaded
from router.problems import ProblemError

log = structlog.get_logger("crossover")

#: Seconds between two looks at the file.
POLL_S = 0.5
#: What can't be changed while the service runs: sections, and keys of sections.
RESTART = (
    ("server", "host"),
    ("server", "port"),
    ("server", "workers"),
    ("server", "local_deadline_ms"),  # the length of the model's queue hangs on it
    ("cache",),
    ("providers",),
    ("ledger",),
)


class Adopted(msgspec.Struct, frozen=True):
    """What came of a reload."""

    tasks: list[str]
    seconds: float
    needs_restart: list[str]  # keys that were changed, and are served as they were
    notes: list[str]  # said at start too: defaults that cost or expose something


class RefusedError(Exception):
    """A worker could not take it over; the message is for people."""


def taken_over(old: Config, new: Config) -> tuple[Config, list[str]]:
    """What is served from now on, and which keys of `new` wait for a restart. Raises RefusedError."""
    waiting: list[str] = []
    for section, *names in RESTART:
        served, wanted = getattr(old, section), getattr(new, section)
        kept = msgspec.structs.replace(wanted, **{name: getattr(served, name) for name in names}) if names else served
        waiting += _differences(msgspec.to_builtins(kept), msgspec.to_builtins(wanted), section)
        new = msgspec.structs.replace(new, **{section: kept})
    if not new.auth.keys and not is_loopback(new.server.host):  # given with --host, perhaps: the file has another
        raise RefusedError(f"auth.keys: {new.server.host} can be reached from other machines; it can't go without keys")
    return new, waiting


def _differences(old: Any, new: Any, key: str) -> list[str]:
    if old == new:
        return []
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [key]
    missing = object()
    names = [*old, *(name for name in new if name not in old)]
    return [
        found
        for name in names
        for found in _differences(old.get(name, missing), new.get(name, missing), f"{key}.{name}")
    ]


class ConfigFile:
    """`read` gives the config as it is now, or raises ConfigError."""

    def __init__(self, path: Path, read: Callable[[], Loaded]) -> None:
        self.path = path
        self._read = read
        self._seen = self._moving = self._stamp()
        self._told: tuple[bytes, str] | None = None

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def changed(self) -> bool:
        """Whether there is something new to read. Not before it has lain still since this was last asked: an editor may
        be half-way through it."""
        now = self._stamp()
        still, self._moving = now == self._moving, now
        return still and now != self._seen

    def read(self) -> Loaded:
        """Raises ConfigError."""
        self._seen = self._stamp()
        return self._read()

    def is_news(self, why: str) -> bool:
        """Whether `why` this content is refused was not said yet."""
        content = b""
        with suppress(OSError):
            content = hashlib.blake2b(self.path.read_bytes()).digest()
        news, self._told = (content, why) != self._told, (content, why)
        return news


async def follow(
    file: ConfigFile | None,
    hangup: asyncio.Event,
    adopt: Callable[[Loaded], Awaitable[Adopted]],
    refused: Callable[[], None],
) -> None:
    """Until cancelled: hand what is new to `adopt`, when the file was changed or `hangup` is set. Whatever is wrong is
    told in a line, `refused()` is called, and what serves now serves on. Without a file only `hangup` is answered."""
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await hangup.wait()
        asked = hangup.is_set()
        hangup.clear()
        try:
            if file is None:
                if asked:
                    log.error(
                        "reload_failed", error="this service was started with --model: there is no config to read"
                    )
                continue
            if not asked and not await asyncio.to_thread(file.changed):
                continue
            adopted = await adopt(await asyncio.to_thread(file.read))
        except Exception as error:  # noqa: BLE001 - whatever it is, what serves now serves on
            told = isinstance(error, ConfigError | LoadError | ProblemError | RefusedError)
            why = str(error) if told else f"{type(error).__name__}: {error}"
            refused()
            if file is not None and (file.is_news(why) or asked):
                log.error("reload_failed", error=why, kept="the old config and model serve on")  # noqa: TRY400
            continue
        fields: dict[str, Any] = {"tasks": adopted.tasks, "seconds": adopted.seconds}
        if adopted.needs_restart:
            fields["needs_restart"] = ", ".join(adopted.needs_restart)
        if adopted.notes:
            fields["notes"] = adopted.notes
        log.info("reloaded", **fields)
