"""The simulator's two wire formats, and what it answers and charges."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import msgspec

_CACHE_TTL_S = 300.0


class Asked(msgspec.Struct, frozen=True):
    """What a request asks, in either format."""

    model: str
    prefix: str
    text: str
    labels: tuple[str, ...]
    cache_from: int  # prompt-cache minimum in tokens


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


class _Shown(msgspec.Struct, forbid_unknown_fields=True):
    """`providers.prompt.user_part`."""

    text: str


def _text_of(user: str) -> str:
    """The text out of the user message. It is unwrapped once: a text that looks like a message is a text. A message
    that is not exactly of our making, say from curl, is the text itself."""
    with suppress(msgspec.MsgspecError, UnicodeEncodeError):
        return msgspec.json.decode(user, type=_Shown).text
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
