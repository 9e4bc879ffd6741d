"""The first half of a batch job: what the local model says of the rows, at full speed, and who of them is to be asked.

The pipeline itself decides, with a frontier that only notes who came. Each row has a request id of its place in the
job, so that a row which is asked again after a crash is in the ledger once.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from cost.types import InputRow
from providers.types import Caller, FrontierAnswer, FrontierUnavailable, Question
from router.admission import Tenant
from router.cache import keys
from router.cli.asking import Ask, Unanswered
from router.cli.batch.job_file import Held
from router.config import LOCAL_TENANT
from router.outcome import to_wire
from router.pipeline import Ledger, Pipeline
from router.service import Service
from router.types import ClassifyRequest

#: What is said of a row that has no local answer either, if it gets none.
NO_ANSWER = "none came from the batch"
#: The key of a result, beside what is on the wire, for a row that is to be asked.
HELD = "held"

Place = tuple[str, int]  # request id, index


class _Later:
    """A `Frontier` that asks nobody: it notes who came."""

    def __init__(self) -> None:
        self.wanted: set[Place] = set()

    async def answer(self, question: Question, caller: Caller, *, deadline: float) -> FrontierAnswer:  # noqa: ARG002
        self.wanted.add((caller.request_id, caller.index))
        raise FrontierUnavailable("provider_unavailable", NO_ANSWER)

    def configured(self) -> Sequence[tuple[str, str]]:
        return ()


class _HoldingLedger:
    """The ledger, but for the rows that are to be asked: theirs are kept until it is known what came of them."""

    def __init__(self, ledger: Ledger, later: _Later) -> None:
        self.held: dict[Place, InputRow] = {}
        self._ledger = ledger
        self._later = later

    async def record(self, rows: Sequence[InputRow], *, patience_s: float) -> None:
        done = []
        for row in rows:
            place = (row.request_id, row.index)
            if place in self._later.wanted:
                self._later.wanted.discard(place)
                self.held[place] = row
            else:
                done.append(row)
        await self._ledger.record(done, patience_s=patience_s)


def asking(service: Service, failures: Sequence[str], task: str | None, requests: str) -> Callable[[int], Ask]:
    """By the number of a row, how that row and those after it are asked. `requests`: how all request ids begin."""
    later = _Later()
    ledger = _HoldingLedger(service.ledger, later)
    pipeline = Pipeline(
        cache=service.cache,
        frontier=later,
        ledger=ledger,
        digest=partial(keys.text_digest, service.secret),
        local_deadline_s=service.config.server.local_deadline_ms / 1000,
        store_preview=service.config.cache.store_preview,
    )

    def of(row: int) -> Ask:
        again = itertools.count()

        async def ask(texts: Sequence[str]) -> dict[str, Any]:
            request_id = f"{requests}{row}" + (f".{number}" if (number := next(again)) else "")
            started = time.perf_counter_ns()
            asked = service.ask(ClassifyRequest(list(texts), task=task), Tenant(LOCAL_TENANT), request_id, started)
            # Each row by itself: who waited for a twin would not be known as one to be asked.
            asked = msgspec.structs.replace(asked, coalesce=False, refuses=frozenset())
            try:
                outcomes = await pipeline.classify(asked)
            finally:
                if failures:  # the model is dead: not a fault of these texts
                    raise Unanswered(failures[0])
            took = (time.perf_counter_ns() - started) // 1000
            results = []
            for index, outcome in enumerate(outcomes):
                result = msgspec.to_builtins(to_wire(outcome, total_us=took, top_k=None))
                if (found := ledger.held.pop((request_id, index), None)) is not None:
                    result[HELD] = Held(request_id, index, found.text_digest, found.total_us, outcome)
                results.append(result)
            return {"results": results}

        return ask

    return of
