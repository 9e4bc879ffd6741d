"""Takes texts from the event loop to the engine's threads and their answers back.

Late binding: a batch is formed when a thread is free, out of what waits then (`local_model.scheduling` says which). So
a lone text never waits for company, and under load batches fill by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence

from local_model.engines import EngineDead
from local_model.scheduling import SMOOTHING, Job, Scheduler
from local_model.scoring import Scored, Text, prediction
from local_model.types import EngineFailed, Expired, ModelError, Prediction, QueueFull

log = logging.getLogger(__name__)

SWEEP_S = 0.01  # the queue is searched for gone and late callers at most that often: a refusal costs nothing
CLAIM_S = 0.01  # no more is claimed at once: whose turn came first waits for all of it, and nobody in it can leave
STALLED_S = 30.0  # a forward that takes longer is not coming back

#: Computes batches one after another: an answer for each text, in order; a ModelError in a text's place fails it alone.
Run = Callable[[Sequence[Sequence[Text]]], Sequence[Scored | ModelError]]
#: (texts): called on the engine's thread for each batch.
OnBatch = Callable[[int], None]


class Batcher:
    """`start`, `limit`, `admit`, `submit` and `close` belong to the event loop; `run` is called on `threads` threads of
    its own.

    `claim`: how many batches a thread takes at once while many wait: a forward each, but one call of `run` and one
    delivery. Who leaves after the claim is computed all the same.
    """

    def __init__(
        self,
        run: Run,
        scheduler: Scheduler,
        *,
        threads: int = 1,
        claim: int = 1,
        on_batch: OnBatch | None = None,
        on_death: Callable[[BaseException], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._scheduler = scheduler
        self._threads = threads
        self._claim = claim
        self.on_batch = on_batch
        self.on_death = on_death  # called on the loop
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = threading.Condition(threading.Lock())  # guards the scheduler too
        self._done: deque[tuple[Job, Prediction | BaseException]] = deque()
        self._delivering = False  # a wake-up of the loop is on its way
        self._closing = False
        self._death: BaseException | None = None
        self._workers: list[threading.Thread] = []
        self._running: dict[int, tuple[float, list[Job]]] = {}  # thread -> since when, what
        self._seconds_per_text = 0.002
        self._swept = -math.inf  # by the batcher's clock
        self._alarm: asyncio.TimerHandle | None = None  # at the earliest deadline that waits, or earlier
        self._counts = {"batches": 0, "texts": 0, "expired": 0, "failed": 0, "out_of_memory": 0}

    # --- on the event loop

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the threads; answers are delivered on `loop`."""
        self._loop = loop
        for number in range(self._threads):
            worker = threading.Thread(target=self._work, name=f"model-{number}", daemon=True)
            self._workers.append(worker)
            worker.start()

    def admit(self, tenant: str, tokens: int) -> None:
        """Promise a place to about `tokens` of `tenant`, before the work of tokenizing. Raises QueueFull."""
        with self._wake:
            try:
                self._scheduler.admit(tenant, tokens)
            except QueueFull:
                now = self._clock()
                if now - self._swept < SWEEP_S:
                    raise
                self._sweep(now)
                self._scheduler.admit(tenant, tokens)

    def limit(self, queue_s: float, queue_tokens: int, tenant_share: float) -> None:
        """See `Scheduler`: how much may wait from now on."""
        with self._wake:
            self._scheduler.limit(queue_s, queue_tokens, tenant_share)

    def submit(
        self,
        texts: Sequence[tuple[Text, asyncio.Future[Prediction]]],
        *,
        tenant: str = "",
        bulk: bool = False,
        deadline: float | None = None,
        promised: int = 0,
    ) -> None:
        """Queue `texts`, to which `promised` tokens were promised; each one's future gets its answer. None of them at
        all takes the promise back.

        `deadline` is in the loop's time: who still waits then is told at once.
        """
        if self._loop is None:
            raise RuntimeError("the batcher was not started")
        now = self._clock()
        if deadline is not None:
            self._set_alarm(deadline)
            deadline = now + (deadline - self._loop.time())
        with self._wake:
            self._scheduler.release(tenant, promised)
            if self._death is None and not self._closing:
                self._scheduler.add([Job(text, future, tenant, bulk, deadline, now) for text, future in texts])
                self._wake.notify(len(texts))
                return
        for _, future in texts:
            if not future.done():
                future.set_exception(EngineFailed("the local model is not running"))

    def _sweep(self, now: float) -> None:
        """Take those out of the queue who do not wait any more, and tell them. Holds the lock."""
        self._scheduler.sweep(now)
        self._tell_expired()
        self._swept = now

    def _set_alarm(self, when: float) -> None:
        """Call `_expire` at `when` (the loop's time) or earlier."""
        assert self._loop is not None
        if self._alarm is not None:
            if self._alarm.when() <= when:
                return
            self._alarm.cancel()
        self._alarm = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        assert self._loop is not None
        self._alarm = None
        now = self._clock()
        with self._wake:
            self._sweep(now)
            waiting = self._scheduler.next_deadline()
        if waiting is not None:
            self._set_alarm(self._loop.time() + max(SWEEP_S, waiting - now))

    def close(self, timeout: float = 10.0) -> None:
        """Finish what was admitted, for at most `timeout` seconds, and stop the threads. Blocks."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        until = time.monotonic() + timeout
        for worker in self._workers:
            worker.join(max(0.0, until - time.monotonic()))
        with self._wake:
            self._fail_all(EngineFailed("the local model was stopped"))

    @property
    def healthy(self) -> bool:
        """The threads live, and no forward hangs."""
        now = self._clock()
        stalled = any(now - since > STALLED_S for since, _ in list(self._running.values()))
        return self._death is None and not self._closing and bool(self._workers) and not stalled

    @property
    def rate(self) -> float:
        """Texts a second, measured over the last batches, all threads together."""
        return self._threads / self._seconds_per_text

    def observe(self, texts: int, tokens: int, seconds: float) -> None:
        """Set the rates from full forwards made outside (the warm-up)."""
        self._seconds_per_text = max(seconds, 1e-6) / texts
        self._scheduler.seconds_per_token = max(seconds, 1e-6) / tokens / self._threads

    def stats(self) -> dict[str, int]:
        """Texts and tokens waiting, texts running now; batches, texts, expired, cancelled, failed, out_of_memory since
        the start; the budget of tokens a batch has now, and how many tokens may wait."""
        scheduler = self._scheduler
        return {
            "waiting": len(scheduler),
            "waiting_tokens": scheduler.waiting_tokens,
            "running": sum(len(jobs) for _, jobs in list(self._running.values())),
            **self._counts,
            "cancelled": scheduler.cancelled,
            "batch_tokens": scheduler.budget,
            "queue_tokens": int(scheduler.most_waiting),
        }

    def _deliver(self) -> None:
        self._delivering = False  # before the queue is emptied: what is added from now on wakes the loop again
        while self._done:
            job, result = self._done.popleft()
            if job.future.done():  # cancelled meanwhile; setting it would raise and take the others' answers along
                continue
            if isinstance(result, Prediction):
                job.future.set_result(result)
            else:
                job.future.set_exception(result)

    # --- on the engine's threads

    def _work(self) -> None:
        me = threading.get_ident()
        try:
            since = self._clock()  # when it was done with what was before
            while batches := self._take(me, since):
                answers = self._compute(batches, self._running[me][0])
                since = self._clock()
                del self._running[me]
                self._finish(answers)
        except BaseException as error:  # noqa: BLE001 - whatever it was, callers must not wait for ever
            self._die(error)

    def _take(self, me: int, since: float) -> list[list[Job]]:
        """Wait for work and claim it; [] when it is time to stop. In `_running` stands when it began with it: where it
        had not to wait, that is `since`."""
        scheduler = self._scheduler
        enough = self._threads * self._claim * scheduler.max_items
        flow: tuple[str, bool] | None = None
        with self._wake:
            while self._death is None:
                now = self._clock()
                batches: list[list[Job]] = []
                seconds = 0.0  # that they will take
                # Another one only while every thread could fill as many (else it is bound too early, and others idle),
                # and of the same flow: the answers come together, and nobody shall wait for a flood's.
                while not batches or (
                    len(batches) < self._claim
                    and len(scheduler) > enough
                    and seconds < CLAIM_S
                    and scheduler.next_flow == flow
                ):
                    if not (batch := scheduler.form(now, closing=self._closing)):
                        break
                    batches.append(batch)
                    flow = batch[0].tenant, batch[0].bulk
                    seconds += sum(job.tokens for job in batch) * scheduler.seconds_per_token * self._threads
                self._tell_expired()
                if batches:
                    self._running[me] = (since, [job for batch in batches for job in batch])
                    return batches
                if self._closing:
                    return []
                due = scheduler.due()
                self._wake.wait(None if due is None else max(0.0, due - now))
                since = self._clock()
        return []

    def _tell_expired(self) -> None:
        """Holds the lock."""
        late = self._scheduler.expired
        if late:
            self._counts["expired"] += len(late)
            self._finish([(job, Expired("the deadline passed before the forward began")) for job in late])
            late.clear()

    def _compute(self, batches: list[list[Job]], since: float) -> list[tuple[Job, Prediction | BaseException]]:
        """The rate is measured from `since`: beside a busy loop the way from one forward to the next takes time too.

        Within a claim a text's share of the time is that of its tokens.
        """
        started = self._clock()
        results = self._isolate(batches)
        ended = self._clock()
        jobs = [job for batch in batches for job in batch]
        if len(results) != len(jobs):  # whose answer is whose can't be known
            raise EngineDead(f"the engine gave {len(results)} answers for {len(jobs)} texts")
        tokens = sum(job.tokens for job in jobs)
        whole, us_per_token = max(ended - since, 1e-6), max(ended - started, 0.0) * 1e6 / tokens
        self._counts["batches"] += len(batches)
        self._counts["texts"] += len(jobs)
        self._counts["failed"] += sum(isinstance(result, ModelError) for result in results)
        self._seconds_per_text += SMOOTHING * (whole / len(jobs) - self._seconds_per_text)
        for batch in batches:
            self._scheduler.computed(batch, whole * sum(job.tokens for job in batch) / tokens, self._threads)
            if self.on_batch is not None:
                self.on_batch(len(batch))
        return [
            (
                job,
                result
                if isinstance(result, ModelError)
                else prediction(
                    result,
                    job.text,
                    queue_us=int((started - job.admitted) * 1e6),
                    run_us=int(us_per_token * job.tokens),
                ),
            )
            for job, result in zip(jobs, results, strict=True)
        ]

    def _isolate(self, batches: list[list[Job]]) -> list[Scored | ModelError]:
        """Run them; if that raises, each batch alone, and then halves of it, until only the text at fault fails (or
        what is too big fits)."""
        try:
            return list(self._run([[job.text for job in batch] for batch in batches]))
        except EngineDead:
            raise
        except Exception as error:  # noqa: BLE001 - engines raise what their runtime raises
            # The runtime's message may quote its input: only the type is told.
            kind, out_of_memory = type(error).__name__, isinstance(error, MemoryError)
        if len(batches) > 1:
            return [result for batch in batches for result in self._isolate([batch])]
        (batch,) = batches
        log.warning("a forward of %d text(s) raised %s", len(batch), kind)
        if out_of_memory:
            self._counts["out_of_memory"] += 1
            self._scheduler.out_of_memory(len(batch) * max(job.tokens for job in batch))
        if len(batch) == 1:
            why = "the text does not fit the device's memory" if out_of_memory else f"the forward raised {kind}"
            return [EngineFailed(why)]
        middle = len(batch) // 2
        return self._isolate([batch[:middle]]) + self._isolate([batch[middle:]])

    def _die(self, error: BaseException) -> None:
        # Where it died, without the message: that may quote a text.
        trace = "".join(traceback.format_tb(error.__traceback__))
        log.critical("an engine thread died of %s\n%s", type(error).__name__, trace)
        with self._wake:
            first, self._death = self._death is None, self._death or error
            self._wake.notify_all()
            self._fail_all(EngineFailed("the engine thread is dead"))
        if first and self.on_death is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                self._loop.call_soon_threadsafe(self.on_death, error)

    def _fail_all(self, error: EngineFailed) -> None:
        """All that wait or run. Holds the lock."""
        running = [job for _, jobs in list(self._running.values()) for job in jobs]
        self._finish([(job, error) for job in [*self._scheduler.empty(), *running]])

    def _finish(self, answers: Sequence[tuple[Job, Prediction | BaseException]]) -> None:
        """Wake the loop once for all answers that wait: each wake-up is a system call and a turn of the loop."""
        self._done.extend(answers)
        if self._delivering or not self._done or self._loop is None:
            return
        self._delivering = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._deliver)
