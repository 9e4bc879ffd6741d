"""`crossover classify -f --escalate batch`: the local model first, the frontier's batch API for what it is unsure of.

What was done is in a file beside the answers (`job_file`), so that the same command goes on after whatever ended it.
The answers are written last, in the order of the input.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import click
import msgspec
from rich.console import Console

from cost.attempts import latest
from cost.prices import PriceTable
from cost.types import LedgerError, Usage
from providers.batches import Batches, batches_of
from providers.sdk import SdkProvider
from providers.tariffs import TokenTariff
from router import policy
from router.ask import TaskRoute
from router.cli import rows as rows_of
from router.cli.asking import Stopped, open_service
from router.cli.batch import job_file, local, output
from router.cli.batch.books import Books
from router.cli.batch.input import Work, stamp_of, texts
from router.cli.batch.job_file import Held, Job, JobFile, RowAnswer, Rows
from router.cli.batch.submission import Submission
from router.cli.classify_file import (
    answer_rows,
    check_format,
    in_order,
    job_path,
    open_answers,
    progress,
    summary,
    values_of,
)
from router.cli.rows import BadFile, Row
from router.config import LOCAL_TENANT, Config
from router.config_file import Loaded, ledger_path
from router.reporting import budget
from router.service import Service
from router.wiring import lane_settings, make_provider


def answer_in_batch(loaded: Loaded, file: Path, out: Path, text_col: str, task: str | None) -> int:
    """Gives the number of rows with an error. Raises `BadFile`, `Stopped`, `Unanswered` and `ProblemError`."""
    with ExitStack() as stack:
        work = Work(loaded, file, out, text_col, task, stamp_of(file))
        check_format(out, work.rows(stack), file)
        answers = open_answers(out, stack)
        job = JobFile.open(job_path(out))
        stack.callback(job.close)
        try:
            return asyncio.run(_run(work, job, answers))
        except KeyboardInterrupt:
            if not job.batches:
                raise
            where = f" at {job.job.provider}" if job.job else ""
            raise Stopped(
                f"stopped; what was submitted goes on{where}. Run the same command again to collect it"
            ) from None


class _Asked(NamedTuple):
    """Who will be asked."""

    provider: SdkProvider[Any]
    batches: Batches
    tariff: TokenTariff


async def _run(work: Work, job: JobFile, answers: BinaryIO) -> int:
    with ExitStack() as stack:
        with output.written(work.out, answers):
            done, left = rows_of.resume(answers, work.out, work.rows(stack))
        if job.job is None and next(left, None) is None:
            click.echo(summary(done, Counter()), err=True)
            job.remove()
            return 0
    async with open_service(work.loaded) as (service, failures):
        route = service.task(work.task)
        may = work.loaded.config.tasks[route.info.name].policy.escalate == "auto"
        asked = await _choose(work.loaded.config) if may else None
        try:
            _begin(work, job, service, route, asked, done)
            await _local(work, job, service, failures)
            if asked is not None and job.questions:
                with _showing() as show:
                    await _frontier(work, job, service, route, asked, show)
            return await output.write(work, job, answers, service, route)
        finally:
            if asked is not None:
                await asked.provider.close()


async def _choose(config: Config) -> _Asked:
    """The first provider with a batch API. Raises `BadFile` where there is none, or no price is known for it."""
    for name, configured in config.providers.items():
        provider: Any = make_provider(name, config)
        found = batches_of(configured.kind, provider.client, via=configured.via, base_url=configured.base_url)
        if found is None:
            click.echo(f"provider {name} has no batch API that we know of; it is left out", err=True)
            await provider.close()
            continue
        own = lane_settings(config)[name].own_price
        tariff = TokenTariff(PriceTable.load(), provider.model, batch=True, own_price=own)
        if tariff.estimate(Usage(input=1, output=1)) is None:
            await provider.close()
            raise BadFile(
                f"no batch price is known for {provider.model} of provider {name}; ask without a batch (--escalate), "
                f"or add batch_input and batch_output to [providers.{name}.price]"
            )
        return _Asked(provider, found, tariff)
    raise BadFile("no configured provider has a batch API; add one of kind anthropic or openai, or use --escalate")


def _begin(work: Work, job: JobFile, service: Service, route: TaskRoute, asked: _Asked | None, done: int) -> None:
    """A new job, or the one that was begun. Raises `BadFile` if that is another."""
    name = route.info.name
    configured = service.config.tasks[name]
    provider = asked.provider if asked else None
    parts = {
        "input": _digest_of(work.file),
        "text column": work.text_col,
        "task": name,
        "policy": _digest(
            policy.rules_for(configured.policy, configured.over_length, tenant="auto", route="auto", provider=True)
        ),
        "local model": _digest(dict(route.local_parts)),
        "prompt and labels": _digest({k: v for k, v in route.frontier_parts.items() if k != "providers"}),
        "provider": f"{provider.name}: {provider.identity}" if provider else "none",
        "base_url": (service.config.providers[provider.name].base_url or "") if provider else "",
        "ledger": str(ledger_path(work.loaded)),
    }
    if job.job is None:
        ours = Job(
            secrets.token_hex(6),
            parts,
            provider.name if provider else "",
            provider.model if provider else "",
            service.prices.version,
            done,
        )
        job.append(ours, durable=True)
        return
    changed = [part for part in parts if job.job.parts.get(part) != parts[part]]
    if changed:
        batches = ", ".join(job.batches.values()) or "none"
        raise BadFile(
            f"the job {job.path} was begun with another {' and '.join(changed)}. Go on with what it was begun with, or "
            f"give it up: remove that file. Batches of it at {job.job.provider or 'no provider'}: {batches}; what was "
            "not collected of them is paid for nothing and stays in the ledger as uncertain"
        )


def _digest(value: object) -> str:
    return hashlib.blake2b(msgspec.json.encode(value, order="deterministic"), digest_size=16).hexdigest()


def _digest_of(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


# 1 local -------------------------------------------------------------------------------------------------------------


async def _local(work: Work, job: JobFile, service: Service, failures: list[str]) -> None:
    """The local model's answers to the rows that it has not seen. They are in the ledger, then in the job's file."""
    assert job.job is not None
    if job.local_done:
        return
    of = local.asking(service, failures, work.task, _requests(job.job.id))
    with ExitStack() as stack:
        rows = work.rows(stack)
        start = job.job.begun + job.rows
        places = itertools.count(start, output.SIZE)

        def answer(batch: list[Row]) -> Any:
            return answer_rows(of(next(places)), batch)

        total = rows_of.count(work.file, rows) if sys.stderr.isatty() else None
        left = itertools.islice(rows, start, None)
        advance = stack.enter_context(progress(total, start))
        async with aclosing(in_order(answer, left, output.SIZE)) as batches:
            async for batch in batches:
                new: dict[bytes, int] = {}
                job.append(Rows([_row_answer(result, job, new) for _, result in batch]))
                advance(len(batch))
    job.append(job_file.Local(service.cache.generation(service.task(work.task).info.name)))
    if job.questions:
        click.echo(f"{len(job.questions)} texts of {job.rows} rows are to be asked in a batch", err=True)


def _row_answer(result: dict[str, Any], job: JobFile, new: dict[bytes, int]) -> RowAnswer:
    """`new`: questions of this line, by their text's digest."""
    held: Held | None = result.get(local.HELD)
    if held is None:
        return RowAnswer(values_of(result))
    number = job.numbers.get(held.digest, new.get(held.digest))
    if number is None:
        number = new[held.digest] = len(job.questions) + len(new)
    return RowAnswer(None, number, held)


def _requests(job_id: str) -> str:
    """How the request ids of a job begin: the ledger's keys."""
    return f"req_batch_{job_id}_"


# 2 frontier ----------------------------------------------------------------------------------------------------------


async def _frontier(
    work: Work, job: JobFile, service: Service, route: TaskRoute, asked: _Asked, show: Callable[[str], None]
) -> None:
    assert job.job is not None
    try:
        attempts = await asyncio.to_thread(latest, service.ledger.path, _requests(job.job.id))
    except LedgerError as error:
        raise Stopped(str(error)) from None

    submission = Submission(
        job,
        route.question,
        partial(texts, work, job),
        provider=asked.provider,
        batches=asked.batches,
        books=Books(job, service.ledger, attempts, tenant=LOCAL_TENANT, budget=budget(work.loaded.config)),
        tariff=asked.tariff,
        tell=partial(click.echo, err=True),
        show=show,
    )
    await submission.run()


@contextmanager
def _showing() -> Iterator[Callable[[str], None]]:
    """One line on a terminal that says what is being waited for; nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _state: None
        return
    with console.status("") as status:
        yield status.update
