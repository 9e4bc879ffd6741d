"""The cache as people and programs see it: the same figures for `crossover cache` and /v1/cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from redis import Redis

from cost.books import CacheUse, cache_use
from cost.books import hits as hits_by_the_books
from cost.types import NANO_PER_USD
from router.cache import inspect
from router.cache.inspect import Found, Selection

By = Literal["hour", "day"]
Hits = Mapping[tuple[str, str, str], tuple[int, int]]  # as `cost.books.hits` gives them


class Spread(msgspec.Struct, frozen=True):
    """Seconds until entries expire."""

    min: int
    median: int
    max: int


class Group(msgspec.Struct, frozen=True):
    """The entries of one task, by who answered."""

    task: str
    source: str  # "local", "frontier", "damaged"
    entries: int
    bytes: int  # of the values; Redis needs some more for each
    ttl_s: Spread
    paid_usd: Annotated[float, Meta(description="What these answers were paid when they were bought.")]


class ReplicaMemory(msgspec.Struct, frozen=True):
    """What one process remembers."""

    id: str
    seen_s_ago: float
    memory: dict[str, int]


class Overview(msgspec.Struct, frozen=True):
    """`use`: from the ledger of this host; the rest from Redis."""

    entries: int
    redis_bytes: int
    redis_limit_bytes: Annotated[int, Meta(description="0: none")]
    evicted: Annotated[int, Meta(description="Keys that Redis dropped for lack of memory since it started.")]
    groups: list[Group]
    use: list[CacheUse]
    replicas: list[ReplicaMemory]


class EntryView(msgspec.Struct, frozen=True):
    """One entry. `hits` and `saved_usd` are null where no ledger can be read; `preview` where none is kept."""

    key: str
    tenant: str
    task: str
    source: str
    label: str | None
    confidence: float | None
    model: str | None
    age_s: float | None
    ttl_s: int
    bytes: int
    hits: int | None
    saved_usd: float | None
    cost_usd: float | None
    preview: str | None
    differs: Annotated[
        list[str] | None, Meta(description="Why a request would not hit it now; empty: it would. null: not looked at.")
    ] = None


def overview(client: Redis, secret: bytes, ledger: Path, *, by: By, since: float) -> Overview:
    """Reads all entries, in steps: on a large cache seconds, during which Redis serves on."""
    count = 0
    sizes: dict[tuple[str, str], int] = {}
    paid: dict[tuple[str, str], int] = {}
    spans: dict[tuple[str, str], list[int]] = {}
    for item in inspect.entries(client, secret):
        count += 1
        group = (item.name.task, item.entry.kind if item.entry else "damaged")
        sizes[group] = sizes.get(group, 0) + item.bytes
        spans.setdefault(group, []).append(item.ttl_s)
        if item.entry and item.entry.kind == "frontier":
            paid[group] = paid.get(group, 0) + item.entry.cost_nano
    groups = [
        Group(
            *group,
            len(spans[group]),
            sizes[group],
            Spread(min(spans[group]), int(statistics.median(spans[group])), max(spans[group])),
            paid.get(group, 0) / NANO_PER_USD,
        )
        for group in sorted(sizes)
    ]
    memory: Any = client.info("memory")
    stats: Any = client.info("stats")
    now = time.time()
    return Overview(
        entries=count,
        redis_bytes=memory["used_memory"],
        redis_limit_bytes=memory.get("maxmemory", 0),
        evicted=stats.get("evicted_keys", 0),
        groups=groups,
        use=cache_use(ledger, since=since, by=by),
        replicas=[
            ReplicaMemory(name, round(now - it.at / 1000, 3), it.memory)
            for name, it in sorted(inspect.replicas(client).items())
        ],
    )


def explained(client: Redis, secret: bytes, wanted: Selection) -> list[EntryView]:
    """The entries that are meant, each with what keeps it from being a hit today."""
    found = []
    for item in inspect.entries(client, secret, wanted):
        now, generation = inspect.current(client, item.name.task), inspect.generation(client, item.name.task)
        found.append(view(item, None, inspect.why_not(client, item, now, generation)))
    return found


def views(items: Iterable[Found], ledger: Path) -> list[EntryView]:
    """With their hits."""
    hits = hits_by_the_books(ledger) if ledger.exists() else None
    return [view(item, hits) for item in items]


def view(item: Found, hits: Hits | None, differs: list[str] | None = None) -> EntryView:
    name, entry = item.name, item.entry
    mine = None if hits is None or entry is None else hits.get((name.text, name.task, entry.kind), (0, 0))
    return EntryView(
        key=name.key,
        tenant=name.tenant,
        task=name.task,
        source=entry.kind if entry else "damaged",
        label=entry.label if entry else None,
        confidence=entry.confidence if entry else None,
        model=entry.model if entry else None,
        age_s=round(time.time() - entry.at, 1) if entry else None,
        ttl_s=item.ttl_s,
        bytes=item.bytes,
        hits=mine[0] if mine else None,
        saved_usd=mine[1] / NANO_PER_USD if mine else None,
        cost_usd=entry.cost_nano / NANO_PER_USD if entry else None,
        preview=entry.preview if entry else None,
        differs=differs,
    )
