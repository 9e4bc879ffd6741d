"""The workers of one service, to each other: whichever is asked for metrics or status speaks for all.

Each listens on a unix socket of its own in a folder that only this service's user can enter. Who connects sends one
line and gets one answer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import msgspec

#: Seconds until a worker that does not answer is told as down.
PATIENCE_S = 0.5


class Place(msgspec.Struct, frozen=True):
    """Which worker of how many this process is, and the folder that they share; alone it has none."""

    number: int = 0
    of: int = 1
    folder: str = ""

    @property
    def rates(self) -> Path | None:
        """The file in which all workers count the tenants' rates."""
        return Path(self.folder) / "rates" if self.folder else None

    def socket(self, number: int) -> str:
        return str(Path(self.folder) / f"{number}.sock")


ALONE = Place()


class Siblings:
    """`async with` listens; `ask` works from the start. `answers` are called on a thread."""

    def __init__(self, place: Place, answers: Mapping[str, Callable[[], bytes]]) -> None:
        self.place = place
        self._answers = answers
        self._stack = AsyncExitStack()

    async def ask(self, what: str) -> dict[int, bytes | None]:
        """Of each worker, this one included; None from those that give no answer in time."""
        numbers = range(self.place.of)
        return dict(zip(numbers, await asyncio.gather(*(self._of(number, what) for number in numbers)), strict=True))

    async def _of(self, number: int, what: str) -> bytes | None:
        if number == self.place.number:
            return await asyncio.to_thread(self._answers[what])
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_unix_connection(self.place.socket(number))
                try:
                    writer.write(what.encode() + b"\n")
                    return await reader.read() or None
                finally:
                    writer.close()
        return None

    async def __aenter__(self) -> None:
        if self.place.folder:
            path = self.place.socket(self.place.number)
            with suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108 - of the worker whose place this one takes
            server = await asyncio.start_unix_server(self._answer, path)
            self._stack.callback(server.close)

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                what = (await reader.readline()).decode().strip()
                if what in self._answers:
                    writer.write(await asyncio.to_thread(self._answers[what]))
                    await writer.drain()
        writer.close()
