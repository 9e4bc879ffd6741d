"""What other parts may ask the books. Reads a ledger, live or not, and changes nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from cost.schema import connect_readonly
from cost.types import LedgerError


def hits(path: Path) -> dict[tuple[str, str, str], tuple[int, int]]:
    """How often the cache answered, and the nano-USD that it saved.

    (text digest in hex, task, who had answered first: "local" or "frontier") -> (hits, saved). Empty where there is no
    ledger, or none that can be read.
    """
    try:
        db = connect_readonly([path])
    except LedgerError:
        return {}
    try:
        rows = db.execute(
            "SELECT text_digest, task, coalesce(answered_by, ''), count(*), sum(saved_nano) FROM inputs"
            " WHERE source = 'cache' GROUP BY 1, 2, 3"
        )
        return {(digest.hex(), task, by): (count, saved) for digest, task, by, count, saved in rows}
    except sqlite3.Error:
        return {}
    finally:
        db.close()
