"""The path of one request: cache, local model, frontier, record. It names no database, no framework and no vendor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from cost.types import InputRow, LedgerError
from local_model.types import Classifier, Expired, ModelError, OverLength, Prediction, QueueFull, TaskInfo
from providers.types import Caller, Frontier, FrontierUnavailable, Label, Question
from router import outcome as outcomes
from router import policy
from router.cache.entry import Kind
from router.cache.keys import normalize
from router.cache.types import Cache, Slot
from router.flights import Flight, Flights
from router.outcome import Outcome
from router.policy import Rules
from router.problems import ProblemError

#: Kept back from the frontier's deadline, to settle, record and answer in.
ANSWER_MARGIN_S = 0.050
#: Characters of a text that `cache.store_preview` keeps.
PREVIEW_LENGTH = 80


class Ledger(Protocol):
    """The seam (`cost.ledger.Ledger`)."""

    def record(self, rows: Sequence[InputRow], *, patience_s: float) -> Awaitable[None]: ...


class TaskRoute(msgspec.Struct, frozen=True):
    """One task, as loaded; made once at start, and again when its model is replaced."""

    info: TaskInfo
    classifier: Classifier
    nano_per_us: float  # what a microsecond of its engine costs
    labels: tuple[Label, ...]
    label_names: frozenset[str]
    instructions: str
    local_parts: Mapping[str, str]  # everything that changes the local answer, by name
    frontier_parts: Mapping[str, str]  # everything that changes the frontier's
    local_identity: str  # their digests
    frontier_identity: str


class Ask(msgspec.Struct, frozen=True):
    """One request, with everything the front door found out about it."""

    request_id: str
    tenant: str
    task: TaskRoute
    texts: Sequence[str]
    rules: Rules
    deadline: float  # in the loop's time
    started_ns: int  # time.perf_counter_ns
    strict: bool = False
    read_cache: bool = True
    write_cache: bool = True


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
        texts = [normalize(text) for text in ask.texts]
        digests = [self._digest(ask.tenant, text) for text in texts]

        found, cache_us = await self._from_cache(ask, digests)
        misses = [i for i, outcome in enumerate(found) if outcome is None]
        computed = await self._compute(ask, misses, texts, digests)
        done = [outcome or computed[i] for i, outcome in enumerate(found)]
        if cache_us:
            done = [msgspec.structs.replace(outcome, cache_us=cache_us) for outcome in done]
        if ask.strict:
            done = [outcomes.refuse_degraded(outcome) for outcome in done]

        await self._record(ask, digests, done)
        self._remember(ask, texts, digests, done)
        return done

    # 1 cache ---------------------------------------------------------------------------------------------------------

    async def _from_cache(self, ask: Ask, digests: Sequence[bytes]) -> tuple[list[Outcome | None], int]:
        """The hits, and how long it took (microseconds). A text has two entries: the local model's answer and a
        frontier's. Today's policy decides on read, so a changed threshold drops nothing that was paid for."""
        if not ask.read_cache:
            return [None] * len(digests), 0
        started = time.perf_counter_ns()
        entries = await self._cache.lookup([self._slot(ask, d, local) for d in digests for local in (True, False)])
        took = (time.perf_counter_ns() - started) // 1000
        found: list[Outcome | None] = []
        for local, frontier in zip(entries[::2], entries[1::2], strict=True):
            if local is not None and policy.accepts(
                ask.rules, local.label, local.confidence or 0.0, truncated=local.truncated
            ):
                found.append(outcomes.from_entry(local))
            elif frontier is not None and ask.rules.may_escalate:
                found.append(outcomes.from_entry(frontier))
            else:
                found.append(None)
        return found, took

    def _slot(self, ask: Ask, digest: bytes, local: bool) -> Slot:
        identity = ask.task.local_identity if local else ask.task.frontier_identity
        kind: Kind = "local" if local else "frontier"
        return Slot(ask.tenant, ask.task.info.name, digest, kind, identity, ask.task.label_names)

    # identical inputs in flight share one computation ----------------------------------------------------------------

    async def _compute(
        self, ask: Ask, misses: Sequence[int], texts: Sequence[str], digests: Sequence[bytes]
    ) -> dict[int, Outcome]:
        """Admit all texts that nobody is computing yet, or none; then wait for every one."""
        keys = {i: self._flight_key(ask, digests[i], None if ask.read_cache else i) for i in misses}
        leaders = {keys[i]: i for i in reversed(misses) if keys[i] not in self._flights}
        mine = sorted(leaders.values())
        for i, prediction in zip(mine, self._admit(ask, [texts[i] for i in mine]), strict=True):
            self._launch(keys[i], ask, i, texts[i], prediction)
        flights = {i: self._flights[keys[i]] for i in misses}

        await self._flights.wait(flights.values(), ask.deadline if mine else ask.deadline - ANSWER_MARGIN_S)
        computed: dict[int, Outcome] = {}
        for i, flight in flights.items():
            if leaders.get(keys[i]) == i:
                computed[i] = self._landed(flight)
            else:
                computed[i] = await self._join(flight, ask, i, texts[i], digests[i])
        return computed

    @staticmethod
    def _flight_key(ask: Ask, digest: bytes, alone: int | None) -> tuple[Any, ...]:
        """The digest names the tenant and the text. `alone`: an input that shares with nobody."""
        identities = (ask.task.local_identity, ask.task.frontier_identity)
        key = (ask.task.info.name, digest, *identities, ask.rules.may_escalate)
        return key if alone is None else (*key, ask.request_id, alone)

    def _launch(
        self, key: tuple[Any, ...], ask: Ask, index: int, text: str, prediction: asyncio.Future[Prediction]
    ) -> Flight:
        flight = self._flights.launch(key)
        if not text:
            prediction.cancel()
        prediction.add_done_callback(partial(self._answer, flight, ask, index, text))
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

    async def _join(self, flight: Flight, ask: Ask, index: int, text: str, digest: bytes) -> Outcome:
        """Another caller's computation, for as long as this one's deadline allows. If that caller had less time, and
        was therefore served less, the first of those who waited begins anew and the others join it."""
        key = self._flight_key(ask, digest, None)
        while True:
            await self._flights.wait([flight], ask.deadline - ANSWER_MARGIN_S)
            served = flight.outcome is not None and not flight.outcome.depends_on_deadline
            if not flight.landed or served or self._flights.closed:
                return outcomes.shared(self._landed(flight))
            if key in self._flights:
                flight = self._flights[key]
                continue
            try:
                (prediction,) = self._admit(ask, [text])
            except ProblemError as error:  # this input's problem: its neighbours may have been paid for
                return outcomes.failed(error.kind, str(error))
            mine = self._launch(key, ask, index, text, prediction)
            await self._flights.wait([mine], ask.deadline)
            return self._landed(mine)

    async def close(self) -> None:
        """Give up what is still being computed; paid calls are settled as uncertain."""
        await self._flights.close()

    # 2 local ---------------------------------------------------------------------------------------------------------

    def _admit(self, ask: Ask, texts: Sequence[str]) -> Sequence[asyncio.Future[Prediction]]:
        if not texts:
            return []
        deadline = min(ask.deadline, asyncio.get_running_loop().time() + self._local_deadline_s)
        truncate = policy.too_long(ask.rules) != "reject"
        try:
            return ask.task.classifier.submit(
                ask.task.info.name, texts, truncate=truncate, deadline=deadline, tenant=ask.tenant
            )
        except QueueFull as full:
            raise ProblemError("overloaded", str(full), retry_after=full.retry_after) from None

    def _answer(self, flight: Flight, ask: Ask, index: int, text: str, prediction: asyncio.Future[Prediction]) -> None:
        """Once the local model is done: its answer where it stands, else the frontier's, else the local one marked
        degraded."""
        try:
            local = flight.local = self._local(ask, text, prediction)
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
        else:
            self._flights.follow(flight, self._escalate(ask, index, text, local))

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

    async def _escalate(self, ask: Ask, index: int, text: str, local: Outcome) -> Outcome:
        question = Question(ask.task.info.name, text, ask.task.labels, ask.task.instructions)
        caller = Caller(ask.request_id, index, ask.tenant, local.tokens)
        try:
            answer = await self._frontier.answer(question, caller, deadline=ask.deadline - ANSWER_MARGIN_S)
        except FrontierUnavailable as why:
            return outcomes.degraded(local, why)
        return outcomes.from_frontier(answer, local)

    # 4 record --------------------------------------------------------------------------------------------------------

    async def _record(self, ask: Ask, digests: Sequence[bytes], done: Sequence[Outcome]) -> None:
        """One row an input, in the operating system's hands before the answer leaves. Books that can't be written stop
        paid calls (in the chain), not answers."""
        total_us = (time.perf_counter_ns() - ask.started_ns) // 1000
        at_us = round(self._clock() * 1e6)
        rows = [
            outcomes.to_row(
                outcome,
                request_id=ask.request_id,
                index=i,
                at_us=at_us,
                tenant=ask.tenant,
                task=ask.task.info.name,
                text=digests[i],
                total_us=total_us,
            )
            for i, outcome in enumerate(done)
        ]
        remaining = ask.deadline - asyncio.get_running_loop().time()
        try:
            await self._ledger.record(rows, patience_s=max(ANSWER_MARGIN_S, remaining))
        except LedgerError as error:
            self._on_ledger_error(error)

    def _remember(self, ask: Ask, texts: Sequence[str], digests: Sequence[bytes], done: Sequence[Outcome]) -> None:
        if not ask.write_cache:
            return
        for text, digest, outcome in zip(texts, digests, done, strict=True):
            if outcome.cacheable and not outcome.coalesced:
                preview = text[:PREVIEW_LENGTH] if self._store_preview else None
                slot = self._slot(ask, digest, outcome.source == "local")
                self._cache.store(slot, outcomes.to_entry(outcome, self._clock(), preview))
