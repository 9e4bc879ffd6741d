"""The path of one request: cache, local model, frontier, record. It names no database, no framework and no vendor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from cost.types import InputRow, LedgerError, LedgerUnwritable
from local_model.types import Classifier, Expired, ModelError, OverLength, Prediction, QueueFull, TaskInfo
from providers.types import Caller, Frontier, FrontierUnavailable, Label, Question
from router import outcome as outcomes
from router import policy
from router.cache.entry import Kind
from router.cache.keys import normalize
from router.cache.types import Cache, Slot
from router.outcome import Outcome
from router.policy import Rules
from router.problems import ProblemError

#: Kept back from the frontier's deadline, to settle, record and answer in.
ANSWER_MARGIN_S = 0.050
#: Characters of a text that `cache.store_preview` keeps.
PREVIEW_LENGTH = 80


class Ledger(Protocol):
    """The seam (`cost.ledger.Ledger`)."""

    async def record(self, rows: Sequence[InputRow]) -> None: ...


class TaskRoute(msgspec.Struct, frozen=True):
    """One task, as loaded; made once at start."""

    info: TaskInfo
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


class Flight:
    """A computation that several callers may wait for."""

    task: asyncio.Task[Outcome]
    local: Outcome | None = None  # once the local model has answered


class Pipeline:
    """Built once, in `router.service`."""

    def __init__(
        self,
        *,
        cache: Cache,
        classifier: Classifier,
        frontier: Frontier,
        ledger: Ledger,
        digest: Callable[[str, str], bytes],  # of (tenant, normalized text)
        local_deadline_s: float,
        nano_per_local_us: float,
        store_preview: bool = False,
        clock: Callable[[], float] = time.time,
        on_ledger_error: Callable[[LedgerError], None] = lambda _error: None,
    ) -> None:
        self._cache = cache
        self._classifier = classifier
        self._frontier = frontier
        self._ledger = ledger
        self._digest = digest
        self._local_deadline_s = local_deadline_s
        self._nano_per_local_us = nano_per_local_us
        self._store_preview = store_preview
        self._clock = clock
        self._on_ledger_error = on_ledger_error
        self._in_flight: dict[tuple[Any, ...], Flight] = {}

    async def classify(self, ask: Ask) -> list[Outcome]:
        """One outcome per text, in order. Raises `ProblemError` only for what fails the whole request."""
        texts = [normalize(text) for text in ask.texts]
        digests = [self._digest(ask.tenant, text) for text in texts]

        found, cache_us = await self._from_cache(ask, digests)
        misses = [i for i, outcome in enumerate(found) if outcome is None]
        computed = await self._compute(ask, misses, texts, digests)
        done = [msgspec.structs.replace(outcome or computed[i], cache_us=cache_us) for i, outcome in enumerate(found)]
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
        """Admit all texts that nobody is computing yet, or none; then wait for every one. A computation is a task of
        its own: a caller who leaves stops neither what others wait for nor the settling of a paid call."""
        keys = {i: self._flight_key(ask, digests[i], None if ask.read_cache else i) for i in misses}
        leaders = {keys[i]: i for i in reversed(misses) if keys[i] not in self._in_flight}
        mine = sorted(leaders.values())
        for i, prediction in zip(mine, self._admit(ask, [texts[i] for i in mine]), strict=True):
            self._launch(keys[i], ask, i, texts[i], prediction)
        flights = {i: self._in_flight[keys[i]] for i in misses}

        computed: dict[int, Outcome] = {}
        for i, flight in flights.items():
            if leaders.get(keys[i]) == i:
                computed[i] = await asyncio.shield(flight.task)
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
        flight = self._in_flight[key] = Flight()
        flight.task = asyncio.create_task(self._answer(ask, index, text, prediction, flight))
        flight.task.add_done_callback(lambda _: self._in_flight.pop(key, None))
        return flight

    async def close(self) -> None:
        """Give up what is still being computed; paid calls are settled as uncertain."""
        flights = [flight.task for flight in self._in_flight.values()]
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    async def _join(self, flight: Flight, ask: Ask, index: int, text: str, digest: bytes) -> Outcome:
        """Another caller's computation, for as long as this one's deadline allows. If that caller had less time, and
        was therefore served less, the first of those who waited begins anew and the others join it."""
        key = self._flight_key(ask, digest, None)
        while True:
            remaining = ask.deadline - ANSWER_MARGIN_S - asyncio.get_running_loop().time()
            await asyncio.wait({flight.task}, timeout=max(0.0, remaining))
            if not flight.task.done():
                late = FrontierUnavailable("deadline", "an identical request is still waiting for the frontier")
                if flight.local is None:
                    return outcomes.failed("deadline", "an identical request is still being computed")
                return outcomes.shared(outcomes.degraded(flight.local, late))
            if not (flight.task.cancelled() or flight.task.exception() or flight.task.result().depends_on_deadline):
                return outcomes.shared(flight.task.result())
            if key in self._in_flight:
                flight = self._in_flight[key]
                continue
            try:
                (prediction,) = self._admit(ask, [text])
            except ProblemError as error:  # this input's problem: its neighbours may have been paid for
                return outcomes.failed(error.kind, str(error))
            return await asyncio.shield(self._launch(key, ask, index, text, prediction).task)

    # 2 local ---------------------------------------------------------------------------------------------------------

    def _admit(self, ask: Ask, texts: Sequence[str]) -> Sequence[asyncio.Future[Prediction]]:
        if not texts:
            return []
        deadline = min(ask.deadline, asyncio.get_running_loop().time() + self._local_deadline_s)
        truncate = policy.too_long(ask.rules) != "reject"
        try:
            return self._classifier.submit(ask.task.info.name, texts, truncate=truncate, deadline=deadline)
        except QueueFull as full:
            raise ProblemError("overloaded", str(full), retry_after=full.retry_after) from None

    async def _answer(
        self, ask: Ask, index: int, text: str, prediction: asyncio.Future[Prediction], flight: Flight
    ) -> Outcome:
        """The local answer where it stands, else the frontier's, else the local one marked degraded."""
        if not text:
            prediction.cancel()
            return outcomes.failed("empty", "nothing is left of the text without white space")
        local = flight.local = await self._local(ask, prediction)
        stands = local.label is not None and policy.accepts(
            ask.rules, local.label, local.confidence or 0.0, truncated=local.truncated
        )
        hopeless = local.error == "deadline" or (
            local.error == "over-length" and policy.too_long(ask.rules) != "escalate"
        )
        if stands or hopeless or not ask.rules.may_escalate:
            return local
        return await self._escalate(ask, index, text, local)

    async def _local(self, ask: Ask, prediction: asyncio.Future[Prediction]) -> Outcome:
        try:
            async with asyncio.timeout_at(ask.deadline):
                return outcomes.from_prediction(await prediction, ask.task.info, self._nano_per_local_us)
        except OverLength as error:
            return outcomes.failed("over-length", str(error), tokens=error.tokens)
        except Expired as error:
            return outcomes.failed("deadline", str(error))
        except TimeoutError:
            return outcomes.failed("deadline", "the local model did not answer in time")
        except ModelError as error:
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
        writing = asyncio.ensure_future(self._ledger.record(rows))
        remaining = ask.deadline - asyncio.get_running_loop().time()
        await asyncio.wait({writing}, timeout=max(ANSWER_MARGIN_S, remaining))
        if not writing.done():  # it goes on; who waited this long is not kept longer
            writing.add_done_callback(lambda late: late.cancelled() or late.exception())
            self._on_ledger_error(LedgerUnwritable("not written within the deadline"))
        elif isinstance(error := writing.exception(), LedgerError):
            self._on_ledger_error(error)
        else:
            writing.result()

    def _remember(self, ask: Ask, texts: Sequence[str], digests: Sequence[bytes], done: Sequence[Outcome]) -> None:
        if not ask.write_cache:
            return
        for text, digest, outcome in zip(texts, digests, done, strict=True):
            if outcome.cacheable and not outcome.coalesced:
                preview = text[:PREVIEW_LENGTH] if self._store_preview else None
                slot = self._slot(ask, digest, outcome.source == "local")
                self._cache.store(slot, outcomes.to_entry(outcome, self._clock(), preview))
