"""What `crossover cache` and /v1/cache show. Works on the Redis alone: the service leaves the identities it uses there,
so that a miss can be explained without loading a model. Large caches are read in steps (SCAN), never whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from router.cache import keys
from router.cache.entry import Corrupt, Entry, Kind, decode
from router.cache.replica import Seen

#: What the pipeline asks for, by kind of answer: part name -> value.
Identity = Mapping[str, str]
#: Keys that Redis looks at in one SCAN: a few hundred microseconds of its time.
STEP = 500


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


class Selection(NamedTuple):
    """Which entries are meant; None: any. `text` is a text as a caller sends it, of whichever tenant; `digest` stands
    for it where only that is known."""

    tenant: str | None = None
    task: str | None = None
    source: Kind | None = None
    text: str | None = None
    digest: str | None = None

    @property
    def whole_tasks(self) -> bool:
        """All that is kept of a task, or of all tasks."""
        return (self.tenant, self.source, self.text, self.digest) == (None, None, None, None)

    def pattern(self) -> str:
        """For SCAN. It may let more through than `matcher`."""
        return f"co:{keys.VERSION}:{self.tenant or '*'}:{self.task or '*'}:*:{self.digest or '*'}:*"

    def matcher(self, secret: bytes) -> Callable[[Name], bool]:
        """For names; what an entry's source is stands in its value."""
        normalized = None if self.text is None else keys.normalize(self.text)
        digests: dict[str, str] = {}  # of the text, by tenant

        def matches(name: Name) -> bool:
            if self.tenant not in (None, name.tenant) or self.task not in (None, name.task):
                return False
            if self.digest not in (None, name.text):
                return False
            if normalized is None:
                return True
            if name.tenant not in digests:
                digests[name.tenant] = keys.text_digest(secret, name.tenant, normalized).hex()
            return digests[name.tenant] == name.text

        return matches


class Current(msgspec.Struct, frozen=True):
    """The identities a task's requests have now (digest and parts), as its service left them."""

    local: str
    frontier: str


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


def entries(client: Redis, secret: bytes, wanted: Selection = Selection()) -> Iterator[Found]:  # noqa: B008 - frozen
    """All entries that are meant; the order is Redis', and what comes or goes meanwhile may be missed."""
    cursor = 0
    while True:
        cursor, found = page(client, secret, wanted, cursor)
        yield from found
        if cursor == 0:
            return


def page(
    client: Redis, secret: bytes, wanted: Selection, cursor: int, *, limit: int = 1, steps: int = 1
) -> tuple[int, list[Found]]:
    """At least `limit` entries from `cursor` (0: the start) on, as long as there are any within so many steps; and the
    cursor that goes on from there, 0 at the end."""
    matches = wanted.matcher(secret)
    found: list[Found] = []
    for _ in range(steps):
        reply: Any = client.scan(cursor, match=wanted.pattern(), count=STEP)
        cursor, raw = reply
        names = [name for key in raw if (name := parse(key.decode("ascii", "replace"))) and matches(name)]
        found += [item for item in _read(client, secret, names) if wanted.source in (None, _source(item))]
        if cursor == 0 or len(found) >= limit:
            break
    return cursor, found


def _source(item: Found) -> str | None:
    return item.entry.kind if item.entry else None


def _read(client: Redis, secret: bytes, names: Sequence[Name]) -> Iterator[Found]:
    if not names:
        return
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
    value = client.get(keys.current_key(task))
    try:
        return msgspec.json.decode(value, type=Current) if isinstance(value, bytes) else None
    except msgspec.MsgspecError:
        return None


def generation(client: Redis, task: str) -> str:
    return keys.generation_in(client.get(keys.generation_key(task)))


def parts_of(client: Redis, identity: str) -> Identity:
    value = client.get(keys.identity_key(identity))
    try:
        return msgspec.json.decode(value, type=dict[str, str]) if isinstance(value, bytes) else {}
    except msgspec.MsgspecError:
        return {}


def why_not(client: Redis, found: Found, now: Current | None, generation_now: str) -> list[str]:
    """Which parts of an entry's key differ from what a request has now; empty: it would be a hit."""
    reasons = []
    if found.entry is None:
        return ["its bytes are damaged: the next lookup removes it"]
    if found.name.generation != keys.token_of(generation_now):
        reasons.append("it was purged (another generation of the task)")
    if now is not None:
        wanted = now.frontier if found.entry.kind == "frontier" else now.local
        if found.name.identity != wanted:
            then, today = parts_of(client, found.name.identity), parts_of(client, wanted)
            changed = [part for part in {**then, **today} if then.get(part) != today.get(part)]
            reasons.append(f"another identity: {', '.join(changed) or 'unknown parts'} changed since")
    return reasons


def replicas(client: Redis) -> dict[str, Seen]:
    """The processes that remember entries, by id."""
    found: dict[str, Seen] = {}
    said: Any = client.hgetall(keys.replicas_key())
    for name, value in said.items():
        try:
            found[name.decode("ascii", "replace")] = msgspec.json.decode(value, type=Seen)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return found
