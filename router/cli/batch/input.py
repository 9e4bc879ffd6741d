"""The input of a batch job: read again and again, since the job's file holds no text of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from router.cache.keys import normalize
from router.cli import rows as rows_of
from router.cli.batch.job_file import JobFile
from router.cli.classify_file import open_file
from router.cli.rows import BadFile
from router.config_file import Loaded


class Work(NamedTuple):
    """What the command was called with."""

    loaded: Loaded
    file: Path
    out: Path
    text_col: str
    task: str | None
    stamp: tuple[int, int]  # of the input

    def rows(self, stack: ExitStack) -> rows_of.Rows:
        """From the first; each call reads anew. Raises `BadFile`."""
        if self.stamp != stamp_of(self.file):
            raise BadFile(f"{self.file} was changed while it was worked on; put it back and run the same command again")
        return rows_of.read(open_file(self.file, "rb", stack), self.file, self.text_col)


def stamp_of(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size


def texts(work: Work, job: JobFile, first: int, last: int | None) -> Iterator[tuple[int, str]]:
    """(number, text) of the questions from `first` to `last`, or to the end: read from the input, as ever."""
    assert job.job is not None
    numbers = iter(range(first, len(job.questions) if last is None else last + 1))
    number = next(numbers, None)
    with ExitStack() as stack:
        for place, row in enumerate(itertools.islice(work.rows(stack), job.job.begun, None)):
            if number is None:
                return
            if place == job.questions[number].row:
                yield number, normalize(row.text)
                number = next(numbers, None)
