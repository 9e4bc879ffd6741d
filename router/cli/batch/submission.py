"""The second half of a batch job: the questions are reserved in the ledger, submitted, waited for, collected, settled.

Whatever ends the process, the next run goes on: what was submitted is in the job's file before and after. A crash (or a
time-out) between the two leaves open whether the provider has the batch. Then it is looked for, at once and again
`GRACE_S` after it was sent, and submitted anew only if it isn't there. What remains: a provider that shows a batch only
later than that. Such a second batch would be paid and not collected; nothing here could know of it, and the ledger has
the questions once. While nobody works on the job the ledger holds its reservations as uncertain, at their upper bound;
settling them later replaces that by what they cost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import msgspec

from cost.types import LedgerError, Outcome, Usage
from providers.batches import Batches, Order, Result, custom_id
from providers.sdk import SdkProvider
from providers.tariffs import TokenTariff
from providers.types import Answer, Permanent, ProviderError, Question
from router.cli.asking import Stopped
from router.cli.batch import books, job_file, patience
from router.cli.batch.books import Books, groups
from router.cli.batch.job_file import Answered, JobFile
from router.cli.batch.patience import Patience

#: Seconds from a submission until a batch that can't be found is taken not to be there.
GRACE_S = 30.0


class Submission:
    """`run` until it returns: then every question has an answer, or a reason for there being none."""

    def __init__(
        self,
        file: JobFile,
        question: Callable[[str], Question],
        texts: Callable[[int, int | None], Iterator[tuple[int, str]]],
        *,
        provider: SdkProvider[Any],
        batches: Batches,
        books: Books,
        tariff: TokenTariff,
        tell: Callable[[str], None] = lambda _line: None,
        show: Callable[[str], None] = lambda _state: None,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`question` of a text; `texts`: (number, text) of the questions from one number to another, or to the last.
        `tell` says what happened, a line each; `show` what is being waited for."""
        assert file.job is not None
        self._file = file
        self._job = file.job.id
        self._question, self._texts = question, texts
        self._provider = provider
        self._batches = batches
        self._books = books
        self._tariff = tariff
        self._tell, self._show, self._sleep, self._wall = tell, show, sleep, wall
        self._patience = Patience(provider.name, file.path, tell=tell, show=show, sleep=sleep)
        self._failed: list[str] = []

    async def run(self) -> None:
        """Raises `Stopped`."""
        try:
            if self._file.unknown is not None:
                order = self._file.orders[self._file.unknown]
                if not order.count or not await self._found(order):
                    self._file.append(job_file.Refused(order.part))
            for part, order in sorted(self._file.orders.items()):
                if part not in self._file.batches and part not in self._file.ended:
                    await self._submit(part, order.first, order.last)
            while (first := self._next()) < len(self._file.questions):
                await self._submit(len(self._file.orders), first, None)
            await self._collect_all()
        except LedgerError as error:
            raise Stopped(f"{error}; nothing is submitted that is not in the books") from None
        except OSError as error:
            raise Stopped(f"the input can't be read: {error}. Run the same command again to go on") from None
        finally:
            for model in self._tariff.unpriced:
                self._tell(
                    f"no batch price is known for {model}, which answered: it is counted at the price of "
                    f"{self._provider.model}, or at the upper bound. Add [providers.{self._provider.name}.price]"
                )
        if self._failed:
            raise Stopped("; ".join(self._failed))

    # submitting ------------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        """The first question that is in no order yet."""
        return max((order.last + 1 for order in self._file.orders.values()), default=0)

    async def _submit(self, part: int, first: int, last: int | None) -> None:
        """As many questions from `first` on as fit into a batch, or those to `last`."""
        lines: dict[int, bytes] = {}
        bounds: dict[int, int] = {}
        size, end = 0, first
        for number, text in self._texts(first, last):
            question = self._question(text)
            if number not in self._file.answers and (asked := self._request(number, question)) is not None:
                line, bound = asked
                full = len(lines) == self._batches.max_requests or size + len(line) > self._batches.max_bytes
                if lines and full and last is None:
                    break
                size += len(line) + 1
                lines[number], bounds[number] = line, bound
            end = number
        if short := await self._reserve(bounds):
            before = [number for number in lines if number < short[0]]
            if last is None and before:  # the others' turn comes when these are settled
                end = before[-1]
                lines = {number: lines[number] for number in before}
            else:
                self._tell(f"{len(short)} texts are not asked: the budget of the day is used up")
                self._file.append(job_file.Answers([Answered(number, None, degraded="budget") for number in short]))
        sent = {number: line for number, line in lines.items() if number not in self._file.answers}
        order = Order(self._job, part, first, end, len(sent), self._wall())
        if not sent:
            self._file.append(job_file.Ordered(order))
            self._file.append(job_file.Ended(part))
            return
        batch = await self._sent(order, list(sent.values()))
        most = sum(bounds[number] for number in sent) / 1e9
        self._tell(f"batch {batch} at {self._provider.name}: {len(sent)} requests, ${most:.6f} at most")

    def _request(self, number: int, question: Question) -> tuple[bytes, int] | None:
        """As the batch holds it, and what it can cost at most. None: it can't be asked, which is noted."""
        estimate = self._tariff.estimate(self._provider.upper_bound(question))
        if estimate is not None:  # else it is longer than there is a price for
            with suppress(ProviderError):
                return self._batches.line(custom_id(self._job, number), self._provider.request(question)), estimate
        self._file.append(job_file.Answers([Answered(number, None, degraded="provider_unavailable")]))
        return None

    async def _sent(self, order: Order, lines: Sequence[bytes]) -> str:
        wait = patience.FIRST_S
        while True:
            order = msgspec.structs.replace(order, at=self._wall())
            self._file.append(job_file.Ordered(order), durable=True)
            try:
                batch = await self._batches.submit(order, lines)
            except ProviderError as error:
                failure = error
            else:
                self._file.append(job_file.Submitted(order.part, batch), durable=True)
                return batch
            if failure.billed == "no":
                self._file.append(job_file.Refused(order.part), durable=True)
                if isinstance(failure, Permanent):
                    await self._release(order, type(failure).__name__)
                    raise Stopped(self._patience.why(failure))
            wait = await self._patience.wait(wait, failure)
            if failure.billed != "no" and await self._found(order):
                return self._file.batches[order.part]

    async def _found(self, order: Order) -> bool:
        """Whether the provider has a batch of which we did not hear; it is noted."""
        known = set(self._file.batches.values())
        pause = partial(self._sleep, patience.LONGEST_S / 4)
        while True:
            began = self._wall()  # a look may take long, and sees only what was there when it began
            batch = await self._patience.asked(partial(self._batches.find, order, known=known, pause=pause))
            if batch is not None:
                self._file.append(job_file.Submitted(order.part, batch), durable=True)
                return True
            if began >= order.at + GRACE_S:
                return False
            self._show(f"looking for a batch that {self._provider.name} may have")
            await self._sleep(max(0.0, min(order.at + GRACE_S - self._wall(), GRACE_S)))

    async def _reserve(self, bounds: dict[int, int]) -> list[int]:
        """Set aside what the questions can cost at most. Gives those that there is no money for, in order. What a batch
        costs in the end is a small part of its upper bound, so what runs is waited for and settled first."""
        short = await self._books.reserve(bounds)
        if short and self._running():
            self._tell("the budget of the day is set aside: the next batch waits until this one is settled")
            await self._collect_all()
            short = await self._books.reserve({number: bounds[number] for number in short})
        if short and short[0] == next(iter(bounds)):  # a crash may have left money set aside for later ones
            await self._books.release(sorted(bounds.keys() - set(short)), "Abandoned")
            short = await self._books.reserve(bounds)
        return short

    # collecting ------------------------------------------------------------------------------------------------------

    def _running(self) -> list[int]:
        return [part for part in sorted(self._file.batches) if part not in self._file.ended]

    async def _collect_all(self) -> None:
        wait = patience.FIRST_S
        while running := self._running():
            done = 0
            for part in running:
                batch = self._file.batches[part]
                progress = await self._patience.asked(partial(self._batches.progress, batch))
                done += progress.done
                if progress.state == "failed":
                    await self._release(self._file.orders[part], "BatchFailed")
                    self._file.append(job_file.Refused(part), durable=True)
                    why = f": {progress.error}" if progress.error else ""
                    what = f"{self._provider.name} refused the batch {batch} whole{why}; nothing of it is charged"
                    self._failed.append(f"{what}. Run the same command again to submit it again")
                elif progress.state == "ended":
                    await self._collect(part, progress.rest)
                    wait = patience.FIRST_S
            if self._running():
                total = sum(order.count for order in self._file.orders.values())
                self._show(f"{self._provider.name} has answered {done} of {total}; the next look is in {wait:.0f} s")
                await self._sleep(wait)
                wait = patience.longer(wait)

    async def _collect(self, part: int, rest: str) -> None:
        """All results of a batch. What they leave out is unbilled if the provider says what became of it (`rest`), else
        nobody knows what it cost."""
        order = self._file.orders[part]
        texts = {n: text for n, text in self._texts(order.first, order.last) if n not in self._file.answers}
        self._show(f"collecting {order.count} results from {self._provider.name}")
        odd = await self._patience.asked(partial(self._stream, order, texts))
        missing = {number: self._missing(number, text, rest) for number, text in texts.items()}
        for group in groups(missing):
            await self._note({number: missing[number] for number in group})
        self._file.append(job_file.Ended(part))
        if odd or missing:
            self._tell(
                f"batch {self._file.batches[part]}: {len(missing)} requests without a result, {odd} lines that are no "
                "result of ours"
            )

    async def _stream(self, order: Order, texts: dict[int, str]) -> int:
        """Take what is answered out of `texts`; gives the number of lines that could not be used."""
        odd, found = 0, {}
        results = self._batches.results(order, self._file.batches[order.part])
        async with aclosing(results):
            async for result in results:
                number = order.question(result.id)
                if number is None or (number not in texts and number not in self._file.answers):
                    odd += 1
                elif number in texts and number not in found:
                    found[number] = self._came(number, texts[number], result)
                if len(found) == books.GROUP:
                    await self._note(found)
                    for number in found:
                        del texts[number]
                    found = {}
        await self._note(found)
        for number in found:
            del texts[number]
        return odd

    async def _note(self, found: dict[int, tuple[Outcome, Answered]]) -> None:
        """First the ledger, then the job: what is noted here is settled there."""
        await self._books.settle({number: outcome for number, (outcome, _) in found.items()})
        if found:
            self._file.append(job_file.Answers([answered for _, answered in found.values()]))

    def _came(self, number: int, text: str, result: Result) -> tuple[Outcome, Answered]:
        """A reply is checked like any other."""
        if result.reply is None:
            return Outcome("unbilled", error=result.error), Answered(number, None, degraded="provider_unavailable")
        question = self._question(text)
        bound, estimate = self._bounds(question)
        try:
            answer: Answer = self._provider.answer(question, result.reply)
        except ProviderError as failure:
            outcome = self._tariff.failed(failure, bound, estimate, 0)
            return outcome, Answered(number, None, cost_nano=outcome.cost_nano, degraded="provider_unavailable")
        outcome = self._tariff.answered(answer, estimate, 0)
        model = answer.model or self._provider.model
        cost = outcome.cost_nano
        return outcome, Answered(number, answer.label, answer.confidence, model, cost, None, answer.scores)

    def _missing(self, number: int, text: str, rest: str) -> tuple[Outcome, Answered]:
        if rest:
            outcome = Outcome("unbilled", error=rest)
        else:
            outcome = self._tariff.unknown("NoResult", self._bounds(self._question(text))[1], 0)
        return outcome, Answered(number, None, cost_nano=outcome.cost_nano, degraded="provider_unavailable")

    def _bounds(self, question: Question) -> tuple[Usage, int]:
        """Of an attempt that was reserved: the ledger knows its upper bound, should it have no price any more."""
        bound = self._provider.upper_bound(question)
        return bound, self._tariff.estimate(bound) or 0

    async def _release(self, order: Order, why: str) -> None:
        """The provider has done nothing."""
        await self._books.release([n for n in range(order.first, order.last + 1) if n not in self._file.answers], why)
