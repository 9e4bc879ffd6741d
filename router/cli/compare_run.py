"""One comparison by command: open the parts, say what it can cost, ask, print."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cost.comparison import REQUESTS, keep, past_call_nano
from cost.ledger import Ledger
from cost.prices import PriceTable
from local_model.types import LoadError
from router import paths
from router.cache.keys import normalize
from router.cli import compare_tables
from router.cli.options import starting, stop
from router.compare import figures
from router.compare.askers import Asker, LocalAsker, ProviderAsker, Reply, ask_all
from router.compare.attacks import Attack, resistance, target_of
from router.compare.rows import Row
from router.config_file import Loaded, ledger_path
from router.local_tier import LocalTier
from router.logs import configure_logging
from router.reporting import price_table
from router.siblings import ALONE


class Run:
    """One comparison, from the model's loading to the exit code."""

    def __init__(
        self,
        loaded: Loaded,
        task: str,
        names: Sequence[str],
        rows: Sequence[Row],
        available: int,
        *,
        yes: bool,
        as_json: bool,
        seed: int,
        within: float,
    ) -> None:
        self.loaded, self.config, self.task, self.names = loaded, loaded.config, task, names
        self.rows, self.available, self.seed, self.within = rows, available, seed, within
        self.yes, self.as_json = yes, as_json
        self.over = asyncio.Event()  # ask no more
        self._asking_now: asyncio.Future[list[None]]

    # accuracy, cost, latency -----------------------------------------------------------------------------------------

    async def compare(self) -> int:
        texts = [row.text for row in self.rows]
        async with self._opened() as (local, providers, ledger, prices):
            self._known_labels(local.labels)
            self._confirm(dict.fromkeys(providers, texts), ledger, prices)
            everyone: list[Asker] = [local, *providers]
            replies = nothing_yet(everyone, texts)
            with self._asking({each.name: len(texts) for each in everyone}) as advance:
                await self._ask([local], texts, replies, advance)
                await self._ask(providers, texts, replies, advance)
        found = figures.compare(
            self.task,
            self.rows,
            {each.name: (each, replies[each.name]) for each in everyone},
            config=self.config,
            available=self.available,
            seed=self.seed,
            within=self.within,
            price_version=prices.version,
            at=time.time(),
        )
        if found.complete:
            path = paths.state_dir() / "compare" / f"{self.task}.json"
            with starting():
                keep(path, found)
        compare_tables.show(found, deadline_ms=self.config.server.deadline_ms, as_json=self.as_json)
        return int(not found.complete or any(not each.answered for each in found.contenders))

    def _known_labels(self, labels: frozenset[str]) -> None:
        """A gold label that the task doesn't have makes every classifier wrong."""
        odd = sorted({row.gold for row in self.rows if row.gold is not None and row.gold not in labels})
        if not odd:
            return
        if all(row.gold in odd for row in self.rows):
            stop(f"none of the gold labels is one of task {self.task}'s, such as {odd[0]!r}; is it the right column?")
        kept = [row if row.gold in labels else row._replace(gold=None) for row in self.rows]
        count = len(self.rows) - sum(row.gold is not None for row in kept)
        click.echo(
            f"note: {count} rows count as without gold: the task has no {', '.join(map(repr, odd[:3]))}", err=True
        )
        self.rows = kept

    # prompt injection ------------------------------------------------------------------------------------------------

    async def attack(self, attacks: Sequence[Attack]) -> int:
        texts = [row.text for row in self.rows]
        async with self._opened() as (local, providers, ledger, prices):
            everyone: list[Asker] = [local, *providers]
            clean = nothing_yet(everyone, texts)
            await self._ask([local], texts, clean, lambda _: None)
            targets = [
                target_of(row.text, sorted(local.labels), row.gold, reply.label if reply else None)
                for row, reply in zip(self.rows, clean[local.name], strict=True)
            ]
            attacked = [
                normalize(attack.on(text, target))
                for text, target in zip(texts, targets, strict=True)
                for attack in attacks
            ]
            self._confirm({each: [*texts, *attacked] for each in providers}, ledger, prices)
            after = nothing_yet(everyone, attacked)
            with self._asking({each.name: len(texts) + len(attacked) for each in everyone}) as advance:
                await self._ask(providers, texts, clean, advance)
                await self._ask([local], attacked, after, advance)
                await self._ask(providers, attacked, after, advance, first=len(texts))
        found = [resistance(each, attacks, targets, clean[each.name], after[each.name]) for each in everyone]
        compare_tables.show_attacks(found, len(texts), len(attacks), as_json=self.as_json)
        return int(any(each.outside or each.stopped or not each.answered for each in found) or self.over.is_set())

    # what both need --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[LocalAsker, list[ProviderAsker], Ledger, PriceTable]]:
        """The local model, the providers, the books; all closed at the end. What can't be opened is exit code 2."""
        configure_logging("critical")
        tier = LocalTier(ALONE, on_death=lambda _: self.over.set(), on_batch=lambda _: None)
        providers: list[ProviderAsker] = []
        with starting():
            ledger = Ledger.open(ledger_path(self.loaded))
        try:
            try:
                await tier.load(self.loaded, secret=b"compare", chain="")
            except LoadError as error:
                stop(str(error))
            route = tier.tasks[self.task]
            prices, run = price_table(self.config), f"{REQUESTS}{time.time_ns():x}"
            with starting():
                for name in self.names:
                    listed = PriceTable.load()  # a provider's own price is in its lane's settings
                    made = ProviderAsker(name, self.config, route, ledger=ledger, prices=listed, run=run)
                    providers.append(made)
            yield LocalAsker(route, taken=self.config.providers), providers, ledger, prices
        finally:
            for each in providers:
                await each.close()
            await tier.close()
            await asyncio.to_thread(ledger.close)

    def _confirm(self, asked: Mapping[ProviderAsker, Sequence[str]], ledger: Ledger, prices: PriceTable) -> None:
        """Show what it can cost; go on only if whoever is there says so."""
        quotes = []
        for each, texts in asked.items():
            at_most = each.at_most(texts)
            if at_most is None:
                stop(f"no price is known for {each.model}: add [providers.{each.name}.price] or usd_per_hour")
            past = past_call_nano(ledger.path, self.task, each.name, each.model)
            expected = None if past is None else past * len(texts)
            quotes.append(compare_tables.Quote(each.name, each.model, len(texts), at_most, expected))
        if not quotes:
            return
        left = round(self.config.budget_usd * 1e9) - ledger.spent_today_nano()
        compare_tables.show_quotes(quotes, left, prices.as_of)
        if self.yes:
            return
        if not sys.stdin.isatty():
            stop("nobody is there to confirm this: give --yes to spend it")
        if not click.confirm("Ask them?", err=True):
            sys.exit(0)

    async def _ask(
        self,
        askers: Sequence[Asker],
        texts: Sequence[str],
        replies: Mapping[str, list[Reply | None]],
        advance: Callable[[str], None],
        *,
        first: int = 0,
    ) -> None:
        """All of them at once, until they are done or the second Ctrl-C."""
        asking = asyncio.gather(
            *(
                ask_all(each, texts, replies[each.name], stop=self.over, on_reply=advance, first=first)
                for each in askers
            )
        )
        self._asking_now = asking
        with suppress(asyncio.CancelledError):
            await asking

    @contextmanager
    def _asking(self, totals: Mapping[str, int]) -> Iterator[Callable[[str], None]]:
        """Progress on a terminal. The first Ctrl-C ends the asking once what is in flight is answered, and settled; the
        second gives that up."""

        def interrupted() -> None:
            if self.over.is_set():
                self._asking_now.cancel()
            else:
                self.over.set()
                click.echo("\nstopping when what is in flight is answered; again: at once", err=True)

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted)
        try:
            with progress(totals) as advance:
                yield advance
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def nothing_yet(askers: Sequence[Asker], texts: Sequence[str]) -> dict[str, list[Reply | None]]:
    return {each.name: [None] * len(texts) for each in askers}


@contextmanager
def progress(totals: Mapping[str, int]) -> Iterator[Callable[[str], None]]:
    """A bar a classifier, on a terminal only; call what it gives with a name for each reply."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        bars = {name: shown.add_task(name, total=total) for name, total in totals.items()}
        yield lambda name: shown.advance(bars[name])
