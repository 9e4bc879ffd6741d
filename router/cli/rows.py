"""Rows of a file to classify, and the file of answers: CSV or JSON Lines, the same format on both sides.

An answer is its input row, byte by byte what any run would write, followed by what was answered. So a file of answers
shows by itself how far an interrupted run came.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import msgspec

from router.cli import labelled

_BOM = b"\xef\xbb\xbf"


class BadFile(Exception):
    """What is wrong with a file, where, and what to do."""


class Row(NamedTuple):
    fields: Any  # of CSV a list, of JSON a dict
    text: str
    error: str = ""  # why there is nothing to ask


class Values(NamedTuple):
    """What is written of an answer; the columns have these names."""

    label: str | None = None
    confidence: float | None = None
    source: str | None = None
    degraded: str | None = None
    error: str | None = None

    @property
    def ending(self) -> str:
        return "error" if self.error else "degraded" if self.degraded else "fine"


class Rows(Protocol):
    """One of the two formats, with the rows of one input."""

    quoted: bool  # line breaks can stand inside a record, between quotes
    header: bytes  # the first record of the answers; may be empty

    def __iter__(self) -> Iterator[Row]: ...

    def begin(self, row: Row) -> bytes:
        """The input's part of the row's record."""
        ...

    def record(self, row: Row, answer: Values) -> bytes:
        """`begin`, the values, a line break."""
        ...


def read(file: BinaryIO, name: Path, text_col: str) -> Rows:
    """By the name's extension, else by the first character. Raises `BadFile`."""
    lines = iter(file)
    first = next(lines, b"").removeprefix(_BOM)
    lines = itertools.chain([first], lines)
    as_json = is_json(name)
    if first.lstrip().startswith(b"{") if as_json is None else as_json:
        return JsonRows(lines, text_col)
    return CsvRows(lines, name, text_col)


def is_json(name: Path) -> bool | None:
    """What the name's extension says; None where it says nothing."""
    return {".jsonl": True, ".ndjson": True, ".csv": False, ".tsv": False}.get(name.suffix.lower())


def count(path: Path, rows: Rows) -> int:
    """Rows of a file, for a progress bar."""
    with path.open("rb") as file:
        return sum(1 for _ in _complete(file, rows.quoted)) - bool(rows.header)


class CsvRows:
    """Comma, semicolon or tab; UTF-8; with a header line."""

    quoted = True

    def __init__(self, lines: Iterable[bytes], name: Path, text_col: str) -> None:
        csv.field_size_limit(2**31 - 1)
        self._name = name
        lines = iter(lines)
        first = next(lines, b"")
        self._delimiter = labelled.delimiter(name, first.decode(errors="replace"))
        decoded = (line.decode() for line in itertools.chain([first], lines))
        self._reader = csv.reader(decoded, delimiter=self._delimiter, strict=True)
        columns = next(self._records(), [])
        if text_col not in columns:
            raise BadFile(
                f"{name}, line 1: no column {text_col!r}; name the one with the texts with --text-col. "
                f"The columns are: {', '.join(columns)}"
            )
        self._width, self._text = len(columns), columns.index(text_col)
        self.header = self._encode([*columns, *answer_names(columns)]) + b"\n"

    def __iter__(self) -> Iterator[Row]:
        for found in self._records():
            if found:
                wrong = f"{len(found)} fields, the header has {self._width}" if len(found) != self._width else ""
                fields = [*found, *[""] * self._width][: self._width]
                yield Row(fields, fields[self._text], wrong)

    def begin(self, row: Row) -> bytes:
        return self._encode([*row.fields, ""])

    def record(self, row: Row, answer: Values) -> bytes:
        return self._encode([*row.fields, *("" if value is None else value for value in answer)]) + b"\n"

    def _encode(self, fields: list[Any]) -> bytes:
        line = io.StringIO()
        # csv quotes what its line break is made of: with "\n" alone a bare "\r" would end the record for a reader
        csv.writer(line, delimiter=self._delimiter, lineterminator="\r\n").writerow(fields)
        return line.getvalue()[:-2].encode()

    def _records(self) -> Iterator[list[str]]:
        try:
            yield from self._reader
        except UnicodeDecodeError:
            raise BadFile(f"{self._name}, line {self._reader.line_num + 1}: not UTF-8; save it as UTF-8") from None
        except csv.Error as error:
            raise BadFile(f"{self._name}, line {self._reader.line_num}: not CSV: {error}") from None


class JsonRows:
    """An object a line."""

    quoted = False
    header = b""

    def __init__(self, lines: Iterable[bytes], text_col: str) -> None:
        self._lines = lines
        self._text = text_col

    def __iter__(self) -> Iterator[Row]:
        return (self._row(line) for line in self._lines if line.strip())

    def _row(self, line: bytes) -> Row:
        try:
            fields = msgspec.json.decode(line)
            msgspec.json.encode(fields)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return Row({}, "", "not JSON")
        if not isinstance(fields, dict):
            return Row({}, "", "not a JSON object")
        text = fields.get(self._text)
        return Row(fields, text) if isinstance(text, str) else Row(fields, "", f"no text in {self._text!r}")

    def begin(self, row: Row) -> bytes:
        return msgspec.json.encode(row.fields)[:-1]

    def record(self, row: Row, answer: Values) -> bytes:
        answered = dict(zip(answer_names(row.fields), answer, strict=True))
        return msgspec.json.encode({**row.fields, **answered}) + b"\n"


def answer_names(columns: Iterable[str]) -> list[str]:
    """The columns; where the input has such a column it is kept, and the answer's is `answer_label`."""
    taken = set(columns)
    names = []
    for name in Values._fields:
        while name in taken:
            name = f"answer_{name}"
        names.append(name)
    return names


def resume(out: BinaryIO, name: Path, rows: Rows) -> tuple[int, Iterator[Row]]:
    """Leave `out` after its last complete record: how many rows are done, and those that are not.

    Raises `BadFile` and changes nothing if `out` is not what a run over these rows has begun to write.
    """
    other = BadFile(f"{name} holds something else than answers to these rows; remove it, or choose another with -o")
    source = iter(rows)
    end = done = 0
    records = _complete(out, rows.quoted)
    if rows.header:
        first = next(records, b"")
        if first not in (b"", rows.header):
            raise other
        end = len(first)
    for record in records:
        row = next(source, None)
        begun = b"" if row is None else rows.begin(row)
        if row is None or not record.startswith(begun) or record[len(begun) :].strip() in (b"", b"}"):
            raise other  # another row, or the row without an answer
        end += len(record)
        done += 1
    out.seek(end)
    if torn := out.read():
        following = [] if end < len(rows.header) else list(itertools.islice(source, 1))
        source = itertools.chain(following, source)
        due = rows.begin(following[0]) if following else rows.header if not end else b""
        if not (due and (torn.startswith(due) or due.startswith(torn))):
            raise other
        out.seek(end)
        out.truncate()
    if not end:
        out.write(rows.header)
    return done, source


def _complete(file: BinaryIO, quoted: bool) -> Iterator[bytes]:
    """The records that end with a line break outside quotes."""
    file.seek(0)
    record, inside = b"", 0
    for line in file:
        record += line
        inside ^= quoted and line.count(b'"') & 1
        if line.endswith(b"\n") and not inside:
            yield record
            record = b""
