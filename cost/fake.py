"""A ledger in memory, for the unit tests of what stands on it. It keeps the same books and forgets them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from cost.limits import refusal
from cost.schema import DAY_US
from cost.types import AttemptState, InputRow, Intent, LedgerError, LedgerUnwritable, Outcome, Spent


class Attempt(msgspec.Struct):
    """An attempt as it stands: `cost_nano` is what it counts with."""

    intent: Intent
    state: AttemptState
    cost_nano: int
    outcome: Outcome | None = None


class MemoryLedger:
    """Same calls as `cost.ledger.Ledger`. Look at `rows` and `attempts`; set `broken` to make it unwritable."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.rows: list[InputRow] = []
        self.attempts: dict[int, Attempt] = {}
        self.broken = False
        self._clock = clock

    async def record(self, rows: Sequence[InputRow], *, patience_s: float | None = None) -> None:  # noqa: ARG002
        self._check()
        known = {(row.request_id, row.index) for row in self.rows}
        self.rows += [row for row in rows if (row.request_id, row.index) not in known]

    async def reserve(self, intent: Intent) -> int:
        self._check()
        spent = self._spent(intent.at_us)
        by = {"day": {"": spent.day}, "task": spent.tasks, "tenant": spent.tenants}
        if refused := refusal(intent, lambda scope, name: by[scope].get(name, 0)):
            raise refused
        attempt_id = len(self.attempts) + 1
        self.attempts[attempt_id] = Attempt(intent, "reserved", intent.estimate_nano)
        return attempt_id

    async def settle(self, attempt_id: int, outcome: Outcome) -> None:
        self._check()
        attempt = self.attempts.get(attempt_id)
        if attempt is None:
            raise LedgerError(f"there is no attempt {attempt_id} to settle")
        if attempt.state in ("settled", "unbilled") or attempt.state == outcome.state:
            return
        bound = max(outcome.cost_nano, attempt.intent.estimate_nano)
        attempt.cost_nano = {"settled": outcome.cost_nano, "unbilled": 0, "uncertain": bound}[outcome.state]
        attempt.state, attempt.outcome = outcome.state, outcome

    def spent_today_nano(self) -> int:
        return self.spent_today().day

    def spent_today(self) -> Spent:
        return self._spent(int(self._clock() * 1e6))

    @property
    def writable(self) -> bool:
        return not self.broken

    @property
    def pending(self) -> int:
        return 0

    def close(self) -> None:
        self.broken = True

    def _spent(self, at_us: int) -> Spent:
        tasks, tenants = Counter[str](), Counter[str]()
        for attempt in self.attempts.values():
            if attempt.intent.at_us // DAY_US == at_us // DAY_US:
                tasks[attempt.intent.task] += attempt.cost_nano
                tenants[attempt.intent.tenant] += attempt.cost_nano
        return Spent(tasks.total(), dict(tasks), dict(tenants))

    def _check(self) -> None:
        if self.broken:
            raise LedgerUnwritable("the ledger in memory was told to be broken")
