"""The end of a batch job: the answers, written in the order of the input."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import click
import msgspec

from cost.types import NANO_PER_USD, InputRow, LedgerError
from providers.types import FrontierAnswer, FrontierUnavailable
from router import outcome as outcomes
from router.ask import TaskRoute
from router.cache.types import Slot
from router.cli import rows as rows_of
from router.cli.asking import Stopped
from router.cli.batch.input import Work
from router.cli.batch.job_file import Held, JobFile, RowAnswer, cant_write
from router.cli.batch.local import NO_ANSWER
from router.cli.classify_file import summary, values_of
from router.cli.rows import BadFile, Values
from router.config import LOCAL_TENANT
from router.outcome import Outcome
from router.service import Service

#: Rows that are asked together of the local model, noted, recorded and written.
SIZE = 64


async def write(work: Work, job: JobFile, answers: BinaryIO, service: Service, route: TaskRoute) -> int:
    """A row is in the ledger, then in the file of answers; the job's file goes when all are."""
    assert job.job is not None
    found: Counter[str] = Counter()
    refuses = work.loaded.config.budget.when_out == "refuse"
    with ExitStack() as stack:
        rows = work.rows(stack)
        with written(work.out, answers):
            done, left = rows_of.resume(answers, work.out, rows)
        if done < job.job.begun:
            raise BadFile(f"{work.out} lost rows that it had when the job {job.path} began; restore it")
        records = job.row_answers()
        for answer in itertools.islice(records, done - job.job.begun):
            found[_ended(answer, job, refuses)[0].ending] += 1
        pairs = zip(left, records, strict=True)
        while batch := list(itertools.islice(pairs, SIZE)):
            ended = [(row, answer.held, *_ended(answer, job, refuses)) for row, answer in batch]
            new = [(held, outcome) for _, held, _, outcome in ended if held is not None and outcome is not None]
            try:
                await service.ledger.record([_row(held, outcome, route.info.name) for held, outcome in new])
            except LedgerError as error:
                raise Stopped(f"{error}. Run the same command again to go on") from None
            for held, outcome in new:
                _keep(held, outcome, job, service, route)
            with written(work.out, answers):
                answers.write(b"".join(rows.record(row, values) for row, _, values, _ in ended))
            found.update(values.ending for _, _, values, _ in ended)
    with written(work.out, answers):
        os.fsync(answers.fileno())
    job.remove()
    told = summary(job.job.begun, found)
    if job.questions:
        spent = sum(answer.cost_nano for answer in job.answers.values()) / NANO_PER_USD
        sent = sum(order.count for order in job.orders.values())
        told += f"; {sent} texts asked in batches of {job.job.provider}, ${spent:.6f}"
    click.echo(told, err=True)
    return found["error"]


@contextmanager
def written(out: Path, answers: BinaryIO) -> Iterator[None]:
    """What is written within is with the operating system afterwards. Raises `Stopped`, and closes the file."""
    try:
        yield
        answers.flush()
    except OSError as error:
        with suppress(OSError):  # else the end of the process would try to write the rest
            answers.close()
        raise cant_write(out, error) from None


def _ended(answer: RowAnswer, job: JobFile, refuses: bool) -> tuple[Values, Outcome | None]:
    """What is written of a row; and what became of it, where the ledger does not have it yet. The first row with a text
    pays for all."""
    held, number = answer.held, answer.question
    if held is None or number is None:
        assert answer.values is not None
        return answer.values, None
    assert job.job is not None
    came, question = job.answers[number], job.questions[number]
    first = (held.request_id, held.index) == (question.request_id, question.index)
    cost = came.cost_nano if first else 0
    local = msgspec.structs.replace(held.outcome, degraded=None, coalesced=not first)
    if came.label is not None:
        answered = FrontierAnswer(came.label, job.job.provider, came.model, cost, 0, 1, came.confidence, came.scores)
        ended = outcomes.from_frontier(answered, local)
    elif local.label is None:  # it says so already
        ended = msgspec.structs.replace(local, cost_nano=local.local_nano + cost)
    else:
        reason = came.degraded or "provider_unavailable"
        why = "the budget of the day was used up" if reason == "budget" else NO_ANSWER
        ended = outcomes.degraded(local, FrontierUnavailable(reason, why, cost_nano=cost))
        ended = outcomes.refuse_degraded(ended, {"budget"} if refuses else ())
    wire = outcomes.to_wire(ended, total_us=held.total_us, top_k=None)
    return values_of(msgspec.to_builtins(wire)), ended


def _row(held: Held, ended: Outcome, task: str) -> InputRow:
    return outcomes.to_row(
        ended,
        request_id=held.request_id,
        index=held.index,
        at_us=time.time_ns() // 1000,
        tenant=LOCAL_TENANT,
        task=task,
        text=held.digest,
        total_us=held.total_us,
    )


def _keep(held: Held, ended: Outcome, job: JobFile, service: Service, route: TaskRoute) -> None:
    """What was paid for is in the cache, like any other answer of this frontier."""
    if ended.source == "frontier" and not ended.coalesced:
        slot = Slot(LOCAL_TENANT, route.info.name, held.digest, "frontier", route.frontier_identity, route.label_names)
        service.cache.store(slot, outcomes.to_entry(ended, time.time(), None), since=job.generation)
