"""Reads labelled texts from a CSV file, and says by file and line what is wrong with it."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec

TEXT_NAMES = ("text", "input", "message", "utterance", "sentence", "query", "question", "content", "body")
LABEL_NAMES = ("label", "category", "class", "intent", "target", "gold", "tag")
SHOWN = 5  # lines named in one message


class BadData(Exception):
    """What is wrong with the file, where, and what to do."""


class Labelled(msgspec.Struct, frozen=True):
    """`texts` and `labels` row by row, the columns that they were taken from; `notes` for whoever looks at the
    result."""

    texts: list[str]
    labels: list[str]
    text_column: str
    label_column: str
    notes: tuple[str, ...] = ()


def read(path: Path, text_col: str | None = None, label_col: str | None = None) -> Labelled:
    """UTF-8, with or without a byte order mark; comma, semicolon or tab; with a header line.

    Columns are taken by the names given, else by usual names, else (two columns) by order. Raises BadData.
    """
    rows = _rows(path)
    if not rows:
        raise BadData(f"{path} is empty: it needs a header line and rows of text and label")
    (_, header), body = rows[0], rows[1:]
    text_at, label_at, notes = _columns(path, header, text_col, label_col)
    if notes and _is_data(path, header, body):
        body, header = rows, ["column 1", "column 2"]
        notes = ["the first line looks like data, so it is taken as data: the file has no header line"]
    _check(path, header, body, text_at, label_at)
    texts = [row[text_at].strip() for _, row in body]
    labels = [row[label_at].strip() for _, row in body]
    found = sorted(set(labels))
    if len(found) < 2:
        only = f"only the label {found[0]!r}" if found else "no rows"
        raise BadData(f"{path} has {only} in column {_name(header, label_at)}: a classifier needs two labels or more")
    if len(found) > 20 and len(found) > len(texts) / 2:
        notes.append(
            f"{len(found)} different labels in {len(texts)} rows: is {_name(header, label_at)} really the label column?"
        )
    return Labelled(texts, labels, header[text_at].strip(), header[label_at].strip(), tuple(notes))


def delimiter(path: Path, header: str) -> str:
    """What separates the fields of a file with this header line."""
    if path.suffix == ".tsv" or ("\t" in header and "," not in header):
        return "\t"
    return ";" if ";" in header and "," not in header else ","


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, fields) of every line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter(path, first), strict=True)
            return [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except OSError as error:
        raise BadData(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except csv.Error as error:
        raise BadData(f"{path} is not a CSV file: {error}") from error


def _is_data(path: Path, header: list[str], body: list[tuple[int, list[str]]]) -> bool:
    """Of a first line with two names that nobody knows: it is a row if its second field is a label of other rows.

    Raises BadData if it may be one.
    """
    if header[1].strip() in {row[1].strip() for _, row in body if len(row) == 2}:
        return True
    if any(" " in name.strip() for name in header):
        raise BadData(
            f"{path}, line 1 looks like data, and would be lost as a header: put a line `text,label` before it, or, if "
            "it is the header, name its columns with --text-col and --label-col"
        )
    return False


def _columns(path: Path, header: list[str], text_col: str | None, label_col: str | None) -> tuple[int, int, list[str]]:
    """(index of the text column, of the label column, a note if they were taken by their order alone)."""
    names = [name.strip() for name in header]
    lowered = [name.lower() for name in names]
    text_at = _named(path, names, text_col, "--text-col")
    label_at = _named(path, names, label_col, "--label-col")
    if text_at is None:
        text_at = next((lowered.index(name) for name in TEXT_NAMES if name in lowered), None)
    if label_at is None:
        label_at = next((lowered.index(name) for name in LABEL_NAMES if name in lowered), None)
    if len(names) == 2 and (text_at is None or label_at is None):
        if text_at is None and label_at is None:
            return 0, 1, [f"neither {names[0]!r} nor {names[1]!r} is a usual name: taken by order as text and label"]
        text_at = 1 - label_at if text_at is None and label_at is not None else text_at
        label_at = 1 - text_at if label_at is None and text_at is not None else label_at
    missing = [
        option
        for option, at in (("--text-col", text_at), ("--label-col", label_at))
        if at is None or text_at == label_at
    ]
    if text_at is None or label_at is None or missing:
        raise BadData(
            f"{path}, line 1: can't tell which columns hold text and label; say it with {' and '.join(missing)}. "
            f"The columns are: {', '.join(names)}"
        )
    return text_at, label_at, []


def _named(path: Path, names: list[str], wanted: str | None, option: str) -> int | None:
    if wanted is None:
        return None
    if wanted not in names:
        raise BadData(f"{path}, line 1: no column {wanted!r} ({option}). The columns are: {', '.join(names)}")
    return names.index(wanted)


def _check(path: Path, header: list[str], body: list[tuple[int, list[str]]], text_at: int, label_at: int) -> None:
    if torn := [line for line, row in body if len(row) != len(header)]:
        raise BadData(
            f"{path}, {_lines(torn)}: not {len(header)} fields as in line 1; put texts with commas in double quotes"
        )
    for what, at in (("text", text_at), ("label", label_at)):
        if empty := [line for line, row in body if not row[at].strip()]:
            raise BadData(f"{path}, {_lines(empty)}: no {what}; fill it in or take the line out")


def _lines(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:SHOWN]))
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f"line{'s' if len(numbers) > 1 else ''} {shown}{more}"


def _name(header: list[str], at: int) -> str:
    return repr(header[at].strip())
