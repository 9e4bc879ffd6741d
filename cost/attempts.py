"""The attempts of some requests, as the ledger has them. Reads it, live or not, and changes nothing."""

from __future__ import annotations

from pathlib import Path

from cost.schema import connect_readonly
from cost.types import AttemptState


def latest(path: Path, requests: str) -> dict[tuple[str, int], tuple[int, AttemptState]]:
    """The last attempt of each input whose request id begins with `requests`: (request, index) -> (attempt, state).

    Raises `LedgerError`.
    """
    db = connect_readonly([path])
    try:
        rows = db.execute(
            "SELECT request_id, idx, id, state FROM attempts WHERE request_id >= ? AND request_id < ? ORDER BY id",
            (requests, requests + "\U0010ffff"),
        )
        return {(request_id, index): (attempt, state) for request_id, index, attempt, state in rows}
    finally:
        db.close()
