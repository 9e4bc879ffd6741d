# ruff: noqa: S608 - the parts of the queries are names of this module
"""The ledger's rows as a file for other programs: CSV, or Parquet with the extra `parquet`. Reads only, row by row.

Money is integer nano-USD, times are integer microseconds (`at_us`: since 1970, UTC), as in the ledger. What has no
value is an empty field in CSV and a null in Parquet.
"""

from __future__ import annotations

import csv
import itertools
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from cost.schema import columns, connect_readonly, explained
from cost.types import LedgerError

Table = Literal["inputs", "attempts"]
BATCH = 10_000  # rows of a Parquet row group
_ARROW = {"INTEGER": "int64", "REAL": "float64", "TEXT": "string", "BLOB": "binary"}


def to_csv(
    ledgers: Sequence[Path], out: TextIO, *, table: Table, since_us: int | None = None, until_us: int | None = None
) -> int:
    """Gives the number of rows. Digests are written in hex. Raises `LedgerError`, `OSError`."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns(table))
    written = 0
    for row in _rows(ledgers, table, since_us, until_us):
        writer.writerow([value.hex() if isinstance(value, bytes) else value for value in row])
        written += 1
    return written


def to_parquet(
    ledgers: Sequence[Path], out: Path, *, table: Table, since_us: int | None = None, until_us: int | None = None
) -> int:
    """Gives the number of rows. Raises `LedgerError`, `OSError`."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise LedgerError(
            "Parquet needs pyarrow, which is not installed: pip install 'crossover-router[parquet]', or write CSV"
        ) from error
    schema = pyarrow.schema([(name, _ARROW[kind]) for name, kind in columns(table).items()])
    rows, written = _rows(ledgers, table, since_us, until_us), 0
    with parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        while batch := list(itertools.islice(rows, BATCH)):
            values = zip(zip(*batch, strict=True), schema.types, strict=True)
            writer.write_batch(pyarrow.record_batch([pyarrow.array(*column) for column in values], schema=schema))
            written += len(batch)
    return written


def _rows(
    ledgers: Sequence[Path], table: Table, since_us: int | None, until_us: int | None
) -> Iterator[tuple[Any, ...]]:
    """One ledger after the other, each in the order of time."""
    first, end = -(2**63) if since_us is None else since_us, 2**63 - 1 if until_us is None else until_us
    for path in ledgers:
        db = connect_readonly([path])
        try:
            yield from db.execute(
                f"SELECT {', '.join(columns(table))} FROM {table} WHERE at_us >= ? AND at_us < ? ORDER BY at_us",
                (first, end),
            )
        except sqlite3.Error as error:
            raise explained(path, error) from error
        finally:
            db.close()
