"""An engine in a process of its own: these runtimes set threads, allocators and compilers for the whole process."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from candidates import Candidate, Forward, Workshop

#: Seconds for a compiler or a calibration on a busy machine, and for a slice of texts on the slowest engine.
BUILD, RUN = 400, 180


class Failed(Exception):
    """The engine can't be built or run here; the message says why in one line."""


class Ran(NamedTuple):
    embeddings: np.ndarray[Any, Any]  # (n, hidden), in the order of the texts
    seconds: float
    cpu_seconds: float


class EngineProcess:
    """`start`, then `run` as often as wanted; ended with the block."""

    def __init__(self, candidate: Candidate, shop: Workshop) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, candidate, shop), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pipe.close()  # which it takes as the end
        self._process.join(5)
        self._process.kill()
        self._process.join()

    def start(self, warmup: Sequence[Sequence[int]]) -> float:
        """Seconds from the start of the process until `warmup` was answered. Raises Failed."""
        began = time.monotonic()
        self._ask((list(warmup), True), BUILD)
        return time.monotonic() - began

    def run(self, ids: Sequence[Sequence[int]], *, by_length: bool) -> Ran:
        """All texts, in batches: neighbours are of about the same length, or as they come. Raises Failed."""
        answer: Ran = self._ask((list(ids), by_length), RUN)
        return answer

    def _ask(self, work: Any, patience: float) -> Any:
        try:
            self._pipe.send(work)
            if not self._pipe.poll(patience):
                self._process.kill()
                raise Failed(f"no answer in {patience:g} s")
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            raise Failed(f"its process ended (exit code {self._process.exitcode})") from None
        if isinstance(answer, str):
            raise Failed(answer)
        return answer


def _serve(pipe: Connection, candidate: Candidate, shop: Workshop) -> None:
    """The child: builds the engine, then answers (ids, by_length) with Ran, or with a line that says what failed."""
    with (shop.folder / "engines.log").open("a") as file:  # these libraries talk a lot
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    warnings.simplefilter("ignore")
    try:
        forward = candidate.make(shop, candidate.batch)
        with ThreadPoolExecutor(candidate.callers(shop.cores)) as pool:
            while True:
                ids, by_length = pipe.recv()
                pipe.send(_run(pool, forward, ids, candidate.batch, by_length))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - whatever the library raises is the reason that is shown
        lines = str(error).strip().splitlines() or [""]
        pipe.send(f"{type(error).__name__}: {lines[0][:200]}")


def _run(pool: ThreadPoolExecutor, forward: Forward, ids: list[Any], batch: int, by_length: bool) -> Ran:
    order = sorted(range(len(ids)), key=lambda i: len(ids[i])) if by_length else list(range(len(ids)))
    batches = [[ids[i] for i in order[at : at + batch]] for at in range(0, len(order), batch)]
    began, used = time.perf_counter(), time.process_time()
    rows = np.concatenate(list(pool.map(forward, batches)))
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    embeddings = np.empty_like(rows)
    embeddings[order] = rows
    return Ran(embeddings, seconds, cpu)
