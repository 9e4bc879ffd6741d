"""The simulator's faults: what each does to a call, what it hides, and how it is played on the wire."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from email.utils import formatdate
from typing import Any

import msgspec

from cost.types import Usage
from providers.simulator.http import Http, bomb
from providers.simulator.model import Said, said

#: Beside these there are the statuses, "400" to "599". They take a Retry-After: "429@30" (seconds), "503@ms:1500"
#: (retry-after-ms), "429@date:30" (the date in 30 seconds; -30: past), else the header as it is: "429@junk".
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
    "no_schema": "400: it knows no strict schemas",
    "out_of_set": "a label that was not offered",
    "two_labels": "two labels at once",
    "wrong_case": "a label in other letters",
    "homoglyph": "a label with a letter that only looks the same",
    "prose": "the label with a sentence around it",
    "ignores_schema": "a chat around the JSON",
    "fenced": "the JSON in a code block",
    "empty_text": "a reply without text",
    "refusal": "the model refuses",
    "truncated": "the answer is cut by the token limit",
    "no_usage": "an answer without usage",
    "negative_usage": "an answer with negative tokens",
    "absurd_usage": "an answer with 10^12 tokens",
    "string_usage": "an answer whose tokens are strings",
    "cached_usage": "an answer with more cached tokens than there are",
}
_UNREADABLE = {"malformed", "html", "empty", "nulls", "gzip_bomb"}
_UNTRUE = {"no_usage", "negative_usage", "absurd_usage", "string_usage", "cached_usage"}
_LOOKALIKE = str.maketrans("aceiopx", "асеіорх")
_UNSEEN = "\N{ZERO WIDTH SPACE}"


class Fault(msgspec.Struct, frozen=True):
    """One fault; "ok" is none."""

    name: str
    retry_after: str = ""

    @classmethod
    def parse(cls, name: str) -> Fault:
        """Raises `ValueError` for an unknown one."""
        base, _, retry_after = name.partition("@")
        if not (base in FAULTS or base == "ok" or re.fullmatch(r"[45]\d\d", base)):
            raise ValueError(f"unknown fault {name!r}; there are a status (429, 529@30), {', '.join(FAULTS)}")
        if retry_after.startswith("date:") and not re.fullmatch(r"date:-?\d+", retry_after):
            raise ValueError(f"fault {name!r}: after date: come the seconds from now on, as in 429@date:30")
        return cls(base, retry_after)

    @property
    def status(self) -> int:
        """Of a call that is refused, and so costs nothing; else 0."""
        return {"redirect": 307, "no_schema": 400}.get(self.name) or (int(self.name) if self.name.isdigit() else 0)

    @property
    def tells(self) -> bool:
        """The reply says what was charged, if it arrives."""
        return self.name not in _UNTRUE

    @property
    def headers(self) -> dict[str, str]:
        if self.name == "redirect":
            return {"location": "/_sim/elsewhere"}
        kind, _, value = self.retry_after.partition(":")
        match kind:
            case "":
                return {}
            case "ms":
                return {"retry-after-ms": value}
            case "date":
                return {"retry-after": formatdate(time.time() + float(value), usegmt=True)}
        return {"retry-after": self.retry_after}

    def changed(self, reply: Said, labels: Sequence[str]) -> Said:
        """What is said instead."""
        label = reply.label
        match self.name:
            case "out_of_set":
                return said(_outside("never_offered_" + "_".join(labels)[:8], labels))
            case "two_labels":
                names = [label, *(name for name in labels if name != label)][:2]
                return Said(",".join([said(name).text for name in names]), _outside(", ".join(names), labels))
            case "wrong_case":
                return said(_outside(label.swapcase(), labels))
            case "homoglyph":
                return said(_outside(label.translate(_LOOKALIKE), labels))
            case "prose":
                return _told("Sure! The label is {}.", reply)
            case "ignores_schema":
                return _told("Let me think.\nIt could be many things, but here it is:\n{}\nAnything else?", reply)
            case "fenced":
                return _told("```json\n{}\n```", reply)
            case "empty_text":
                return Said("", "")
            case "refusal":
                return Said("", "", stopped="refusal")
            case "truncated":
                return Said(reply.text[:6], _outside(label[: len(label) // 2], labels), stopped="truncated")
        return reply

    def usage(self, usage: Usage) -> Usage:
        """What is told of the usage; what is charged stays."""
        match self.name:
            case "negative_usage":
                return msgspec.structs.replace(usage, input=-5)
            case "absurd_usage":
                return msgspec.structs.replace(usage, input=10**12)
            case "cached_usage":
                # OpenAI's input holds the cached tokens, and Anthropic's cache writes those that live for an hour.
                return msgspec.structs.replace(
                    usage, input=-400, cache_read=500, cache_write_5m=-400, cache_write_1h=500
                )
        return usage

    def report(self, usage: dict[str, Any]) -> dict[str, Any] | None:
        """The usage as the reply gives it."""
        if self.name == "no_usage":
            return None
        return _strings(usage) if self.name == "string_usage" else usage

    async def deliver(self, http: Http, reply: dict[str, Any], headers: dict[str, str]) -> tuple[bool, bool]:
        """Send the reply, damaged as ordered: (it arrived, the connection can be used again)."""
        data = msgspec.json.encode(reply)
        match self.name:
            case "hang":
                await http.reader.read()  # ends when the caller hangs up
            case "slow_drip":
                return await http.drip(data), False
            case "reset":
                http.reset()
            case "half_close":
                await http.send_half(data)
            case _:
                body, more = self._damaged(data, reply)
                await http.send(200, body, headers | more)
                return self.name not in _UNREADABLE, True
        return False, False

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
                return bomb(data), {"content-encoding": "gzip"}
        return data, {}


def _told(around: str, reply: Said) -> Said:
    return Said(around.format(reply.text), around.format(reply.label))


def _outside(name: str, labels: Sequence[str]) -> str:
    """Something like `name` that is none of the labels."""
    while name in labels:
        name += _UNSEEN
    return name


def _strings(value: Any) -> Any:
    return {key: _strings(inner) for key, inner in value.items()} if isinstance(value, dict) else str(value)
