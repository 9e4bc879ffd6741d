"""How this cache waits: never for long, and in company."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

Ask = TypeVar("Ask")
Reply = TypeVar("Reply")


class Background:
    """Tasks that nobody awaits."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.keep(task)
        return task

    def keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)  # the loop keeps only a weak reference
        task.add_done_callback(self._tasks.discard)

    async def close(self, seconds: float) -> None:
        """Let them finish for so long, then end them."""
        if pending := [task for task in self._tasks if not task.done()]:
            await asyncio.wait(pending, timeout=seconds)
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=seconds)  # redis-py has been seen to swallow a cancellation


class Together(Generic[Ask, Reply]):
    """What is asked within one turn of the event loop is answered by one call of `answer`: a reply each, in order."""

    def __init__(self, answer: Callable[[Sequence[Ask]], Awaitable[Sequence[Reply]]], background: Background) -> None:
        self._answer = answer
        self._background = background
        self._waiting: list[tuple[Ask, asyncio.Future[Reply]]] = []

    async def ask(self, asked: Ask) -> Reply:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._waiting.append((asked, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._flush)
        return await future

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._background.start(self._reply(waiting))

    async def _reply(self, waiting: list[tuple[Ask, asyncio.Future[Reply]]]) -> None:
        try:
            replies = await self._answer([asked for asked, _ in waiting])
            for (_, future), reply in zip(waiting, replies, strict=True):
                if not future.done():  # its caller may have left
                    future.set_result(reply)
        finally:
            for _, future in waiting:
                future.cancel()  # at the end: nobody waits for ever


async def within(coroutine: Any, seconds: float, *, late: Background | None = None) -> Any:
    """As `asyncio.timeout`, but an answer that is already here is taken: when the loop itself was late, timers fire
    before the replies that came in meanwhile have been read. What is too late is cancelled; or goes on in `late`: to
    connect may take longer than an answer may, and whoever is cut off while it connects never gets there."""
    task = asyncio.ensure_future(coroutine)
    try:
        await asyncio.wait({task}, timeout=seconds)
        for _ in range(3):
            if task.done():
                break
            await asyncio.sleep(0)
        if late is not None and not task.done():
            late.keep(task)
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody asks for it
            raise TimeoutError
    finally:
        if late is None and not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
    if task.cancelled():
        raise TimeoutError
    return task.result()
