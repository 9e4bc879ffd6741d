"""Reads the rows of a comparison: texts, and the right labels where the file has some."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from router.cli import labelled, rows
from router.compare.rows import Row


def read(path: Path, text_col: str | None, label_col: str | None) -> tuple[list[Row], list[str]]:
    """Rows and notes. CSV or JSON Lines; columns by the names given, else by usual names, as `labelled` has them.

    A file without labels is fine: nobody can be judged then. Raises `BadFile`, `BadData`, `OSError`.
    """
    if rows.is_json(path):
        return _json(path, text_col, label_col), []
    header = _header(path)
    if label_col is None and not _usual(header, labelled.LABEL_NAMES) and len(header) != 2:
        text_col = text_col or _usual(header, labelled.TEXT_NAMES) or (header[0] if len(header) == 1 else "text")
        with path.open("rb") as file:
            return [Row(row.text) for row in rows.read(file, path, text_col)], [f"{path} has no column of labels"]
    found = labelled.read(path, text_col, label_col)
    return [Row(text, label) for text, label in zip(found.texts, found.labels, strict=True)], list(found.notes)


def _json(path: Path, text_col: str | None, label_col: str | None) -> list[Row]:
    found: list[Row] = []
    with path.open("rb") as file:
        first = next(iter(rows.read(file, path, "")), None)
        if first is None:
            return []
        text_col = text_col or _usual(first.fields, labelled.TEXT_NAMES) or "text"
        label_col = label_col or _usual(first.fields, labelled.LABEL_NAMES) or ""
        file.seek(0)
        for number, row in enumerate(rows.read(file, path, text_col), 1):
            if row.error:
                raise rows.BadFile(f"{path}, object {number}: {row.error}; name the field with --text-col")
            label = row.fields.get(label_col)
            found.append(Row(row.text, label if isinstance(label, str) else None))
    return found


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline()
        return [name.strip() for name in next(csv.reader([first], delimiter=labelled.delimiter(path, first)), [])]


def _usual(names: Iterable[str], usual: Iterable[str]) -> str | None:
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[name] for name in usual if name in by_lower), None)
