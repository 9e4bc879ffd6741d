"""`crossover cache`: look into the response cache, and purge it."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
from rich.console import Console
from rich.table import Table

from router.cache import inspect, keys
from router.cache.embedded import EmbeddedRedis, EmbeddedRedisError
from router.cache.entry import Kind
from router.cache.inspect import InspectError, Selection
from router.cache.overview import By, explained, overview, views
from router.cache.purge import audited, plan
from router.cli.options import books, json_option, reading_option, stop


class Target(NamedTuple):
    """The cache that is meant, connected."""

    client: Any
    secret: bytes
    ledger: Path
    state_dir: Path


@contextmanager
def connected(config: Path | None) -> Iterator[Target]:
    """Whatever goes wrong with the cache, here or in the block, is one line and exit code 2."""
    its = books(config)
    url = its.loaded.config.cache.url
    if url == "off":
        stop('cache.url is "off" in this config')
    try:
        if url == "embedded":
            url = its.service.redis_url if its.service else EmbeddedRedis(its.state_dir, 64).url
            if not url:
                stop("the running service was given another Redis; set CROSSOVER_CACHE__URL here as it was there")
        secret = keys.load_secret(its.loaded.config.cache.secret, its.state_dir)
        with inspect.connected(url) as client:
            yield Target(client, secret, its.ledger, its.state_dir)
    except (InspectError, EmbeddedRedisError) as error:
        stop(str(error))


@click.group()
def cache() -> None:
    """Look into the response cache of the running service (or of --config); purge it."""


task_option = click.option("--task", help="Only this task's.")
any_tenant_option = click.option("--tenant", help="Only this tenant's.")
source_option = click.option("--source", type=click.Choice(["local", "frontier"]), help="Only what it answered.")


@cache.command()
@click.option("--by", type=click.Choice(["hour", "day"]), default="day", show_default=True, help="Hit ratio by.")
@click.option("--hours", type=click.IntRange(1, 24 * 366), default=7 * 24, show_default=True, help="So far back.")
@reading_option
@json_option
def stats(by: By, hours: int, config: Path | None, as_json: bool) -> None:
    """Entries, bytes and time to live by task and source; hits over time; what replicas remember."""
    with connected(config) as target:
        its = overview(target.client, target.secret, target.ledger, by=by, since=time.time() - hours * 3600)
    if as_json:
        click.echo(msgspec.json.encode(its))
        return
    console = Console()
    limit = f" of {_size(its.redis_limit_bytes)}" if its.redis_limit_bytes else ""
    evicted = f"; {its.evicted} dropped for lack of it" if its.evicted else ""
    table = _table(
        ("task", "answered by"),
        ("entries", "bytes", "expires in", "median", "paid once"),
        f"{its.entries} entries, Redis uses {_size(its.redis_bytes)}{limit}{evicted}",
    )
    for group in its.groups:
        span = " - ".join(dict.fromkeys((_span(group.ttl_s.min), _span(group.ttl_s.max))))
        cells = (str(group.entries), str(group.bytes), span, _span(group.ttl_s.median), f"${group.paid_usd:.6f}")
        table.add_row(group.task, group.source, *cells)
    console.print(table)
    table = _table(
        (f"{by} (UTC)", "task", "by"),
        ("hits", "memory", "miss", "shared", "ratio"),
        "Use",
    )
    for use in its.use:
        ratio = "-" if use.hit_ratio is None else f"{use.hit_ratio:.1%}"
        cells = (str(use.hits), str(use.memory_hits), str(use.misses), str(use.coalesced), ratio)
        table.add_row(use.at[: 10 if by == "day" else 13].replace("T", " "), use.task, use.source, *cells)
    console.print(table)
    for replica in its.replicas:
        held = ", ".join(f"{name} {number}" for name, number in replica.memory.items())
        console.print(f"replica {replica.id}: {held or 'memory unknown'}, heard of {replica.seen_s_ago:.1f} s ago")


@cache.command()
@click.argument("text")
@click.option("--tenant", default="local", show_default=True, help="Whose entries.")
@task_option
@reading_option
@json_option
def get(text: str, tenant: str, task: str | None, config: Path | None, as_json: bool) -> None:
    """What is kept of TEXT; for a miss, what of the key differs. Exits with 1 on a miss."""
    normalized = keys.normalize(text)
    with connected(config) as target:
        digest = keys.text_digest(target.secret, tenant, normalized).hex()
        found = explained(target.client, target.secret, Selection(tenant, task, digest=digest))
    hit = any(not item.differs for item in found)
    if as_json:
        click.echo(msgspec.json.encode({"normalized": normalized, "digest": digest, "hit": hit, "entries": found}))
        raise SystemExit(0 if hit else 1)
    changed = "" if normalized == text else f"  (from {text!r})"
    click.echo(f"text      {normalized!r}{changed}\ndigest    {digest}  (tenant {tenant})")
    if not found:
        click.echo(
            f"miss      nothing is kept of this text for tenant {tenant!r}"
            + (f" and task {task!r}" if task else "")
            + ": it was never answered, its answer was degraded, or it has expired"
        )
    for item in found:
        click.echo(f"{'miss' if item.differs else 'hit'}       {item.key}")
        if item.label is not None:
            sure = "" if item.confidence is None else f", confidence {item.confidence:.3f}"
            click.echo(f"          {item.label}, by {item.source} ({item.model}){sure}")
            age, left = _span(item.age_s), _span(item.ttl_s)
            click.echo(f"          {age} old, expires in {left}, cost ${item.cost_usd:.7f}")
        for reason in item.differs or ():
            click.echo(f"          differs: {reason}")
    raise SystemExit(0 if hit else 1)


@cache.command()
@task_option
@any_tenant_option
@source_option
@click.option("-n", "limit", default=50, show_default=True, help="At most so many, the latest first.")
@reading_option
@json_option
def ls(
    task: str | None, tenant: str | None, source: Kind | None, limit: int, config: Path | None, as_json: bool
) -> None:
    """The entries: label, source, age, time to live, hits, dollars saved. Texts only with cache.store_preview."""
    with connected(config) as target:
        found = [i for i in inspect.entries(target.client, target.secret, Selection(tenant, task, source)) if i.entry]
    found.sort(key=lambda item: item.entry.at if item.entry else 0, reverse=True)
    rows = views(found[:limit], target.ledger)
    if as_json:
        click.echo(msgspec.json.encode(rows))
        return
    previews = any(row.preview for row in rows)
    table = _table(
        ("label", "by"),
        ("age", "expires", "hits", "saved"),
        f"{len(found)} entries" + (f", the latest {limit}" if len(found) > limit else ""),
    )
    if previews:
        table.add_column("text")
    for row in rows:
        cells = [
            row.label,
            row.source,
            _span(row.age_s),
            _span(row.ttl_s),
            "-" if row.hits is None else str(row.hits),
            "-" if row.saved_usd is None else f"${row.saved_usd:.6f}",
        ]
        table.add_row(*cells, *([row.preview or ""] if previews else []))
    Console().print(table)


@cache.command()
@click.argument("text", required=False)
@task_option
@source_option
@any_tenant_option
@click.option("--all", "everything", is_flag=True, help="All tasks.")
@click.option("--yes", is_flag=True, help="Do it; without it, only say what would be removed.")
@reading_option
@json_option
def purge(
    text: str | None,
    task: str | None,
    source: Kind | None,
    tenant: str | None,
    everything: bool,
    yes: bool,
    config: Path | None,
    as_json: bool,
) -> None:
    """Remove the entries of a task, a source, a tenant or one TEXT (of any tenant), or --all; from Redis and from the
    memory of every replica. What was paid for is bought again when it is asked again. A dry run unless --yes."""
    wanted = Selection(tenant, task, source, text)
    if everything != (wanted == Selection()):
        stop("say what to purge: a TEXT, --task, --source or --tenant; or --all, alone")
    with connected(config) as target:
        if yes:
            who = f"cli:{getpass.getuser()}"
            its = audited(target.client, target.secret, wanted, who=who, state_dir=target.state_dir)
        else:
            its = plan(target.client, target.secret, wanted)
    if as_json:
        click.echo(msgspec.json.encode(its))
        return
    what = f"{its.entries} entries; frontier answers among them: {its.frontier_entries}, paid ${its.paid_usd:.6f} then"
    if not yes:
        click.echo(f"would remove {what}. Nothing was removed: add --yes")
        return
    click.echo(f"removed {what}")
    if its.confirmed:
        click.echo(f"forgotten by {len(its.confirmed)} process{'es' * (len(its.confirmed) != 1)}")
    for name in its.unconfirmed:
        click.echo(f"replica {name} did not confirm: it serves nothing from memory until it is in touch again")


def _table(left: tuple[str, ...], right: tuple[str, ...], title: str) -> Table:
    table = Table(*left, title=title)
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _span(seconds: float | None) -> str:
    """A time span in the two digits that matter."""
    if seconds is None or seconds < 0:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
