"""Who waits, who goes next and with whom, and who may come in at all.

No threads, no clock: `local_model.batcher` calls it under its lock and passes the time; a test passes what it likes.

Texts wait in flows, one a tenant and class (interactive, or bulk: a request of many texts). Between flows the order is
start-time fair queueing (Goyal, Vin and Cheng 1996): a text is stamped with the virtual time at which its flow would
have been served alone at its weight, and the lowest stamp goes first. So a flood delays its own flow and nobody else's,
a tenant's bulk gets a quarter of what its interactive texts get while both wait, and one flow alone is a FIFO.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Iterable, Sequence

import msgspec

from local_model.packing import pick
from local_model.scoring import Text
from local_model.types import Prediction, QueueFull

WINDOW = 8  # batches: how far back a batch looks for texts of its length
BULK = 8  # texts: a request of more is bulk
WEIGHTS = {False: 4.0, True: 1.0}  # of the interactive class, of bulk
SMOOTHING = 0.05  # weight of a new batch in the measured time per token
RECOVERY = 100, 1.05  # after so many batches without running out of memory the budget grows by this factor
FLOWS = 4_096  # with more, those of whom nothing waits are forgotten


class Job(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A text that waits. Times are the caller's clock's."""

    text: Text
    future: asyncio.Future[Prediction]
    tenant: str
    bulk: bool
    deadline: float | None
    admitted: float

    @property
    def tokens(self) -> int:
        return len(self.text.ids)


#: (stamp, number of arrival, job)
Entry = tuple[float, int, Job]


class Scheduler:
    """`max_items` texts and `max_tokens` tokens, padding counted, go in a batch; a longer text goes alone.

    As much may wait as is computed in `queue_s` seconds at the measured rate (or `queue_tokens`), and one tenant may
    have `tenant_share` of it. A batch that is not full waits for company until its oldest text is `linger_s` old.
    `hold`: no batch is formed until that many texts have come (for tests).
    """

    def __init__(
        self,
        *,
        max_items: int = 1,
        max_tokens: int = 2_048,
        queue_s: float = 0.8,
        queue_tokens: int = 0,
        tenant_share: float = 1.0,
        linger_s: float = 0.0,
        hold: int = 0,
    ) -> None:
        self.max_items = max_items
        self.budget = self._most_tokens = max_tokens
        self.limit(queue_s, queue_tokens, tenant_share)
        self._linger_s = linger_s
        self._hold = hold
        self.seconds_per_token = 1e-4  # of the whole engine, until it is measured
        self.waiting_tokens = 0  # with those promised a place
        self.expired: list[Job] = []  # whoever took part in forming batches tells them
        self.cancelled = 0
        self._tokens: dict[str, int] = {}  # tenant -> waiting and promised
        self._order: list[Entry] = []
        self._number = 0
        self._virtual_time = 0.0  # the stamp of what went last
        self._finish: dict[tuple[str, bool], float] = {}  # flow -> the stamp of its next text, if it came now
        self._unused: dict[tuple[str, bool], float] = {}  # flow -> what those were stamped for who were dropped since
        self._good_batches = 0

    def __len__(self) -> int:
        return len(self._order)

    # --- who may come in

    def limit(self, queue_s: float, queue_tokens: int, tenant_share: float) -> None:
        """From now on; who waits already goes on waiting."""
        self._queue_s = queue_s
        self._queue_tokens = queue_tokens
        self._tenant_share = tenant_share

    @property
    def most_waiting(self) -> float:
        """Tokens."""
        return self._queue_tokens or self._queue_s / self.seconds_per_token

    def admit(self, tenant: str, tokens: int) -> None:
        """Promise a place to `tokens` of `tenant`; raises QueueFull. A request larger than the queue fits an empty one.

        The promise ends with `release`.
        """
        theirs = self._tokens.get(tenant, 0)
        if self.waiting_tokens and self.waiting_tokens + tokens > self.most_waiting:
            raise QueueFull(self.waiting_tokens * self.seconds_per_token)
        if theirs and theirs + tokens > self.most_waiting * self._tenant_share:
            raise QueueFull(theirs * self.seconds_per_token)
        self._account(tenant, tokens)

    def release(self, tenant: str, tokens: int) -> None:
        """Take back what `admit` promised: the texts are added now, or will not come."""
        self._account(tenant, -tokens)

    def _account(self, tenant: str, tokens: int) -> None:
        self.waiting_tokens += tokens
        left = self._tokens.get(tenant, 0) + tokens
        if left:
            self._tokens[tenant] = left
        else:
            self._tokens.pop(tenant, None)

    def add(self, jobs: Iterable[Job]) -> None:
        """They wait from now on."""
        for job in jobs:
            flow = job.tenant, job.bulk
            stamp = max(self._virtual_time, self._finish.get(flow, 0.0))
            self._finish[flow] = stamp + job.tokens / WEIGHTS[job.bulk]
            self._number += 1
            insort(self._order, (stamp, self._number, job))
            self._account(job.tenant, job.tokens)
        if len(self._finish) > FLOWS:
            waiting = {(job.tenant, job.bulk) for _, _, job in self._order}
            self._finish = {flow: at for flow, at in self._finish.items() if flow in waiting}

    # --- who goes next

    def form(self, now: float, *, closing: bool = False) -> list[Job]:
        """Take the next batch out of the queue; [] when nothing is due. Gone and late callers are dropped first."""
        if self._hold and not closing:
            if len(self._order) < self._hold:
                return []
            self._hold = 0
        order, window = self._order, list[Entry]()
        most, seen = WINDOW * self.max_items if self.max_items > 1 else 1, 0
        while seen < len(order) and len(window) < most:
            entry = order[seen]
            seen += 1
            if self._wanted(entry[2], now):
                window.append(entry)
        if not window:
            del order[:seen]
            return []
        if self._linger_s and not closing and now < self._due(window):
            order[:seen] = window
            return []
        self._virtual_time = window[0][0]
        if len(window) == 1:
            batch = [window[0][2]]
            del order[:seen]
        else:
            chosen = pick([entry[2].tokens for entry in window], self.max_items, self.budget)
            batch = [window[i][2] for i in chosen]
            gone = set(chosen)
            order[:seen] = [entry for i, entry in enumerate(window) if i not in gone]
        for job in batch:
            self._account(job.tenant, -job.tokens)
        return batch

    @property
    def next_flow(self) -> tuple[str, bool] | None:
        """Whose turn it is: tenant and class."""
        return (self._order[0][2].tenant, self._order[0][2].bulk) if self._order else None

    def due(self) -> float | None:
        """When `form` will give something if nothing more comes, as far as it is held back; None: not at all."""
        return self._due(self._order) if self._order and not self._hold else None

    def _due(self, window: Sequence[Entry]) -> float:
        full = len(window) >= self.max_items or sum(job.tokens for _, _, job in window[: self.max_items]) >= self.budget
        if full:
            return window[0][2].admitted
        return min(job.admitted for _, _, job in window) + self._linger_s  # who goes first may have come last

    def _wanted(self, job: Job, now: float) -> bool:
        """Gone callers are dropped, late ones are to be told, before anything is computed for them."""
        if job.future.done():
            self.cancelled += 1
        elif job.deadline is not None and now >= job.deadline:
            self.expired.append(job)
        else:
            return True
        self._account(job.tenant, -job.tokens)
        flow = job.tenant, job.bulk
        self._unused[flow] = self._unused.get(flow, 0.0) + job.tokens / WEIGHTS[job.bulk]
        return False

    def sweep(self, now: float) -> None:
        """Take those out of the queue who do not wait any more.

        Those behind them in their flow move up, or a flow would pay for what was never computed: under overload the
        stamps of one whose texts often come too late would run away from the others', until it gets nothing at all.
        """
        kept: list[Entry] = []
        for stamp, number, job in self._order:
            if self._wanted(job, now):
                unused = self._unused.get((job.tenant, job.bulk), 0.0) if self._unused else 0.0
                kept.append((max(self._virtual_time, stamp - unused), number, job))
        kept.sort()
        self._order = kept
        for flow, unused in self._unused.items():
            if flow in self._finish:
                self._finish[flow] -= unused
        self._unused.clear()

    def next_deadline(self) -> float | None:
        """The earliest of those who wait."""
        return min((job.deadline for _, _, job in self._order if job.deadline is not None), default=None)

    def empty(self) -> list[Job]:
        """Take all out."""
        jobs = [job for _, _, job in self._order]
        self._order.clear()
        for job in jobs:
            self._account(job.tenant, -job.tokens)
        return jobs

    # --- what was learned from a batch

    def computed(self, batch: Sequence[Job], seconds: float, threads: int = 1) -> None:
        """The batch took `seconds` on one of `threads` threads. Only a batch that was half full tells the rate."""
        tokens = sum(job.tokens for job in batch)
        if len(batch) * 2 >= self.max_items or tokens * 2 >= self.budget:
            now = max(seconds, 1e-7) / (tokens * threads)
            self.seconds_per_token += SMOOTHING * (now - self.seconds_per_token)
        if self.budget < self._most_tokens:
            self._good_batches += 1
            if self._good_batches >= RECOVERY[0]:
                self._good_batches = 0
                self.budget = min(self._most_tokens, int(self.budget * RECOVERY[1]) + 1)

    def out_of_memory(self, tokens: int) -> None:
        """A batch of `tokens`, padding counted, did not fit: the next ones are half of it at most."""
        self._good_batches = 0
        self.budget = max(1, min(self.budget, tokens // 2))  # not less for each half of one batch that fails in turn
