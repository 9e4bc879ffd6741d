"""`crossover cache`: look into the response cache, and purge it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
from rich.console import Console
from rich.table import Table

from cost.books import hits as hits_by_the_books
from cost.types import NANO_PER_USD
from router.cache import inspect, keys
from router.cache.embedded import EmbeddedRedis, EmbeddedRedisError
from router.cache.inspect import Found, InspectError
from router.cli.options import books, json_option, reading_option, stop


class Target(NamedTuple):
    """The cache that is meant, connected."""

    client: Any
    secret: bytes
    ledger: Path

    def digest(self, tenant: str, text: str) -> str:
        """Of a text, in hex, as it stands in the keys."""
        return keys.text_digest(self.secret, tenant, keys.normalize(text)).hex()


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
            yield Target(client, secret, its.ledger)
    except (InspectError, EmbeddedRedisError) as error:
        stop(str(error))


@click.group()
def cache() -> None:
    """Look into the response cache of the running service (or of --config); purge it."""


tenant_option = click.option("--tenant", default="local", show_default=True, help="Whose entries.")
task_option = click.option("--task", help="Only this task's.")


@cache.command()
@reading_option
@json_option
def stats(config: Path | None, as_json: bool) -> None:
    """Entries, bytes, time to live, and hits by task and source."""
    with connected(config) as target:
        found = list(inspect.entries(target.client, target.secret))
        memory: Any = target.client.info("memory")
    hits = _hits(target.ledger)
    groups: dict[tuple[str, str], list[Found]] = {}
    for item in found:
        groups.setdefault((item.name.task, item.entry.kind if item.entry else "damaged"), []).append(item)
    rows: list[dict[str, Any]] = [
        {
            "task": task,
            "source": source,
            "entries": len(items),
            "bytes": sum(item.bytes for item in items),
            "ttl_s_min": min(item.ttl_s for item in items),
            "ttl_s_max": max(item.ttl_s for item in items),
            "hits": sum(mine[0] for item in items if (mine := _of(item, hits))),
            "paid_usd": sum(item.entry.cost_nano for item in items if item.entry and source == "frontier")
            / NANO_PER_USD,
        }
        for (task, source), items in sorted(groups.items())
    ]
    if as_json:
        click.echo(msgspec.json.encode({"redis_bytes": memory["used_memory"], "groups": rows}))
        return
    table = Table("task", "answered by", title=f"{len(found)} entries, Redis uses {memory['used_memory_human']}")
    for column in ("entries", "bytes", "expires in", "hits", "paid once"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["task"]),
            str(row["source"]),
            str(row["entries"]),
            str(row["bytes"]),
            " - ".join(dict.fromkeys((_span(row["ttl_s_min"]), _span(row["ttl_s_max"])))),
            str(row["hits"]),
            f"${row['paid_usd']:.6f}",
        )
    Console().print(table)


@cache.command()
@click.argument("text")
@tenant_option
@task_option
@reading_option
@json_option
def get(text: str, tenant: str, task: str | None, config: Path | None, as_json: bool) -> None:
    """What is kept of TEXT; for a miss, what of the key differs. Exits with 1 on a miss."""
    normalized = keys.normalize(text)
    answers = []
    with connected(config) as target:
        digest = target.digest(tenant, text)
        for item in inspect.entries(target.client, target.secret, tenant=tenant, task=task or "*", text=digest):
            now = inspect.current(target.client, item.name.task)
            generation = inspect.generation(target.client, item.name.task)
            answers.append((item, inspect.why_not(target.client, item, now, generation)))
    hit = any(not reasons for _, reasons in answers)
    if as_json:
        click.echo(
            msgspec.json.encode(
                {
                    "normalized": normalized,
                    "digest": digest,
                    "hit": hit,
                    "entries": [{**_plain(item, None), "key": item.name.key, "differs": why} for item, why in answers],
                }
            )
        )
        raise SystemExit(0 if hit else 1)
    changed = "" if normalized == text else f"  (from {text!r})"
    click.echo(f"text      {normalized!r}{changed}\ndigest    {digest}  (tenant {tenant})")
    if not answers:
        click.echo(
            f"miss      nothing is kept of this text for tenant {tenant!r}"
            + (f" and task {task!r}" if task else "")
            + ": it was never answered, its answer was degraded, or it has expired"
        )
    for item, reasons in answers:
        entry = item.entry
        click.echo(f"{'miss' if reasons else 'hit'}       {item.name.key}")
        if entry is not None:
            sure = "" if entry.confidence is None else f", confidence {entry.confidence:.3f}"
            click.echo(f"          {entry.label}, by {entry.kind} ({entry.model}){sure}")
            paid = entry.cost_nano / NANO_PER_USD
            click.echo(
                f"          {_span(time.time() - entry.at)} old, expires in {_span(item.ttl_s)}, cost ${paid:.7f}"
            )
        for reason in reasons:
            click.echo(f"          differs: {reason}")
    raise SystemExit(0 if hit else 1)


@cache.command()
@task_option
@click.option("--tenant", help="Only this tenant's.")
@click.option("-n", "limit", default=50, show_default=True, help="At most so many, the latest first.")
@reading_option
@json_option
def ls(task: str | None, tenant: str | None, limit: int, config: Path | None, as_json: bool) -> None:
    """The entries: label, source, age, time to live, hits, dollars saved. Texts only with cache.store_preview."""
    with connected(config) as target:
        found = [
            i for i in inspect.entries(target.client, target.secret, tenant=tenant or "*", task=task or "*") if i.entry
        ]
    found.sort(key=lambda item: item.entry.at if item.entry else 0, reverse=True)
    hits = _hits(target.ledger)
    rows = [_plain(item, _of(item, hits)) for item in found[:limit]]
    if as_json:
        click.echo(msgspec.json.encode(rows))
        return
    previews = any(row["preview"] for row in rows)
    table = Table(
        "label", "by", title=f"{len(found)} entries" + (f", the latest {limit}" if len(found) > limit else "")
    )
    for column in ("age", "expires", "hits", "saved"):
        table.add_column(column, justify="right", no_wrap=True)
    if previews:
        table.add_column("text")
    for row in rows:
        cells = [
            row["label"],
            row["source"],
            _span(row["age_s"]),
            _span(row["ttl_s"]),
            "-" if row["hits"] is None else str(row["hits"]),
            "-" if row["saved_usd"] is None else f"${row['saved_usd']:.6f}",
        ]
        table.add_row(*cells, *([row["preview"] or ""] if previews else []))
    Console().print(table)


@cache.command()
@click.argument("text", required=False)
@task_option
@click.option("--all", "everything", is_flag=True, help="All tasks.")
@click.option("--tenant", help="Only this tenant's.")
@click.option("--yes", is_flag=True, help="Do it; without it, only say what would be removed.")
@reading_option
def purge(
    text: str | None, task: str | None, everything: bool, tenant: str | None, yes: bool, config: Path | None
) -> None:
    """Remove the entries of a task, of one TEXT (for --tenant, default local), or --all. A dry run unless --yes."""
    if not (text or task or everything):
        stop("say what to purge: a TEXT, --task T, or --all")
    digest = "*"
    with connected(config) as target:
        if text:
            tenant = tenant or "local"
            digest = target.digest(tenant, text)
        found = list(inspect.entries(target.client, target.secret, tenant=tenant or "*", task=task or "*", text=digest))
        paid = sum(i.entry.cost_nano for i in found if i.entry and i.entry.kind == "frontier") / NANO_PER_USD
        what = f"{len(found)} entries; frontier answers among them were paid ${paid:.6f}"
        if not yes:
            click.echo(f"would remove {what}. Nothing was removed: add --yes")
            return
        whole = {item.name.task for item in found} | ({task} if task else set()) if not (text or tenant) else set()
        removed = inspect.purge(target.client, found, whole)
    click.echo(f"removed {removed} of {what}")


Hits = dict[tuple[str, str, str], tuple[int, int]]  # as `cost.books.hits` gives them


def _hits(ledger: Path) -> Hits | None:
    return hits_by_the_books(ledger) if ledger.exists() else None


def _of(item: Found, hits: Hits | None) -> tuple[int, int] | None:
    """(hits, saved nano-USD) of an entry; None where nobody knows."""
    if hits is None or item.entry is None:
        return None
    return hits.get((item.name.text, item.name.task, item.entry.kind), (0, 0))


def _plain(item: Found, mine: tuple[int, int] | None) -> dict[str, Any]:
    entry = item.entry
    return {
        "tenant": item.name.tenant,
        "task": item.name.task,
        "label": entry.label if entry else None,
        "confidence": entry.confidence if entry else None,
        "source": entry.kind if entry else "damaged",
        "model": entry.model if entry else None,
        "age_s": round(time.time() - entry.at, 1) if entry else None,
        "ttl_s": item.ttl_s,
        "bytes": item.bytes,
        "hits": mine[0] if mine else None,
        "saved_usd": mine[1] / NANO_PER_USD if mine else None,
        "cost_usd": entry.cost_nano / NANO_PER_USD if entry else None,
        "preview": entry.preview if entry else None,
    }


def _span(seconds: float | None) -> str:
    """A time span in the two digits that matter."""
    if seconds is None or seconds < 0:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
