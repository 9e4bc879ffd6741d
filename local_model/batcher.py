"""Takes texts from the event loop to the engine's threads and their answers back.

Late binding: a batch is formed when a thread is free, out of what waits then. So a lone text never waits for company,
and under load batches fill by themselves. Texts of like length ride together, starting at the oldest, so that little
padding is computed and nobody starves.
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
from typing import NamedTuple

from local_model.engines import EngineDead
from local_model.packing import pick
from local_model.scoring import Scored, Text
from local_model.types import EngineFailed, Expired, ModelError, Prediction, QueueFull

log = logging.getLogger(__name__)

WINDOW = 8  # batches: how far back a batch looks for texts of its length
SMOOTHING = 0.05  # weight of a new batch in the measured time per text
SWEEP_S = 0.01  # the queue is searched for gone and late callers at most that often: a refusal costs nothing
STALLED_S = 30.0  # a forward that takes longer is not coming back


#: Computes a batch, in order; a ModelError in a text's place fails that text alone.
Run = Callable[[Sequence[Text]], Sequence[Scored | ModelError]]
#: (texts in the batch, tokens, microseconds): called on the engine's thread after every forward.
OnBatch = Callable[[int, int, int], None]


class _Job(NamedTuple):
    text: Text
    future: asyncio.Future[Prediction]
    deadline: float | None  # by the batcher's clock
    admitted: float


class Batcher:
    """`start`, `submit` and `close` belong to the event loop; `run` is called on `threads` threads of its own."""

    def __init__(
        self,
        run: Run,
        *,
        threads: int = 1,
        max_items: int = 1,
        max_tokens: int = 2_048,
        queue_items: int = 256,
        on_batch: OnBatch | None = None,
        on_death: Callable[[BaseException], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._threads = threads
        self._max_items = max_items
        self._max_tokens = max_tokens
        self._queue_items = queue_items
        self.on_batch = on_batch
        self.on_death = on_death  # called on the loop
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._done: deque[tuple[_Job, Prediction | BaseException]] = deque()
        self._delivering = False  # a wake-up of the loop is on its way
        self._closing = False
        self._death: BaseException | None = None
        self._workers: list[threading.Thread] = []
        self._running: dict[int, tuple[float, list[_Job]]] = {}  # thread -> since when, what
        self._seconds_per_text = 0.002
        self._swept = -math.inf  # by the batcher's clock
        self._alarm: asyncio.TimerHandle | None = None  # at the earliest deadline that waits, or earlier
        self._counts = {"batches": 0, "texts": 0, "expired": 0, "cancelled": 0, "failed": 0}

    # --- on the event loop

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the threads; answers are delivered on `loop`."""
        self._loop = loop
        for number in range(self._threads):
            worker = threading.Thread(target=self._work, name=f"model-{number}", daemon=True)
            self._workers.append(worker)
            worker.start()

    def room(self, texts: int) -> None:
        """Raises QueueFull if `texts` more do not fit. More than the whole queue holds fit an empty one."""
        if self._fits(texts):
            return
        now = self._clock()
        if now - self._swept >= SWEEP_S:
            self._sweep(now)
        if not self._fits(texts):
            raise QueueFull(max(0.1, len(self._queue) / self.rate))

    def submit(self, texts: Sequence[Text], *, deadline: float | None = None) -> list[asyncio.Future[Prediction]]:
        """Admit `texts`, for which there is `room` (ask in the same turn of the loop, before the work of tokenizing).

        A future each, in order. `deadline` is in the loop's time: who still waits then is told at once.
        """
        if self._loop is None:
            raise RuntimeError("the batcher was not started")
        now = self._clock()
        if deadline is not None:
            self._set_alarm(deadline)
            deadline = now + (deadline - self._loop.time())
        jobs = [_Job(text, self._loop.create_future(), deadline, now) for text in texts]
        with self._wake:
            if self._death is None and not self._closing:
                self._queue.extend(jobs)
                self._wake.notify(len(jobs))
                return [job.future for job in jobs]
        for job in jobs:
            job.future.set_exception(EngineFailed("the local model is not running"))
        return [job.future for job in jobs]

    def _fits(self, texts: int) -> bool:
        waiting = len(self._queue)
        return not waiting or waiting + texts <= self._queue_items

    def _sweep(self, now: float) -> None:
        """Take those out of the queue who do not wait any more."""
        with self._wake:
            self._queue = deque(job for job in self._queue if self._wanted(job, now))
            self._schedule_delivery()
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
        self._sweep(now)
        with self._wake:
            waiting = [job.deadline for job in self._queue if job.deadline is not None]
        if waiting:
            self._set_alarm(self._loop.time() + max(SWEEP_S, min(waiting) - now))

    def close(self, timeout: float = 10.0) -> None:
        """Finish what was admitted, for at most `timeout` seconds, and stop the threads. Blocks."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        until = time.monotonic() + timeout
        for worker in self._workers:
            worker.join(max(0.0, until - time.monotonic()))
        with self._wake:
            left = [*self._queue, *(job for _, jobs in self._running.values() for job in jobs)]
            self._queue.clear()
            self._finish([(job, EngineFailed("the local model was stopped")) for job in left])

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

    def observe(self, texts: int, seconds: float) -> None:
        """Set the rate from a forward made outside (the warm-up)."""
        self._seconds_per_text = max(seconds, 1e-6) / texts

    def stats(self) -> dict[str, int]:
        """Texts waiting and running now; batches, texts, expired, cancelled and failed since the start."""
        running = sum(len(jobs) for _, jobs in list(self._running.values()))
        return {"waiting": len(self._queue), "running": running, **self._counts}

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
            while batch := self._take(me):
                self._compute(batch, self._running[me][0])
                del self._running[me]
        except BaseException as error:  # noqa: BLE001 - whatever it was, callers must not wait for ever
            self._die(error)

    def _take(self, me: int) -> list[_Job]:
        """Wait for work and claim a batch; [] when it is time to stop."""
        with self._wake:
            while True:
                if self._death is not None:
                    return []
                batch = self._form()
                if batch:
                    self._running[me] = (self._clock(), batch)
                    return batch
                if self._closing:
                    return []
                self._wake.wait()

    def _form(self) -> list[_Job]:
        now = self._clock()
        while self._queue and not self._wanted(self._queue[0], now):
            self._queue.popleft()
        self._schedule_delivery()
        if not self._queue:
            return []
        if self._max_items == 1:
            return [self._queue.popleft()]
        window: list[_Job] = []
        while self._queue and not window:  # a caller may leave at any moment: a window can turn out empty
            size = min(len(self._queue), WINDOW * self._max_items)
            window = [job for job in (self._queue.popleft() for _ in range(size)) if self._wanted(job, now)]
        if not window:
            return []
        chosen = pick([len(job.text.ids) for job in window], self._max_items, self._max_tokens)
        self._queue.extendleft(job for i, job in reversed(list(enumerate(window))) if i not in chosen)
        return [window[i] for i in chosen]

    def _wanted(self, job: _Job, now: float) -> bool:
        """Gone callers are dropped, late ones told, before anything is computed for them."""
        if job.future.done():
            self._counts["cancelled"] += 1
            return False
        if job.deadline is not None and now >= job.deadline:
            self._counts["expired"] += 1
            self._done.append((job, Expired("the deadline passed before the forward began")))
            return False
        return True

    def _compute(self, batch: list[_Job], started: float) -> None:
        results = self._isolate([job.text for job in batch])
        if len(results) != len(batch):  # whose answer is whose can't be known
            raise EngineDead(f"the engine gave {len(results)} answers for {len(batch)} texts")
        seconds = max(self._clock() - started, 0.0)
        run_us = int(seconds * 1e6)
        share = run_us // len(batch)
        self._counts["batches"] += 1
        self._counts["texts"] += len(batch)
        self._seconds_per_text += SMOOTHING * (max(seconds, 1e-6) / len(batch) - self._seconds_per_text)
        answers: list[tuple[_Job, Prediction | BaseException]] = []
        for job, result in zip(batch, results, strict=True):
            if isinstance(result, ModelError):
                self._counts["failed"] += 1
                answers.append((job, result))
                continue
            queue_us = int((started - job.admitted) * 1e6)
            text = job.text
            answers.append(
                (
                    job,
                    Prediction(
                        probabilities=result.probabilities,
                        embedding=result.embedding,
                        top=result.top,
                        tokens=text.tokens,
                        truncated=text.truncated,
                        queue_us=queue_us,
                        run_us=share,
                    ),
                )
            )
        self._finish(answers)
        if self.on_batch is not None:
            self.on_batch(len(batch), sum(len(job.text.ids) for job in batch), run_us)

    def _isolate(self, texts: list[Text]) -> list[Scored | ModelError]:
        """Run the batch; if it raises, halve it until only the text at fault fails (or what is too big fits)."""
        try:
            return list(self._run(texts))
        except EngineDead:
            raise
        except Exception as error:  # noqa: BLE001 - engines raise what their runtime raises
            # The runtime's message may quote its input: only the type is told.
            failed = EngineFailed(f"the forward raised {type(error).__name__}")
            log.warning("a forward of %d text(s) raised %s", len(texts), type(error).__name__)
        if len(texts) == 1:
            return [failed]
        middle = len(texts) // 2
        return self._isolate(texts[:middle]) + self._isolate(texts[middle:])

    def _die(self, error: BaseException) -> None:
        # Where it died, without the message: that may quote a text.
        trace = "".join(traceback.format_tb(error.__traceback__))
        log.critical("an engine thread died of %s\n%s", type(error).__name__, trace)
        with self._wake:
            first, self._death = self._death is None, self._death or error
            left = [*self._queue, *(job for _, jobs in self._running.values() for job in jobs)]
            self._queue.clear()
            self._wake.notify_all()
            self._finish([(job, EngineFailed("the engine thread is dead")) for job in left])
        if first and self.on_death is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                self._loop.call_soon_threadsafe(self.on_death, error)

    def _finish(self, answers: Sequence[tuple[_Job, Prediction | BaseException]]) -> None:
        self._done.extend(answers)
        self._schedule_delivery()

    def _schedule_delivery(self) -> None:
        """Wake the loop once for all answers that wait: each wake-up is a system call and a turn of the loop."""
        if self._delivering or not self._done or self._loop is None:
            return
        self._delivering = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._deliver)
