"""One of several workers, and how it speaks with its parent: `python -m router.cli.worker CHANNEL` (an inherited
file descriptor). A channel that ends means that the parent is gone."""

from __future__ import annotations

import asyncio
import socket
import sys
import typing
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from local_model.types import LoadError
from router.config_file import Loaded
from router.problems import ProblemError
from router.reload import Adopted
from router.siblings import Place

if TYPE_CHECKING:
    from router.http.server import Server
    from router.service import Service


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Parent to worker, first: what to serve, as which of how many."""

    loaded: Loaded
    place: Place
    port: int


class Adopt(msgspec.Struct, frozen=True, tag=True):
    """Parent to worker: serve this from now on. Answered by Took or Refused."""

    loaded: Loaded


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Worker to parent: it can't be served. Parent to worker: the file holds what can't be served (for the metrics)."""

    why: str = ""


class Opened(msgspec.Struct, frozen=True, tag=True):
    """Worker to parent: it is warm, and takes connections."""


class Beat(msgspec.Struct, frozen=True, tag=True):
    """Worker to parent, every BEAT_S seconds: its loop turns."""


class Took(msgspec.Struct, frozen=True, tag=True):
    adopted: Adopted


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Worker to parent, last: it could not be opened (code 2), or its model is dead (70)."""

    why: str
    code: int


Message = Begin | Adopt | Refused | Opened | Beat | Took | Failed
BEAT_S = 2.0
#: Bytes before a message that say how long it is.
PREFIX = 4


def pack(message: Message) -> bytes:
    payload = msgspec.json.encode(message, enc_hook=str)  # a Path
    return len(payload).to_bytes(PREFIX, "big") + payload


def unpack(payload: bytes) -> Message:
    return typing.cast("Message", msgspec.json.decode(payload, type=Message, dec_hook=_path))


def _path(kind: type, value: Any) -> Path:  # noqa: ARG001 - msgspec's signature
    return Path(value)


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """None: the other side is gone."""
    try:
        length = int.from_bytes(await reader.readexactly(PREFIX), "big")
        return unpack(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, OSError):
        return None


def _receive_first(channel: socket.socket) -> Begin:
    length = int.from_bytes(channel.recv(PREFIX, socket.MSG_WAITALL), "big")
    first = unpack(channel.recv(length, socket.MSG_WAITALL))
    assert isinstance(first, Begin)
    return first


def main() -> int:
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    begin = _receive_first(channel)

    from router.cli.process import serve_here
    from router.cli.serve import bind
    from router.logs import configure_logging

    configure_logging(shared=True)

    async def beside(service: Service, _server: Server, opened: asyncio.Event) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=channel.dup())

        async def open_up() -> None:
            await opened.wait()
            writer.write(pack(Opened()))

        async def beat() -> None:
            while True:
                writer.write(pack(Beat()))
                await asyncio.sleep(BEAT_S)

        telling = [asyncio.create_task(open_up()), asyncio.create_task(beat())]
        try:
            while (message := await receive(reader)) is not None:
                if isinstance(message, Adopt):
                    writer.write(pack(await _adopt(service, message.loaded)))
                elif isinstance(message, Refused):
                    service.telemetry.config_was_refused()
        finally:
            for task in telling:
                task.cancel()
            writer.close()
        # Returning ends the server: nobody would replace this worker, or tell it of a new config.

    listener = bind(begin.loaded.config.server.host, begin.port, shared=True)
    failed = serve_here(begin.loaded, listener, beside, begin.place)
    if failed is None:
        return 0
    with suppress(OSError):  # the parent is gone
        channel.sendall(pack(failed))
    return failed.code


async def _adopt(service: Service, loaded: Loaded) -> Took | Refused:
    try:
        return Took(await service.reload(loaded))
    except (LoadError, ProblemError) as error:
        return Refused(str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, what serves now serves on
        return Refused(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.exit(main())
