"""`crossover classify -f`: the rows of a file in requests of some rows each; the answers in order, as they come.

An interrupted run, by whatever, is gone on with by the next: what is complete in the file of answers is done.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, aclosing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from router.cli.asking import Ask
from router.cli.rows import BadFile, Row, Rows, Values, count, is_json, read, resume
from router.problems import URN, ProblemError

IN_FLIGHT = 2  # requests
STANDARD = Path("-")  # input or output
#: Problems of a whole request that are over soon, and those that a text in it is the reason of.
PASSING = ("overloaded", "warming")
OF_A_TEXT = ("empty", "over-length", "too-large", "invalid", "deadline", "degraded", "model-failed")

Start = Callable[[], AbstractAsyncContextManager[Ask]]
Result = dict[str, Any]  # of the wire: an answer, or {"error": a problem}
Batch = list[tuple[Row, Result]]
Answering = Callable[[list[Row]], Coroutine[Any, Any, Batch]]


def answer_file(file: Path, out: Path, text_col: str, start: Start, size: int) -> int:
    """Gives the number of rows with an error. Raises `BadFile`, `Unanswered`, and `ProblemError` where no row is the
    reason; then all that was answered is in `out`."""
    with ExitStack() as stack:
        source = open_file(file, "rb", stack, sys.stdin.buffer)
        rows = read(source, file, text_col)
        if out == STANDARD:
            answers, done, left = sys.stdout.buffer, 0, iter(rows)
            answers.write(rows.header)
        else:
            check_format(out, rows, file)
            if job_path(out).exists():
                raise BadFile(f"{out} belongs to the batch job {job_path(out)}; go on with it: --escalate batch")
            answers = open_answers(out, stack)
            done, left = resume(answers, out, rows)
        total = count(file, rows) if file != STANDARD and sys.stderr.isatty() else None
        with progress(total, done) as advance:
            found, spent = asyncio.run(_run(start, rows, left, answers, size, advance))
    written = sum(found.values())
    told = summary(done, found)
    click.echo(f"{told}; {written / spent:.0f} rows/s" if written else told, err=True)
    return found["error"]


def summary(done: int, found: Counter[str]) -> str:
    """`done` rows were there; what became of the others."""
    before = f" ({done} were there)" if done else ""
    errors = "1 error" if found["error"] == 1 else f"{found['error']} errors"
    return f"{done + sum(found.values())} rows{before}: {errors}, {found['degraded']} degraded"


async def _run(
    start: Start, rows: Rows, left: Iterator[Row], answers: BinaryIO, size: int, advance: Callable[[int], None]
) -> tuple[Counter[str], float]:
    """How many rows became what, in how many seconds. The model is loaded only if there is something to ask."""
    found: Counter[str] = Counter()
    first = list(itertools.islice(left, size))
    if not first:
        return found, 0.0
    left = itertools.chain(first, left)
    async with start() as ask, aclosing(in_order(partial(answer_rows, ask), left, size)) as batches:
        began = time.monotonic()
        async for batch in batches:
            written = [(row, values_of(result)) for row, result in batch]
            answers.write(b"".join(rows.record(row, values) for row, values in written))
            answers.flush()
            found.update(values.ending for _, values in written)
            advance(len(batch))
        return found, time.monotonic() - began


async def in_order(answer: Answering, left: Iterator[Row], size: int) -> AsyncGenerator[Batch]:
    """Batches in order, a few of them in flight."""
    waiting: deque[asyncio.Task[Batch]] = deque()
    try:
        # in a thread: standard input may come slowly
        while batch := await asyncio.to_thread(lambda: list(itertools.islice(left, size))):
            waiting.append(asyncio.create_task(answer(batch)))
            if len(waiting) == IN_FLIGHT:
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def answer_rows(ask: Ask, batch: list[Row]) -> Batch:
    texts = [row.text for row in batch if not row.error]
    results = iter(await _results(ask, texts) if texts else ())
    return [(row, _failed("invalid", row.error) if row.error else next(results)) for row in batch]


async def _results(ask: Ask, texts: Sequence[str]) -> list[Result]:
    """One each. What a text is the reason of, or want of time, is asked once more, text by text."""
    alone: tuple[str, ...] = ("deadline", "overloaded")
    try:
        results: list[Result] = (await _admitted(ask, texts))["results"]
    except ProblemError as problem:
        all_at_once = problem.kind == "model-failed" and len(texts) > 1  # then it is the model, not the texts
        if problem.kind not in OF_A_TEXT or all_at_once:
            raise
        results, alone = [_failed(problem.kind, str(problem))] * len(texts), OF_A_TEXT
    if len(texts) > 1:
        for i, result in enumerate(results):
            if "error" in result and _kind(result) in alone:
                (results[i],) = await _results(ask, [texts[i]])
    return results


async def _admitted(ask: Ask, texts: Sequence[str]) -> dict[str, Any]:
    """What passes is waited for."""
    while True:
        try:
            return await ask(texts)
        except ProblemError as problem:
            if problem.kind not in PASSING:
                raise
            await asyncio.sleep(problem.retry_after or 1.0)


def _failed(kind: str, detail: str) -> Result:
    return {"error": {"type": URN + kind, "detail": detail}}


def _kind(result: Result) -> str:
    return str(result["error"]["type"]).removeprefix(URN)


def values_of(result: Result) -> Values:
    if "error" in result:
        return Values(error=f"{_kind(result)}: {result['error']['detail']}")
    return Values(result["label"], result["confidence"], result["source"], result["degraded"])


def open_file(path: Path, mode: str, stack: ExitStack, standard: BinaryIO | None = None) -> BinaryIO:
    if standard is not None and path == STANDARD:
        return standard
    try:
        file: BinaryIO = stack.enter_context(path.open(mode))  # type: ignore[assignment]
    except OSError as error:
        raise BadFile(f"{path} can't be opened: {error.strerror}") from None
    return file


def job_path(out: Path) -> Path:
    """Where the job of `--escalate batch` is noted (`router.cli.batch.job_file`)."""
    return out.with_name(f"{out.name}.batch")


def check_format(out: Path, rows: Rows, file: Path) -> None:
    """Raises `BadFile`."""
    if (as_json := is_json(out)) is not None and as_json == rows.quoted:
        raise BadFile(f"{out}: answers have the format of {file}; choose another name with -o")


def open_answers(out: Path, stack: ExitStack) -> BinaryIO:
    """The file of answers, where no other run writes to it. Raises `BadFile`."""
    answers = open_file(out, "a+b", stack)
    try:
        fcntl.flock(answers, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise BadFile(f"another run is writing to {out}") from None
    return answers


@contextmanager
def progress(total: int | None, done: int) -> Iterator[Callable[[int], None]]:
    """A bar with the rate on a terminal, nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _rows: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task("rows", total=total, completed=done, rate="")

        def advance(rows: int) -> None:
            bar.advance(line, rows)
            bar.update(line, rate=f"{bar.tasks[0].speed or 0:.0f} rows/s")

        yield advance
