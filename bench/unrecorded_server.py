"""`crossover serve` that keeps no ledger rows, to measure what keeping them costs. (There is no such setting.)

python bench/unrecorded_server.py serve --config FILE ...
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from cost.ledger import Ledger
from router.cli import main


def forget(ledger: Ledger, rows: Sequence[Any], **_: Any) -> asyncio.Future[None]:  # noqa: ARG001 - as `Ledger.record`
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


if __name__ == "__main__":
    Ledger.record = forget  # type: ignore[method-assign]
    main()
