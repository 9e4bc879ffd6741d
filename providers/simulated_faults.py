"""The simulator's faults, and the small HTTP/1.1 that they are played on."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

#: Faults that answer with a status take a Retry-After: "429@30", "429@junk", "503@Wed, 21 Oct 2026 07:28:00 GMT".
FAULTS = {
    "hang": "accepts the request and never answers",
    "slow_drip": "sends the answer at a byte every 50 ms",
    "reset": "resets the connection before answering",
    "half_close": "closes the connection in the middle of the answer",
    "malformed": "200 with broken JSON",
    "html": "200 with a web page",
    "empty": "200 with {}",
    "nulls": "200 with every field null",
    "gzip_bomb": "200 with 50 MB in 50 KB",
    "redirect": "307 to another place on this server",
    "out_of_set": "a label that was not offered",
    "wrong_case": "a label in other letters",
    "prose": "the label with a sentence around it",
    "refusal": "the model refuses",
    "truncated": "the answer is cut by the token limit",
    "no_usage": "an answer without usage",
    "negative_usage": "an answer with negative tokens",
    "absurd_usage": "an answer with 10^12 tokens",
}
_HIDDEN = {"hang", "slow_drip", "reset", "half_close", "malformed", "html", "empty", "nulls", "gzip_bomb"}
_HIDDEN |= {"no_usage", "negative_usage", "absurd_usage"}


class Http:
    """Just enough of HTTP/1.1 for SDKs and curl: Content-Length bodies, keep-alive."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self) -> tuple[str, str, dict[str, str], bytes] | None:
        """(method, path, headers with lower-case names, body); None at the end of the connection."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        method, target, *_ = first.split(" ")
        return method, target.partition("?")[0], headers, body

    def head(self, status: int, length: int, headers: Mapping[str, str] | None = None) -> bytes:
        sent = {"content-type": "application/json", "content-length": str(length), "x-crossover-simulated": "1"}
        sent |= dict(headers or {})
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        return f"HTTP/1.1 {status} Simulated\r\n{lines}\r\n".encode("latin-1")

    async def send(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.writer.write(self.head(status, len(data), headers) + data)
        await self.writer.drain()


class Fault(msgspec.Struct, frozen=True):
    """One fault; "ok" is none."""

    name: str
    headers: dict[str, str] = {}

    @classmethod
    def parse(cls, name: str) -> Fault:
        base, _, retry_after = name.partition("@")
        if not (base in FAULTS or base == "ok" or re.fullmatch(r"[45]\d\d", base)):
            raise ValueError(f"unknown fault {name!r}; there are a status (429, 529@30), {', '.join(FAULTS)}")
        return cls(base, {"retry-after": retry_after} if retry_after else {})

    @property
    def status(self) -> int:
        return int(self.name) if self.name.isdigit() else 0

    @property
    def hides_usage(self) -> bool:
        """The caller is charged and never learns how much."""
        return self.name in _HIDDEN

    def label(self, label: str, labels: Sequence[str]) -> str:
        """The reply's text, from the label that was chosen."""
        reply = json.dumps({"label": label})
        changed = {
            "out_of_set": json.dumps({"label": "never_offered_" + "_".join(labels)[:8]}),
            "wrong_case": json.dumps({"label": label.swapcase()}),
            "prose": f"Sure! The label is {reply}.",
            "refusal": "",
            "truncated": reply[:6],
        }
        return changed.get(self.name, reply)

    async def deliver(self, http: Http, reply: dict[str, Any]) -> bool:
        """Send the reply, damaged as ordered. False: the connection is used up."""
        data = json.dumps(reply).encode()
        writer = http.writer
        match self.name:
            case "hang":
                await http.reader.read()  # ends when the caller hangs up
            case "slow_drip":
                await self._drip(http, data)
            case "reset":
                _reset(writer)
            case "half_close":
                writer.write(http.head(200, len(data)) + data[: len(data) // 2])
                await writer.drain()
            case "redirect":
                await http.send(307, {}, {"location": "/_sim/elsewhere"})
                return True
            case _:
                await http.send(200, *self._damaged(data, reply))
                return True
        return False

    def _damaged(self, data: bytes, reply: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
        match self.name:
            case "malformed":
                return data[:-7], {}
            case "html":
                return b"<html><body>502 Bad Gateway</body></html>", {"content-type": "text/html"}
            case "empty":
                return b"{}", {}
            case "nulls":
                return json.dumps(dict.fromkeys(reply)).encode(), {}
            case "gzip_bomb":
                return _bomb(data), {"content-encoding": "gzip"}
        return data, {}

    async def _drip(self, http: Http, data: bytes) -> None:
        hung_up = asyncio.ensure_future(http.reader.read())
        http.writer.write(http.head(200, len(data)))
        try:
            for byte in data:
                http.writer.write(bytes([byte]))
                done, _ = await asyncio.wait([hung_up], timeout=0.05)
                if done:
                    break
        finally:
            hung_up.cancel()


def _bomb(data: bytes) -> bytes:
    """50 MB of white space, then the answer, in 50 KB; made a megabyte at a time."""
    pack = zlib.compressobj(wbits=31)
    blanks = b" " * 1_000_000
    return b"".join([pack.compress(blanks) for _ in range(50)]) + pack.compress(data) + pack.flush()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST instead of FIN
    writer.transport.abort()
