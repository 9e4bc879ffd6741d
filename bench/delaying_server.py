"""Stands between the router and its Redis, and holds every reply back for as long as a file says.

    python bench/delaying_server.py FRONT.sock REDIS.sock DELAY_FILE

DELAY_FILE holds milliseconds and is read for each piece of a reply: whoever writes it changes the delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import uvloop


async def serve(front: str, target: str, delay: Path) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            their_reader, their_writer = await asyncio.open_unix_connection(target)
            asking = asyncio.create_task(pass_on(reader, their_writer))
            await hold_back(their_reader, writer, delay)
            asking.cancel()
            their_writer.close()
        writer.close()

    server = await asyncio.start_unix_server(relay, front)
    print("listening", flush=True)
    await server.serve_forever()


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()


async def hold_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: Path) -> None:
    """What comes leaves in its order, even when the delay shrinks meanwhile."""
    loop = asyncio.get_running_loop()
    due = 0.0
    while data := await reader.read(65_536):
        held_ms = float(delay.read_text())  # noqa: ASYNC240 - microseconds
        due = max(due + 1e-6, loop.time() + held_ms / 1000)
        loop.call_at(due, writer.write, data)


if __name__ == "__main__":
    front, target, delay = sys.argv[1:]
    uvloop.run(serve(front, target, Path(delay)))
