"""The small HTTP/1.1 that the simulator speaks. On asyncio streams and not on a web framework, because half of the
faults are about the socket."""

from __future__ import annotations

import asyncio
import socket
import struct
import zlib
from collections.abc import Mapping
from functools import cache

import msgspec

_BYTE_EVERY_S = 0.05


class Http:
    """Just enough of HTTP/1.1 for SDKs and curl: Content-Length bodies, keep-alive."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self) -> tuple[str, str, str, dict[str, str], bytes] | None:
        """(method, path, query, headers with lower-case names, body); None at the end of the connection."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        method, target, *_ = first.split(" ")
        path, _, query = target.partition("?")
        return method, path, query, headers, body

    def head(self, status: int, length: int, headers: Mapping[str, str] | None = None) -> bytes:
        sent = {"content-type": "application/json", "content-length": str(length), "x-crossover-simulated": "1"}
        sent |= dict(headers or {})
        lines = "".join([f"{name}: {value}\r\n" for name, value in sent.items()])
        return f"HTTP/1.1 {status} Simulated\r\n{lines}\r\n".encode("latin-1")

    async def send(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        """`body`: bytes as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        self.writer.write(self.head(status, len(data), headers) + data)
        await self.writer.drain()

    async def send_half(self, data: bytes) -> None:
        self.writer.write(self.head(200, len(data)) + data[: len(data) // 2])
        await self.writer.drain()

    async def drip(self, data: bytes) -> bool:
        """A byte every 50 ms. False: the caller has hung up before the last."""
        hung_up = asyncio.ensure_future(self.reader.read())
        self.writer.write(self.head(200, len(data)))
        try:
            for byte in data:
                self.writer.write(bytes([byte]))
                done, _ = await asyncio.wait([hung_up], timeout=_BYTE_EVERY_S)
                if done:
                    return False
        finally:
            hung_up.cancel()
        return True

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST instead of FIN
        self.writer.transport.abort()


def bomb(data: bytes) -> bytes:
    """gzip: 50 MB of white space, then the answer, in 50 KB."""
    start, blanks = _blanks()
    pack = blanks.copy()
    return start + pack.compress(data) + pack.flush()


@cache
def _blanks() -> tuple[bytes, zlib._Compress]:
    """Packed a megabyte at a time, and once: it takes a moment."""
    pack = zlib.compressobj(wbits=31)
    blanks = b" " * 1_000_000
    return b"".join([pack.compress(blanks) for _ in range(50)]), pack
