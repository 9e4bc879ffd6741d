"""What `crossover cache` shows and removes. Works on the Redis alone: the service leaves the identities it uses there,
so that a miss can be explained without loading a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from router.cache import keys
from router.cache.entry import Corrupt, Entry, decode

#: What the pipeline asks for, by kind of answer: part name -> value.
Identity = Mapping[str, str]


class InspectError(Exception):
    """The cache can't be looked into; the message says why."""


class Name(NamedTuple):
    """A key, taken apart."""

    key: str
    tenant: str
    task: str
    generation: str
    text: str
    identity: str


class Found(NamedTuple):
    name: Name
    entry: Entry | None  # None: the bytes are no entry
    ttl_s: int
    bytes: int


class Current(msgspec.Struct, frozen=True):
    """The identities a task's requests have now (digest and parts), as its service left them."""

    local: str
    frontier: str


def identity_key(digest: str) -> str:
    return f"co:{keys.VERSION}:identity:{digest}"


def current_key(task: str) -> str:
    return f"co:{keys.VERSION}:current:{task}"


@contextmanager
def connected(url: str) -> Iterator[Redis]:
    """A client, closed in the end. Raises `InspectError` if Redis does not answer, now or later in the block."""
    try:
        client = Redis.from_url(url, socket_timeout=5.0, socket_connect_timeout=2.0)
    except ValueError:  # its message quotes the URL, password and all
        raise InspectError("cache.url is no URL that can be used; `crossover check` says more") from None
    try:
        with client:
            client.ping()
            yield client
    except (RedisError, ConnectionError, TimeoutError) as error:
        raise InspectError(f"the cache does not answer ({type(error).__name__}); is the service running?") from None


def parse(key: str) -> Name | None:
    """None for keys that are no entries (generations, identities)."""
    parts = key.split(":")
    if len(parts) != 7 or parts[0] != "co":
        return None
    _, _, tenant, task, generation, text, identity = parts
    return Name(key, tenant, task, generation, text, identity)


def entries(client: Redis, secret: bytes, *, tenant: str = "*", task: str = "*", text: str = "*") -> Iterator[Found]:
    """All entries that match, read in small steps (SCAN); the order is Redis'."""
    pattern = f"co:{keys.VERSION}:{tenant}:{task}:*:{text}:*"
    batch: list[Name] = []
    for raw in client.scan_iter(match=pattern, count=500):
        if name := parse(raw.decode("ascii", "replace")):
            batch.append(name)
        if len(batch) >= 200:
            yield from _read(client, secret, batch)
            batch = []
    yield from _read(client, secret, batch)


def _read(client: Redis, secret: bytes, names: Sequence[Name]) -> Iterator[Found]:
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.get(name.key)
        pipeline.ttl(name.key)
    replies = pipeline.execute(raise_on_error=False)
    for name, value, ttl in zip(names, replies[::2], replies[1::2], strict=True):
        if value is None or isinstance(value, Exception):
            continue  # it expired meanwhile, or is of another type
        try:
            entry = decode(value, name.key, None, None, secret)
        except Corrupt:
            entry = None
        yield Found(name, entry, int(ttl) if isinstance(ttl, int) else -1, len(value))


def current(client: Redis, task: str) -> Current | None:
    value = client.get(current_key(task))
    try:
        return msgspec.json.decode(value, type=Current) if isinstance(value, bytes) else None
    except msgspec.MsgspecError:
        return None


def generation(client: Redis, task: str) -> str | None:
    value = client.get(keys.generation_key(task))
    return value.decode("ascii", "replace") if isinstance(value, bytes) else None


def parts_of(client: Redis, identity: str) -> Identity:
    value = client.get(identity_key(identity))
    try:
        return msgspec.json.decode(value, type=dict[str, str]) if isinstance(value, bytes) else {}
    except msgspec.MsgspecError:
        return {}


def why_not(client: Redis, found: Found, now: Current | None, generation_now: str | None) -> list[str]:
    """Which parts of an entry's key differ from what a request has now; empty: it would be a hit."""
    reasons = []
    if found.entry is None:
        return ["its bytes are damaged: the next lookup removes it"]
    if found.name.generation != generation_now:
        reasons.append("it was purged (another generation of the task)")
    if now is not None:
        wanted = now.frontier if found.entry.kind == "frontier" else now.local
        if found.name.identity != wanted:
            then, today = parts_of(client, found.name.identity), parts_of(client, wanted)
            changed = [part for part in {**then, **today} if then.get(part) != today.get(part)]
            reasons.append(f"another identity: {', '.join(changed) or 'unknown parts'} changed since")
    return reasons


def purge(client: Redis, found: Iterable[Found], tasks: Iterable[str]) -> int:
    """Remove entries; for whole `tasks` a new generation first, so that nothing written meanwhile survives."""
    for task in tasks:
        client.set(keys.generation_key(task), keys.new_generation())
    removed = 0
    batch: list[str] = []
    for item in found:
        batch.append(item.name.key)
        if len(batch) >= 200:
            removed += int(client.unlink(*batch))
            batch = []
    if batch:
        removed += int(client.unlink(*batch))
    return removed
