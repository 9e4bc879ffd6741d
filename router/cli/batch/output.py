"""The end of a batch job: the answers, written in the order of the input."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from contextlib import ExitStack
from typing import BinaryIO

import click
import msgspec

from cost.types import NANO_PER_USD, InputRow, LedgerError
from router.ask import TaskRoute
from router.cache.entry import Entry
from router.cache.types import Slot
from router.cli import rows as rows_of
from router.cli.asking import Stopped
from router.cli.batch.input import Work
from router.cli.batch.job_file import Answered, JobFile, RowAnswer, Values
from router.cli.classify_file import summary
from router.cli.rows import BadFile
from router.config import LOCAL_TENANT
from router.service import Service

#: Rows that are recorded and written together.
SIZE = 64
#: Digits of a confidence, as on the wire.
DIGITS = 6


async def write(work: Work, job: JobFile, answers: BinaryIO, service: Service, route: TaskRoute) -> int:
    """A row is in the ledger, then in the file of answers; the job's file goes when all are."""
    assert job.job is not None
    found: Counter[str] = Counter()
    refuses = work.loaded.config.budget.when_out == "refuse"
    with ExitStack() as stack:
        rows = work.rows(stack)
        done, left = rows_of.resume(answers, work.out, rows)
        if done < job.job.begun:
            raise BadFile(f"{work.out} lost rows that it had when the job {job.path} began; restore it")
        records = job.row_answers()
        for answer in itertools.islice(records, done - job.job.begun):
            found[_kind(_ended(answer, job, refuses)[0])] += 1
        pairs = zip(left, records, strict=True)
        while batch := list(itertools.islice(pairs, SIZE)):
            ended = [_ended(answer, job, refuses) for _, answer in batch]
            try:
                await service.ledger.record([row for _, row in ended if row is not None])
            except LedgerError as error:
                raise Stopped(f"{error}. Run the same command again to go on") from None
            for (_, answer), (_, row) in zip(batch, ended, strict=True):
                _keep(answer, row, job, service, route)
            answers.write(
                b"".join(rows.record(row, values) for (row, _), (values, _) in zip(batch, ended, strict=True))
            )
            answers.flush()
            found.update(_kind(values) for values, _ in ended)
    os.fsync(answers.fileno())
    job.remove()
    told = summary(job.job.begun, found)
    if job.questions:
        spent = sum(answer.cost_nano for answer in job.answers.values()) / NANO_PER_USD
        sent = sum(order.count for order in job.orders.values())
        told += f"; {sent} texts asked in batches of {job.job.provider}, ${spent:.6f}"
    click.echo(told, err=True)
    return found["error"]


def _kind(values: Values) -> str:
    return "error" if values[4] else "degraded" if values[3] else "fine"


def _ended(answer: RowAnswer, job: JobFile, refuses: bool) -> tuple[Values, InputRow | None]:
    """What is written of a row, and its row in the ledger, where that is not there yet. The first row with a text pays
    for all."""
    held = answer.held
    if held is None or answer.question is None:
        return answer.values, None
    came, question = job.answers[answer.question], job.questions[answer.question]
    first = (held.request_id, held.index) == (question.request_id, question.index)
    row = msgspec.structs.replace(
        held,
        at_us=int(time.time() * 1e6),
        cost_nano=held.local_nano + (came.cost_nano if first else 0),
        coalesced=not first,
        degraded=came.degraded,
    )
    if came.label is not None:
        sure = None if came.confidence is None else round(came.confidence, DIGITS)
        row = msgspec.structs.replace(
            row,
            source="frontier",
            label=came.label,
            confidence=came.confidence,
            model=came.model,
            error=None,
            truncated=False,
        )
        return (came.label, sure, "frontier", None, None), row
    if held.label is None:
        return answer.values, msgspec.structs.replace(row, degraded=None)
    if came.degraded == "budget" and refuses:
        error = "degraded: the frontier's answer was wanted (budget): the budget of the day was used up"
        return (None, None, None, None, error), msgspec.structs.replace(
            row, source="error", label=None, error="degraded"
        )
    label, confidence, source, _, _ = answer.values
    return (label, confidence, source, came.degraded, None), row


def _keep(answer: RowAnswer, row: InputRow | None, job: JobFile, service: Service, route: TaskRoute) -> None:
    """What was paid for is in the cache, like any other answer of this frontier."""
    if row is None or row.source != "frontier" or row.coalesced or answer.question is None:
        return
    came: Answered = job.answers[answer.question]
    slot = Slot(LOCAL_TENANT, route.info.name, row.text_digest, "frontier", route.frontier_identity, route.label_names)
    entry = Entry(
        key="",
        kind="frontier",
        at=time.time(),
        label=row.label or "",
        confidence=row.confidence,
        scores=came.scores,
        model=row.model,
        cost_nano=row.cost_nano,
        tokens=row.tokens,
        truncated=False,
    )
    service.cache.store(slot, entry, since=job.generation)
