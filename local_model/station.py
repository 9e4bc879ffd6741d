"""One encoder in service: its files, its engine, its tokenizer and its queue."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from local_model import probes, tokenize
from local_model.batcher import Batcher
from local_model.encoder import DEFAULT, Encoder
from local_model.engines import (
    EngineName,
    Opened,
    Output,
    Precision,
    candidates,
    cores,
    of_heads,
    open_engine,
    together,
)
from local_model.gate import choose
from local_model.heads import Head
from local_model.hugepages import use_huge_pages
from local_model.scheduling import BULK, Scheduler
from local_model.scoring import Scored, Text, score
from local_model.types import EngineFailed, LoadError, ModelError, OverLength, Prediction

WARM_TOKENS = 32  # a usual text: what the rate is measured with
WARM_ROUNDS = 8
#: Characters of a request that are tokenized on the event loop, at about 2 MB/s; more go to a thread.
INLINE = 8_192

Optimize = Literal["latency", "throughput"]


class Profile(NamedTuple):
    """What `optimize` stands for; docs/engines.md has the curve. `batch`: the part of the engine's largest batch;
    where an engine takes one text a forward, only `claim` differs."""

    batch: float
    linger_s: float
    claim: int


PROFILES: dict[Optimize, Profile] = {
    "latency": Profile(batch=0.5, linger_s=0.0, claim=4),
    "throughput": Profile(batch=1.0, linger_s=0.002, claim=8),
}


class ModelSettings(msgspec.Struct, frozen=True):
    """How encoders are run. `source`: "all-MiniLM-L6-v2", a folder, or a hub id with `revision` ("name@revision")."""

    source: str = DEFAULT
    revision: str | None = None
    engine: EngineName = "auto"
    precision: Precision = "auto"
    device: str = "auto"  # "cpu", "cuda", "cuda:1"
    threads: int = 0  # 0: all cores
    optimize: Optimize = "latency"
    queue_s: float = 0.8  # as much may wait, per encoder, as is computed in that time at the measured rate
    queue_tokens: int = 0  # or so many tokens
    tenant_share: float = 1.0  # of what may wait
    max_tokens: int | None = None  # None: what the model was made for

    def is_like(self, other: ModelSettings) -> bool:
        """Whether what was loaded with one does for the other: how much may wait can be changed (`Station.limit`)."""
        return self == msgspec.structs.replace(
            other, queue_s=self.queue_s, queue_tokens=self.queue_tokens, tenant_share=self.tenant_share
        )


class Station:
    """Life: `__init__` (blocks, raises LoadError) → `warm` (blocks) → `start` → … → `close`."""

    def __init__(
        self,
        settings: ModelSettings,
        encoder: Encoder,
        heads: Sequence[Path],
        cache_dir: Path,
        progress: Callable[[str], None] | None,
    ) -> None:
        """`heads`: the folders of the tasks on this encoder, which say what it may be served with."""
        self.settings = settings
        self.encoder = encoder
        self.opened: Opened = open_engine(
            encoder,
            name=settings.engine,
            precision=settings.precision,
            device=settings.device,
            threads=settings.threads,
            cache_dir=cache_dir,
            progress=progress,
            heads=heads,
        )
        engine = self.opened.engine
        profile = PROFILES[settings.optimize]
        self.batcher = Batcher(
            self._run,
            Scheduler(
                max_items=max(1, int(engine.max_items * profile.batch)),
                max_tokens=engine.max_tokens,
                queue_s=settings.queue_s,
                queue_tokens=settings.queue_tokens,
                tenant_share=settings.tenant_share,
                linger_s=profile.linger_s if engine.max_items > 1 else 0.0,
            ),
            threads=engine.threads,
            claim=profile.claim,
        )
        try:
            self.tokenizer = tokenize.load(encoder, cache_dir)
        except BaseException:
            engine.close()
            raise
        self._pool = ThreadPoolExecutor(max(1, min(4, cores() // 2)), thread_name_prefix="tokenize")
        self.probes: Output | None = None  # of the probe texts, once it is warm
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owners = 0
        self._owning = threading.Lock()

    # --- life

    def warm(self) -> None:
        """Run the engine a few times, the longest text first (out of memory shows now), and measure its rate.

        Raises LoadError if the model gives nonsense.
        """
        try:
            self._warm()
        except MemoryError as error:
            raise LoadError(f"{self.encoder.source} does not fit the device's memory: {error}") from error

    def _warm(self) -> None:
        engine = self.opened.engine
        self.probes = probes.run(engine, probes.token_ids(self.tokenizer))
        output = engine.forward([self._made_up(self.encoder.max_tokens)])
        if not np.isfinite(output.embeddings).all():
            raise LoadError(f"{self.encoder.source} gives values that are not finite on {engine.kind}")
        if engine.device == "cpu":
            use_huge_pages()
        usual = [self._made_up(min(WARM_TOKENS, self.encoder.max_tokens))] * engine.max_items
        engine.forward(usual)
        started = time.perf_counter()
        for _ in range(WARM_ROUNDS):
            engine.forward(usual)
        texts = WARM_ROUNDS * len(usual)
        self.batcher.observe(texts, texts * len(usual[0]), time.perf_counter() - started)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Another owner: the first one's call starts the threads; answers are delivered on `loop`."""
        with self._owning:
            self._owners += 1
            first = self._owners == 1
        if first:
            self._loop = loop
            self.batcher.start(loop)

    def limit(self, settings: ModelSettings) -> None:
        """Take over how much may wait, and nothing else."""
        self.batcher.limit(settings.queue_s, settings.queue_tokens, settings.tenant_share)

    def close(self, timeout: float = 10.0) -> None:
        """One owner less: the last one's call finishes what was admitted, for at most `timeout` seconds. Blocks."""
        with self._owning:
            self._owners -= 1
            last = self._owners == 0 or (self._owners < 0 and self._loop is None)  # or it was never started
        if last:
            self.batcher.close(timeout)
            self._pool.shutdown(wait=False, cancel_futures=True)
            self.opened.engine.close()

    def _made_up(self, tokens: int) -> list[int]:
        """Token ids of a made-up text of exactly `tokens` tokens."""
        return self.tokenizer.encode("a " * tokens, truncate=True).ids

    # --- texts

    def submit(
        self, head: Head, texts: Sequence[str], *, truncate: bool, deadline: float | None, tenant: str
    ) -> list[asyncio.Future[Prediction]]:
        """See `Classifier.submit`."""
        loop = self._loop
        if loop is None:
            raise RuntimeError("the model was not started")
        longest = self.encoder.max_tokens
        promised = sum(min(longest, len(text) // 3 + 3) for text in texts)
        self.batcher.admit(tenant, promised)  # before any work is done for a request that would be refused
        futures: list[asyncio.Future[Prediction]] = [loop.create_future() for _ in texts]
        queue = partial(self._queue, head, futures, deadline=deadline, tenant=tenant, promised=promised)
        if sum(map(len, texts)) <= INLINE:
            queue([self._encode(text, truncate) for text in texts])
            return futures

        def tokenized(work: asyncio.Future[list[tokenize.Encoded | ModelError | None]]) -> None:
            queue([None] * len(texts) if work.cancelled() or work.exception() else work.result())

        try:
            work = loop.run_in_executor(self._pool, self._encode_all, list(zip(texts, futures, strict=True)), truncate)
        except RuntimeError:  # closed
            queue([None] * len(texts))
        else:
            work.add_done_callback(tokenized)
        return futures

    def _queue(
        self,
        head: Head,
        futures: Sequence[asyncio.Future[Prediction]],
        encoded: Sequence[tokenize.Encoded | ModelError | None],
        *,
        deadline: float | None,
        tenant: str,
        promised: int,
    ) -> None:
        """What was tokenized waits for the engine; what could not be is told so."""
        ready: list[tuple[Text, asyncio.Future[Prediction]]] = []
        for found, future in zip(encoded, futures, strict=True):
            if isinstance(found, tokenize.Encoded):
                ready.append((Text(found.ids, found.tokens, found.truncated, head), future))
            elif not future.done():
                future.set_exception(found or EngineFailed("the local model was stopped"))
        self.batcher.submit(ready, tenant=tenant, bulk=len(futures) > BULK, deadline=deadline, promised=promised)

    def _encode(self, text: str, truncate: bool) -> tokenize.Encoded | ModelError:
        try:
            return self.tokenizer.encode(text, truncate=truncate)
        except OverLength as error:
            return error
        except UnicodeError:
            return EngineFailed("the text is not valid Unicode")
        except Exception as error:  # noqa: BLE001 - the binding raises nothing narrower; the message may quote the text
            return EngineFailed(f"the tokenizer raised {type(error).__name__}")

    def _encode_all(
        self, texts: Sequence[tuple[str, asyncio.Future[Prediction]]], truncate: bool
    ) -> list[tokenize.Encoded | ModelError | None]:
        """On a thread of the pool. Nothing is done for callers who have gone."""
        return [None if future.done() else self._encode(text, truncate) for text, future in texts]

    def _run(self, batches: Sequence[Sequence[Text]]) -> list[Scored | ModelError]:
        """A forward for each batch, then the scores of all in one pass."""
        outputs = [self.opened.engine.forward([text.ids for text in batch]) for batch in batches]
        return score(together(outputs), [text for batch in batches for text in batch])

    def would_serve(self, settings: ModelSettings, encoder: Encoder, heads: Sequence[Path]) -> bool:
        """Whether a new station for the same would be like this one: the heads have a say in the engine."""
        if not settings.is_like(self.settings) or encoder.digest != self.encoder.digest:
            return False
        if not heads:
            return True
        engine = self.opened.engine
        cuda = engine.device.startswith("cuda")
        possible = candidates(settings.engine, cuda=cuda, precision=settings.precision, hidden=encoder.hidden)
        order, known = of_heads(possible, heads)
        return choose(order, known).kind == engine.kind

    # --- what is told

    @property
    def started(self) -> bool:
        return self._owners > 0

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.encoder.notes, *self.opened.notes)

    def status(self) -> dict[str, Any]:
        """JSON types only, no text."""
        encoder, engine = self.encoder, self.opened.engine
        return {
            "source": encoder.source,
            "revision": encoder.revision,
            "digest": encoder.digest,
            "engine": engine.kind.partition("-")[0],
            "kind": engine.kind,
            "why": self.opened.why,
            "device": engine.device,
            "threads": engine.threads,
            "optimize": self.settings.optimize,
            "max_tokens": encoder.max_tokens,
            "texts_per_second": round(self.batcher.rate),
            **engine.status(),
            **self.batcher.stats(),
        }
