"""What the simulator says on the wire: the two formats, the faults, the tokens, and a small HTTP/1.1."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
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
_CACHE_TTL_S = 300.0


class Asked(msgspec.Struct, frozen=True):
    """What a request asks, in either format."""

    model: str
    prefix: str
    text: str
    labels: tuple[str, ...]
    cache_from: int  # prompt-cache minimum in tokens


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


def choose(asked: Asked, answers: Mapping[str, str], accuracy: float, seed: int) -> str:
    """The label for a text: the table's, else the one sharing most words with it; wrong in a share of 1 - accuracy."""
    label = answers.get(asked.text.strip(), "")
    if label not in asked.labels:
        words = _words(asked.text)
        label = max(asked.labels, key=lambda name: (len(words & _words(name)), _hash(seed, asked.text, name)))
    if _hash(seed, asked.text, "\0wrong") >= accuracy and len(asked.labels) > 1:
        others = [name for name in asked.labels if name != label]
        label = others[int(_hash(seed, asked.text, "\0which") * len(others))]
    return label


def _words(text: str) -> set[str]:
    plain = unicodedata.normalize("NFKD", text).casefold()
    return {word.rstrip("s") for word in re.findall(r"[a-z0-9]{3,}", plain)}


def _hash(seed: int, *parts: str) -> float:
    """Uniform in [0, 1), the same in every run."""
    data = "\0".join((str(seed), *parts)).encode("utf-8", "replace")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big") / 2**64


def usage_of(asked: Asked, label: str, prefixes: dict[str, float], now: float) -> dict[str, int]:
    """Tokens in disjoint buckets, at four characters each; the prefix goes through a prompt cache of five minutes."""
    prefix, text = len(asked.prefix) // 4 + 1, len(asked.text) // 4 + 8
    tokens = {"input": text, "cache_read": 0, "cache_write_5m": 0, "output": len(label) // 4 + 6}
    if prefix < asked.cache_from:
        tokens["input"] += prefix
        return tokens
    digest = blake2b(f"{asked.model}\0{asked.prefix}".encode("utf-8", "replace"), digest_size=16).hexdigest()
    warm = now - prefixes.get(digest, float("-inf")) < _CACHE_TTL_S
    prefixes[digest] = now
    tokens["cache_read" if warm else "cache_write_5m"] = prefix
    return tokens


class Format(msgspec.Struct, frozen=True):
    """A wire format: how its requests are read, its replies and errors written."""

    name: str
    read: Callable[[Any], Asked]
    reply: Callable[[str, Asked, str, dict[str, int], str], dict[str, Any]]
    error: Callable[..., dict[str, Any]]


def _text_of(user: str) -> str:
    """The text out of the user message, which is `providers.prompt.user_part`; any other message is the text."""
    try:
        return str(json.loads(user)["text"])
    except (ValueError, KeyError, TypeError):
        return user


def _read_messages(body: Any) -> Asked:
    system = body.get("system", "")
    blocks = [{"text": system}] if isinstance(system, str) else system
    content = body["messages"][-1]["content"]
    user = content if isinstance(content, str) else "".join(block["text"] for block in content)
    labels = body["output_config"]["format"]["schema"]["properties"]["label"]["enum"]
    marked = any("cache_control" in block for block in blocks)
    return Asked(
        model=body["model"],
        prefix="".join(block["text"] for block in blocks),
        text=_text_of(user),
        labels=tuple(labels),
        cache_from=512 if marked else 2**62,
    )


def _odd_usage(usage: dict[str, Any], fault: str) -> dict[str, Any] | None:
    """The usage that a fault reports instead."""
    match fault:
        case "no_usage":
            return None
        case "negative_usage":
            return usage | {"input_tokens": -5}
        case "absurd_usage":
            return usage | {"input_tokens": 10**12}
    return usage


def _messages_reply(number: str, asked: Asked, text: str, usage: dict[str, int], fault: str) -> dict[str, Any]:
    reported = {
        "input_tokens": usage["input"],
        "cache_read_input_tokens": usage["cache_read"],
        "cache_creation_input_tokens": usage["cache_write_5m"],
        "cache_creation": {"ephemeral_5m_input_tokens": usage["cache_write_5m"], "ephemeral_1h_input_tokens": 0},
        "output_tokens": usage["output"],
    }
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": f"simulated/{asked.model}",
        "content": [{"type": "text", "text": text}] if text else [],
        "stop_reason": {"refusal": "refusal", "truncated": "max_tokens"}.get(fault, "end_turn"),
        "stop_sequence": None,
        "usage": _odd_usage(reported, fault),
    }


def _messages_error(status: int, message: str = "ordered from the simulator") -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 529: "overloaded_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_simulated"}


def _read_responses(body: Any) -> Asked:
    asked = body["input"]
    user = asked if isinstance(asked, str) else asked[-1]["content"]
    return Asked(
        model=body["model"],
        prefix=body.get("instructions") or "",
        text=_text_of(user),
        labels=tuple(body["text"]["format"]["schema"]["properties"]["label"]["enum"]),
        cache_from=1024,
    )


def _responses_reply(number: str, asked: Asked, text: str, usage: dict[str, int], fault: str) -> dict[str, Any]:
    total = usage["input"] + usage["cache_read"] + usage["cache_write_5m"]  # this format's input holds all buckets
    reported = {
        "input_tokens": total,
        "input_tokens_details": {"cached_tokens": usage["cache_read"], "cache_write_tokens": usage["cache_write_5m"]},
        "output_tokens": usage["output"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": total + usage["output"],
    }
    part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
    if fault == "refusal":
        part = {"type": "refusal", "refusal": "I can't help with that."}
    cut = fault == "truncated"
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 0,
        "model": f"simulated/{asked.model}",
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "error": None,
        "output": [
            {"id": f"m_{number}", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        ],
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [],
        "usage": _odd_usage(reported, fault),
    }


def _responses_error(status: int, message: str = "ordered from the simulator") -> dict[str, Any]:
    kind = {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(status, "server_error" if status >= 500 else "bad")
    return {"error": {"message": message, "type": kind, "param": None, "code": kind}}


FORMATS = {
    "/v1/messages": Format("messages", _read_messages, _messages_reply, _messages_error),
    "/v1/responses": Format("responses", _read_responses, _responses_reply, _responses_error),
}
