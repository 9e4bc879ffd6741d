"""The file of a batch job, beside its answers: what was done, so that the next run goes on there.

JSON lines that are only ever appended; the last one may be torn by a crash, and is then dropped. It holds no text of
the input: texts are read from the input again, which must not have changed. Nobody else may read it (0600).

    {"is": "job", ...}        first: of which input, config and provider
    {"is": "rows", ...}       what the local model said of the next rows of the input; who of them is to be asked
    {"is": "local"}           of all rows
    {"is": "ordered", ...}    is about to be submitted. If none of the next two follows, nobody knows whether it was
    {"is": "submitted", ...}  the provider has it, under this id
    {"is": "refused", ...}    it does not
    {"is": "answered", ...}   what came of some questions; they are settled in the ledger
    {"is": "ended", ...}      a batch of which nothing more is to come
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgspec

from providers.batches import Order
from providers.types import DegradedReason
from router.cli.asking import Stopped
from router.cli.rows import BadFile, Values
from router.outcome import Outcome


class Job(msgspec.Struct, frozen=True, tag_field="is", tag="job"):
    """`parts`: digests, or plain words, of all that must not change until the job is over."""

    id: str  # 12 hex digits
    parts: dict[str, str]
    provider: str
    model: str
    prices: str  # the version that the estimates were made with
    begun: int  # rows that another run had answered before
    version: int = 1


class Held(msgspec.Struct, frozen=True, array_like=True):
    """A row to be asked, which the ledger does not have yet. `outcome`: if no answer comes."""

    request_id: str
    index: int
    digest: bytes  # of the text
    total_us: int
    outcome: Outcome


class RowAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What there is to write of a row, or who is to be asked. Rows with the same text share a question."""

    values: Values | None = None
    question: int | None = None
    held: Held | None = None


class Rows(msgspec.Struct, frozen=True, tag_field="is", tag="rows"):
    rows: list[RowAnswer]


class Local(msgspec.Struct, frozen=True, tag_field="is", tag="local"):
    generation: str  # of the cache: what was begun before a purge is not kept


class Ordered(msgspec.Struct, frozen=True, tag_field="is", tag="ordered"):
    order: Order


class Submitted(msgspec.Struct, frozen=True, tag_field="is", tag="submitted"):
    part: int
    batch: str


class Refused(msgspec.Struct, frozen=True, tag_field="is", tag="refused"):
    part: int


class Answered(msgspec.Struct, frozen=True, array_like=True):
    """Of a question: the frontier's label, or the reason for there being none. `cost_nano`: what its attempt counts."""

    question: int
    label: str | None
    confidence: float | None = None
    model: str = ""
    cost_nano: int = 0
    degraded: DegradedReason | None = None
    scores: tuple[tuple[str, float], ...] = ()


class Answers(msgspec.Struct, frozen=True, tag_field="is", tag="answered"):
    answers: list[Answered]


class Ended(msgspec.Struct, frozen=True, tag_field="is", tag="ended"):
    part: int


class Pending(msgspec.Struct, frozen=True):
    """One text to be asked: where it stands first, and under which keys the ledger has it."""

    row: int  # of the job's, from 0
    request_id: str
    index: int
    tokens: int


Line = Job | Rows | Local | Ordered | Submitted | Refused | Answers | Ended
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Line)


def cant_write(path: Path, error: OSError) -> Stopped:
    return Stopped(f"{path} can't be written: {error.strerror}. Mend that, then run the same command again: it goes on")


class JobFile:
    """Locked while it is open."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self.job: Job | None = None
        self.rows = 0  # the local model has answered
        self.local_done, self.generation = False, ""
        self.questions: list[Pending] = []
        self.numbers: dict[bytes, int] = {}  # text digest -> question
        self.answers: dict[int, Answered] = {}
        self.orders: dict[int, Order] = {}
        self.unknown: int | None = None  # the part of which nobody knows whether it was submitted
        self.batches: dict[int, str] = {}  # part -> the batch's id
        self.ended: set[int] = set()

    @classmethod
    def open(cls, path: Path) -> Self:
        """What is there is read; nothing is there for a new job. Raises `BadFile`."""
        try:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+b")
        except OSError as error:
            raise BadFile(f"{path} can't be opened: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            job = cls(path, file)
            job._read()
        except OSError:
            file.close()
            raise BadFile(f"another run works on the job {path}") from None
        except BadFile:
            file.close()
            raise
        return job

    def close(self) -> None:
        with suppress(OSError):  # of a line that could not be written; that was said
            self._file.close()

    def remove(self) -> None:
        """The job is over."""
        self.path.unlink(missing_ok=True)

    def append(self, line: Line, *, durable: bool = False) -> None:
        """`durable`: on the disk before this returns; else with the operating system. Raises `Stopped`."""
        try:
            self._file.write(msgspec.json.encode(line) + b"\n")
            self._file.flush()
            if durable:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise cant_write(self.path, error) from None
        self._note(line)

    def row_answers(self) -> Iterator[RowAnswer]:
        """Of all rows, in order."""
        with self.path.open("rb") as file:
            for line in file:
                found = _decoder.decode(line)
                if isinstance(found, Rows):
                    yield from found.rows

    def _read(self) -> None:
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break  # torn
            try:
                self._note(_decoder.decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                raise BadFile(
                    f"{self.path}, line {number}: not written by this release, or damaged; use the release that began "
                    "the job, or give it up: remove this file"
                ) from None
            end += len(line)
        self._file.truncate(end)

    def _note(self, line: Line) -> None:
        match line:
            case Job():
                self.job = line
            case Rows(rows):
                for row in rows:
                    if row.question == len(self.questions) and (held := row.held) is not None:
                        self.questions.append(Pending(self.rows, held.request_id, held.index, held.outcome.tokens))
                        self.numbers[held.digest] = row.question
                    self.rows += 1
            case Local(generation):
                self.local_done, self.generation = True, generation
            case Ordered(order):
                self.orders[order.part] = order
                self.unknown = order.part
            case Submitted(part, batch):
                self.batches[part] = batch
                self.unknown = None
            case Refused(part):
                self.batches.pop(part, None)
                self.unknown = None
            case Answers(answers):
                self.answers.update({answer.question: answer for answer in answers})
            case Ended(part):
                self.ended.add(part)
                self.unknown = None
