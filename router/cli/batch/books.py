"""The books of a batch job: each question is one attempt in the ledger, however many processes work on it in turn."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from cost.types import AttemptState, Budget, BudgetExhausted, Intent, Outcome
from router.cli.asking import Stopped
from router.cli.batch.job_file import JobFile

T = TypeVar("T")

#: Reservations, and results, that are dealt with together.
GROUP = 256
#: States in which an attempt waits to be settled; "uncertain" where the process died that had reserved it.
_OPEN = ("reserved", "uncertain")


class Ledger(Protocol):
    """What is needed of `cost.ledger.Ledger`."""

    async def reserve(self, intent: Intent) -> int: ...
    async def settle(self, attempt_id: int, outcome: Outcome) -> None: ...


class Books:
    """By the questions' numbers. All methods raise `LedgerError`."""

    def __init__(
        self,
        file: JobFile,
        ledger: Ledger,
        attempts: dict[tuple[str, int], tuple[int, AttemptState]],
        *,
        tenant: str,
        budget: Budget,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`attempts`: what the ledger has of the job (`cost.attempts.latest`): no process needs to note them."""
        self._file = file
        self._ledger = ledger
        self._attempts = attempts
        self._tenant = tenant
        self._budget = budget
        self._wall = wall

    async def reserve(self, bounds: Mapping[int, int]) -> list[int]:
        """Set aside so many nano-USD each, but for what is set aside already. Gives those that there is no money for,
        in order; after the first of them most are not tried."""
        short: list[int] = []
        for group in groups(bounds):
            if short:
                short += group
                continue
            wanted = [n for n in group if self._attempts.get(self._place(n), (0, "unbilled"))[1] not in _OPEN]
            reserving = [self._ledger.reserve(self._intent(number, bounds[number])) for number in wanted]
            made = await asyncio.gather(*reserving, return_exceptions=True)
            for number, attempt in zip(wanted, made, strict=True):
                if isinstance(attempt, BudgetExhausted):
                    short.append(number)
                elif isinstance(attempt, BaseException):
                    raise attempt
                else:
                    self._attempts[self._place(number)] = (attempt, "reserved")
        return short

    async def settle(self, outcomes: Mapping[int, Outcome]) -> None:
        """What is settled already stays as it is. Raises `Stopped`, and settles none, if one was never reserved: what
        was paid for it would be in no books."""
        if lost := [number for number in outcomes if self._place(number) not in self._attempts]:
            raise Stopped(
                f"the ledger has no reservation of {len(lost)} questions that were submitted: was it replaced? Put it "
                f"back, then run the same command again; or give the job up: remove {self._file.path}"
            )
        for group in groups(outcomes):
            settling = [(self._attempts[self._place(number)][0], outcomes[number]) for number in group]
            await asyncio.gather(*(self._ledger.settle(attempt, how) for attempt, how in settling))

    async def release(self, numbers: Sequence[int], why: str) -> None:
        """The provider has done nothing for them: nothing stays set aside. Who asks them again reserves anew."""
        reserved = [number for number in numbers if self._place(number) in self._attempts]
        await self.settle(dict.fromkeys(reserved, Outcome("unbilled", error=why)))
        for number in reserved:
            del self._attempts[self._place(number)]

    def _place(self, number: int) -> tuple[str, int]:
        question = self._file.questions[number]
        return question.request_id, question.index

    def _intent(self, number: int, estimate: int) -> Intent:
        job, question = self._file.job, self._file.questions[number]
        assert job is not None
        task = job.parts["task"]
        return Intent(
            request_id=question.request_id,
            index=question.index,
            at_us=int(self._wall() * 1e6),
            tenant=self._tenant,
            task=task,
            provider=job.provider,
            model=job.model,
            estimate_nano=estimate,
            tokens=question.tokens,
            limits=self._budget.limits(task, self._tenant),
            batch=True,
        )


def groups(items: Mapping[int, T]) -> Iterator[list[int]]:
    """The keys, `GROUP` at a time."""
    keys = iter(list(items))
    while group := list(itertools.islice(keys, GROUP)):
        yield group
