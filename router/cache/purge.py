"""Removing entries: from Redis, and from the memory of every replica. It takes effect everywhere or says where not."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from cost.types import NANO_PER_USD
from router.cache import keys
from router.cache.inspect import Found, InspectError, Selection, entries, replicas

#: How long replicas are waited for, in seconds: what they have not confirmed by then they have no right to serve.
CONFIRM_S = keys.TRUST_S


class Purge(msgspec.Struct, frozen=True):
    """What a purge removes, or would. `paid_usd` is what the frontier answers among it were paid when they were bought:
    history's price, not today's. `unconfirmed` replicas did not say in time that they forgot; they serve nothing from
    memory once they have been out of touch for a second; or they have died, and serve nothing at all."""

    done: bool
    entries: int = 0
    frontier_entries: int = 0
    bytes: int = 0
    paid_usd: float = 0.0
    confirmed: tuple[str, ...] = ()
    unconfirmed: tuple[str, ...] = ()


def plan(client: Redis, secret: bytes, wanted: Selection) -> Purge:
    """What `purge` would remove."""
    return _count(entries(client, secret, wanted))


def purge(client: Redis, secret: bytes, wanted: Selection) -> Purge:
    """Remove it. Redis' own errors pass through: nobody may believe that something was removed that was not."""
    tasks = [wanted.task] if wanted.task else known_tasks(client)
    if wanted.whole_tasks:
        # A new generation first: from here on nobody finds the old entries, and no answer begun until now is kept.
        for task in tasks:
            client.set(keys.generation_key(task), keys.new_generation())
        confirmed, unconfirmed = _wait_for_replicas(client, tasks)
        counted = _count(_removing(client, entries(client, secret, wanted)))
    else:
        # Before: no answer begun until now is kept. A process that has not heard yet takes back what it wrote, a round
        # trip later; another that reads just then may remember it. After: what was read until now is forgotten.
        for task in tasks:
            _bump(client, task)
        counted = _count(_removing(client, entries(client, secret, wanted)))
        for task in tasks:
            _bump(client, task)
        confirmed, unconfirmed = _wait_for_replicas(client, tasks)
    _save(client)
    return msgspec.structs.replace(counted, done=True, confirmed=confirmed, unconfirmed=unconfirmed)


def known_tasks(client: Redis) -> list[str]:
    """Those that have a generation: all that anybody ever looked up."""
    prefix = keys.generation_key("")
    return sorted(key.decode("ascii", "replace").removeprefix(prefix) for key in client.scan_iter(f"{prefix}*", 500))


def _count(found: Iterable[Found]) -> Purge:
    number = frontier = size = paid = 0
    for item in found:
        number += 1
        size += item.bytes
        if item.entry and item.entry.kind == "frontier":
            frontier += 1
            paid += item.entry.cost_nano
    return Purge(False, number, frontier, size, paid / NANO_PER_USD)


def _removing(client: Redis, found: Iterable[Found]) -> Iterable[Found]:
    """Passes on what it removed."""
    batch: list[Found] = []
    for item in found:
        batch.append(item)
        if len(batch) >= 500:
            yield from _unlink(client, batch)
            batch = []
    yield from _unlink(client, batch)


def _unlink(client: Redis, batch: Sequence[Found]) -> Iterable[Found]:
    if batch:
        client.unlink(*[item.name.key for item in batch])
    return batch


def _bump(client: Redis, task: str) -> None:
    """`TOKEN` to `TOKEN.1`, `TOKEN.1` to `TOKEN.2`: memories are dropped, keys stay."""
    name = keys.generation_key(task)

    def change(transaction: Any) -> None:
        value = keys.generation_in(transaction.get(name))
        token, _, count = value.partition(".")
        transaction.multi()
        if value:  # else whoever reads it makes a new one
            transaction.set(name, f"{token}.{int(count) + 1 if count.isdigit() else 1}")

    client.transaction(change, name)  # begins anew if somebody else changed it meanwhile


def _save(client: Redis) -> None:
    """A Redis that keeps a copy on disk is asked to replace it: after a crash it would begin with what was removed."""
    with contextlib.suppress(RedisError):  # it may not let us
        if client.config_get("save").get("save"):
            client.bgsave()


def _wait_for_replicas(client: Redis, tasks: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Who confirmed the tasks' present generations, and who did not within `CONFIRM_S`. Whether
    those live is not asked (another host's clock does not tell): by then they serve nothing that was purged."""
    started = time.monotonic()
    while True:
        said = replicas(client)
        values: Any = client.mget([keys.generation_key(task) for task in tasks]) if tasks else []
        present = {task: keys.generation_in(value) for task, value in zip(tasks, values, strict=True)}
        # A task that a replica does not name is one of which it remembers nothing.
        late = {name for name, it in said.items() if any(it.seen.get(t, v) != v for t, v in present.items())}
        if not late or time.monotonic() - started > CONFIRM_S:
            return tuple(sorted(said.keys() - late)), tuple(sorted(late))
        time.sleep(0.02)


# the audit line -------------------------------------------------------------------------------------------------------


class AuditLine(msgspec.Struct, frozen=True):
    """Who removed what. Never a text: `by_text` says that one was given."""

    at: str
    who: str  # "cli:USER", "admin:KID" (the first 8 digits of the key's SHA-256), "admin:local" without keys
    what: str
    tenant: str | None
    task: str | None
    source: str | None
    by_text: bool
    outcome: Purge | None  # None: it failed, and may be half done
    error: str | None


def audited(client: Redis, secret: bytes, wanted: Selection, *, who: str, state_dir: Path) -> Purge:
    """`purge`, with its line in `audit.log`. What can't be recorded is not begun. Raises `InspectError`."""
    path = state_dir / "audit.log"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise InspectError(f"nothing was removed: {path} can't be written ({os.strerror(error.errno or 0)})") from None
    done: Purge | None = None
    failure: str | None = None
    try:
        done = purge(client, secret, wanted)
        return done
    except BaseException as error:
        failure = type(error).__name__
        raise
    finally:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        by_text = wanted.text is not None or wanted.digest is not None
        line = AuditLine(at, who, "cache_purge", wanted.tenant, wanted.task, wanted.source, by_text, done, failure)
        try:
            os.write(file, msgspec.json.encode(line) + b"\n")  # one write, at the end: lines of others stay whole
        except OSError as error:
            raise InspectError(f"it was done, but {path} lacks its line: {os.strerror(error.errno or 0)}") from None
        finally:
            os.close(file)
