"""The path of one request: cache, local model, frontier, record. It names no database, no framework and no vendor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from cost.types import InputRow, LedgerError
from local_model.types import Expired, ModelError, OverLength, Prediction, QueueFull
from providers.types import Caller, Frontier, FrontierUnavailable
from router import outcome as outcomes
from router import policy
from router.ask import Ask, Input
from router.cache.entry import Entry, Kind
from router.cache.keys import normalize
from router.cache.types import Cache, Slot
from router.flights import Flight, Flights
from router.outcome import CacheTier, Outcome
from router.problems import ProblemError

#: Kept back from the frontier's deadline, to settle, record and answer in.
ANSWER_MARGIN_S = 0.050
#: Characters of a text that `cache.store_preview` keeps.
PREVIEW_LENGTH = 80
#: The entries of one text.
BOTH: tuple[Kind, Kind] = ("local", "frontier")


class Ledger(Protocol):
    """The seam (`cost.ledger.Ledger`)."""

    def record(self, rows: Sequence[InputRow], *, patience_s: float) -> Awaitable[None]: ...


class Pipeline:
    """Built once, in `router.service`."""

    def __init__(
        self,
        *,
        cache: Cache,
        frontier: Frontier,
        ledger: Ledger,
        digest: Callable[[str, str], bytes],  # of (tenant, normalized text)
        local_deadline_s: float,
        store_preview: bool = False,
        clock: Callable[[], float] = time.time,
        on_ledger_error: Callable[[LedgerError], None] = lambda _error: None,
    ) -> None:
        self._cache = cache
        self._frontier = frontier
        self._ledger = ledger
        self._digest = digest
        self._local_deadline_s = local_deadline_s
        self._store_preview = store_preview
        self._clock = clock
        self._on_ledger_error = on_ledger_error
        self._flights = Flights()

    async def classify(self, ask: Ask) -> list[Outcome]:
        """One outcome per text, in order. Raises `ProblemError` only for what fails the whole request."""
        with ask.task.classifier:
            return await self._classify(ask)

    async def _classify(self, ask: Ask) -> list[Outcome]:
        normal = [normalize(text) for text in ask.texts]
        inputs = [Input(i, text, self._digest(ask.tenant, text)) for i, text in enumerate(normal)]

        found, cache_us = await self._from_cache(ask, inputs)
        misses = [each for each in inputs if found[each.place] is None]
        computed = await self._compute(ask, misses) if misses else {}
        done = [outcome or msgspec.structs.replace(computed[i], cache_us=cache_us) for i, outcome in enumerate(found)]
        if ask.refuses:
            done = [outcomes.refuse_degraded(outcome, ask.refuses) for outcome in done]

        await self._record(ask, inputs, done)
        return done

    # 1 cache ---------------------------------------------------------------------------------------------------------

    async def _from_cache(self, ask: Ask, inputs: Sequence[Input]) -> tuple[list[Outcome | None], int]:
        """The hits, and how long the misses took (microseconds). A text has two entries: the local model's answer and
        a frontier's. What this process remembers goes first; who else is asked, is asked for the rest."""
        if not ask.read_cache:
            return [None] * len(inputs), 0
        started = time.perf_counter_ns()
        slots = [self._slot(ask, each, kind) for each in inputs for kind in BOTH]
        entries = self._cache.recall(slots)
        took = max(1, (time.perf_counter_ns() - started) // 1000)
        pairs = zip(entries[::2], entries[1::2], strict=True)
        found = [self._hit(ask, local, frontier, "memory", took) for local, frontier in pairs]
        left = [i for i, outcome in enumerate(found) if outcome is None]
        if left:
            entries = await self._cache.lookup([slot for i in left for slot in slots[2 * i : 2 * i + 2]])
            took = (time.perf_counter_ns() - started) // 1000
            for i, local, frontier in zip(left, entries[::2], entries[1::2], strict=True):
                found[i] = self._hit(ask, local, frontier, "redis", took)
        return found, took

    @staticmethod
    def _hit(ask: Ask, local: Entry | None, frontier: Entry | None, tier: CacheTier, took_us: int) -> Outcome | None:
        """Today's policy decides on read, so a changed threshold drops nothing that was paid for."""
        if local is not None and policy.accepts(
            ask.rules, local.label, local.confidence or 0.0, truncated=local.truncated
        ):
            return outcomes.from_entry(local, tier, took_us)
        if frontier is not None and ask.rules.may_escalate:
            return outcomes.from_entry(frontier, tier, took_us)
        return None

    @staticmethod
    def _slot(ask: Ask, each: Input, kind: Kind) -> Slot:
        task = ask.task
        identity = task.local_identity if kind == "local" else task.frontier_identity
        return Slot(ask.tenant, task.info.name, each.digest, kind, identity, task.label_names)

    def _keep(self, ask: Ask, each: Input, since: str, outcome: Outcome) -> None:
        """Where it was computed, not where its caller returns: who leaves loses no paid answer. `since`: the cache's
        generation when that began."""
        if ask.write_cache and outcome.cacheable:
            preview = each.text[:PREVIEW_LENGTH] if self._store_preview else None
            entry = outcomes.to_entry(outcome, self._clock(), preview)
            self._cache.store(self._slot(ask, each, entry.kind), entry, since=since)

    # identical inputs in flight share one computation ----------------------------------------------------------------

    async def _compute(self, ask: Ask, misses: Sequence[Input]) -> dict[int, Outcome]:
        """Admit all texts that nobody is computing yet, or none; then wait for every one."""
        keys = {each.place: self._flight_key(ask, each, alone=not ask.coalesce) for each in misses}
        leaders = {keys[each.place]: each for each in reversed(misses) if keys[each.place] not in self._flights}
        mine = sorted(leaders.values())
        for each, prediction in zip(mine, self._admit(ask, mine), strict=True):
            self._launch(keys[each.place], ask, each, prediction)
        flights = {i: self._flights[key] for i, key in keys.items()}

        await self._flights.wait(flights.values(), ask.deadline if mine else ask.deadline - ANSWER_MARGIN_S)
        return {
            each.place: self._landed(flights[each.place])
            if leaders.get(keys[each.place]) is each
            else await self._join(flights[each.place], ask, each)
            for each in misses
        }

    @staticmethod
    def _flight_key(ask: Ask, each: Input, *, alone: bool) -> tuple[Any, ...]:
        """The digest names the tenant and the text. `alone`: shared with nobody."""
        identities = (ask.task.local_identity, ask.task.frontier_identity)
        key = (ask.task.info.name, each.digest, *identities, ask.rules.may_escalate)
        return (*key, ask.request_id, each.place) if alone else key

    def _launch(self, key: tuple[Any, ...], ask: Ask, each: Input, prediction: asyncio.Future[Prediction]) -> Flight:
        flight = self._flights.launch(key)
        if not each.text:
            prediction.cancel()
        since = self._cache.generation(ask.task.info.name)
        prediction.add_done_callback(partial(self._answer, flight, ask, each, since))
        return flight

    @staticmethod
    def _landed(flight: Flight) -> Outcome:
        """Its answer; or what there is to say when the time for it is over."""
        if flight.error is not None:
            raise flight.error
        if flight.outcome is not None:
            return flight.outcome
        if flight.landed:
            return outcomes.failed("draining", "the service is stopping")
        if flight.local is None:
            return outcomes.failed("deadline", "the local model did not answer in time")
        return outcomes.degraded(flight.local, FrontierUnavailable("deadline", "the frontier did not answer in time"))

    async def _join(self, flight: Flight, ask: Ask, each: Input) -> Outcome:
        """Another caller's computation, for as long as this one's deadline allows. If that caller had less time, and
        was therefore served less, the first of those who waited begins anew and the others join it."""
        key = self._flight_key(ask, each, alone=False)
        while True:
            await self._flights.wait([flight], ask.deadline - ANSWER_MARGIN_S)
            served = flight.outcome is not None and not flight.outcome.depends_on_deadline
            if not flight.landed or served or self._flights.closed:
                return outcomes.shared(self._landed(flight))
            if key in self._flights:
                flight = self._flights[key]
                continue
            try:
                (prediction,) = self._admit(ask, [each])
            except ProblemError as error:  # this input's problem: its neighbours may have been paid for
                return outcomes.failed(error.kind, str(error))
            mine = self._launch(key, ask, each, prediction)
            await self._flights.wait([mine], ask.deadline)
            return self._landed(mine)

    async def close(self) -> None:
        """Give up what is still being computed; paid calls are settled as uncertain."""
        await self._flights.close()

    # 2 local ---------------------------------------------------------------------------------------------------------

    def _admit(self, ask: Ask, inputs: Sequence[Input]) -> Sequence[asyncio.Future[Prediction]]:
        if not inputs:
            return []
        deadline = min(ask.deadline, asyncio.get_running_loop().time() + self._local_deadline_s)
        truncate = policy.too_long(ask.rules) != "reject"
        texts = [each.text for each in inputs]
        try:
            return ask.task.classifier.submit(
                ask.task.info.name, texts, truncate=truncate, deadline=deadline, tenant=ask.tenant
            )
        except QueueFull as full:
            raise ProblemError("overloaded", str(full), retry_after=full.retry_after) from None

    def _answer(
        self, flight: Flight, ask: Ask, each: Input, since: str, prediction: asyncio.Future[Prediction]
    ) -> None:
        """Once the local model is done: its answer where it stands, else the frontier's, else the local one marked
        degraded."""
        try:
            local = flight.local = self._local(ask, each.text, prediction)
        except Exception as error:  # noqa: BLE001 - in a callback the loop would swallow it, and all would wait
            self._flights.land(flight, None, error)
            return
        stands = local.label is not None and policy.accepts(
            ask.rules, local.label, local.confidence or 0.0, truncated=local.truncated
        )
        hopeless = local.error in ("deadline", "empty") or (
            local.error == "over-length" and policy.too_long(ask.rules) != "escalate"
        )
        if stands or hopeless or not ask.rules.may_escalate:
            self._flights.land(flight, local)
            self._keep(ask, each, since, local)
        else:
            self._flights.follow(flight, self._escalate(ask, each, since, local))

    def _local(self, ask: Ask, text: str, prediction: asyncio.Future[Prediction]) -> Outcome:
        if not text:
            return outcomes.failed("empty", "nothing is left of the text without white space")
        try:
            return outcomes.from_prediction(prediction.result(), ask.task.info, ask.task.nano_per_us)
        except OverLength as error:
            return outcomes.failed("over-length", str(error), tokens=error.tokens)
        except Expired as error:
            return outcomes.failed("deadline", str(error))
        except (ModelError, asyncio.CancelledError) as error:
            return outcomes.failed("model-failed", str(error))

    # 3 frontier ------------------------------------------------------------------------------------------------------

    async def _escalate(self, ask: Ask, each: Input, since: str, local: Outcome) -> Outcome:
        """Bought once: by this process, or by another that has begun. Who wants it afresh buys it."""
        if not ask.read_cache:
            return await self._buy(ask, each, since, local)
        started = time.perf_counter_ns()
        slot = self._slot(ask, each, "frontier")
        async with self._cache.sole(slot, until=ask.deadline - ANSWER_MARGIN_S) as elsewhere:
            if elsewhere is None:
                return await self._buy(ask, each, since, local)
        return outcomes.bought_elsewhere(elsewhere, local, (time.perf_counter_ns() - started) // 1000)

    async def _buy(self, ask: Ask, each: Input, since: str, local: Outcome) -> Outcome:
        caller = Caller(ask.request_id, each.place, ask.tenant, local.tokens)
        try:
            answer = await self._frontier.answer(
                ask.task.question(each.text), caller, deadline=ask.deadline - ANSWER_MARGIN_S
            )
        except FrontierUnavailable as why:
            return outcomes.degraded(local, why)
        bought = outcomes.from_frontier(answer, local)
        self._keep(ask, each, since, bought)
        return bought

    # 4 record --------------------------------------------------------------------------------------------------------

    async def _record(self, ask: Ask, inputs: Sequence[Input], done: Sequence[Outcome]) -> None:
        """One row an input, in the operating system's hands before the answer leaves. Books that can't be written stop
        paid calls (in the chain), not answers."""
        total_us = (time.perf_counter_ns() - ask.started_ns) // 1000
        at_us = round(self._clock() * 1e6)
        rows = [
            outcomes.to_row(
                outcome,
                request_id=ask.request_id,
                index=each.place,
                at_us=at_us,
                tenant=ask.tenant,
                task=ask.task.info.name,
                text=each.digest,
                total_us=total_us,
            )
            for each, outcome in zip(inputs, done, strict=True)
        ]
        remaining = ask.deadline - asyncio.get_running_loop().time()
        try:
            await self._ledger.record(rows, patience_s=max(ANSWER_MARGIN_S, remaining))
        except LedgerError as error:
            self._on_ledger_error(error)
