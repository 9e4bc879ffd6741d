"""The simulator's wire formats: how a request of each is read, a reply and an error written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from cost.prices import SIMULATED
from cost.types import Usage
from providers.simulator.model import Asked, Said

#: OpenAI caches prompt prefixes of at least so many tokens.
_OPENAI_CACHES_FROM = 1024
_MOST_CHOICES = 255
#: A label in the prompt of `providers.prompt`, where no schema names it.
_LISTED = re.compile(r'^- ("(?:[^"\\]|\\.)*")', re.MULTILINE)


class Format(msgspec.Struct, frozen=True):
    """A wire format. `read` raises `KeyError`, `TypeError`, `ValueError`, `IndexError` for what it can't read."""

    name: str
    id: str  # what its replies' ids start with
    read: Callable[[Any], Asked]
    reply: Callable[[str, Asked, Said, Usage], dict[str, Any]]
    error: Callable[[int, str, str | None], dict[str, Any]]


class _Shown(msgspec.Struct, forbid_unknown_fields=True):
    """`providers.prompt.user_part`."""

    text: str


def _text_of(user: str) -> str:
    """The text out of the user message. It is unwrapped once: a text that looks like a message is a text. A message
    that is not exactly of our making, say from curl, is the text itself."""
    with suppress(msgspec.MsgspecError, UnicodeEncodeError):
        return msgspec.json.decode(user, type=_Shown).text
    return user


def _joined(content: Any) -> str:
    """Text that is given whole or in parts."""
    return content if isinstance(content, str) else "".join([part["text"] for part in content])


def _labels(schema: Any) -> tuple[str, ...]:
    return tuple(schema["properties"]["label"]["enum"])


# --- Anthropic Messages


def _read_messages(body: Any) -> Asked:
    system = body.get("system", "")
    marked = not isinstance(system, str) and any("cache_control" in block for block in system)
    return Asked(
        model=body["model"],
        prefix=_joined(system),
        text=_text_of(_joined(body["messages"][-1]["content"])),
        labels=_labels(body["output_config"]["format"]["schema"]),
        cache_from=512 if marked else 2**62,
        max_output=body["max_tokens"],
        thinks=(body.get("thinking") or {}).get("type") in ("enabled", "adaptive"),
    )


def _messages_reply(number: str, asked: Asked, said: Said, usage: Usage) -> dict[str, Any]:
    content = [{"type": "thinking", "thinking": "", "signature": "simulated"}] if usage.reasoning else []
    content += [{"type": "text", "text": said.text}] if said.text else []
    return {
        "id": number,
        "type": "message",
        "role": "assistant",
        "model": SIMULATED + asked.model,
        "content": content,
        "stop_reason": {"refusal": "refusal", "truncated": "max_tokens"}.get(said.stopped, "end_turn"),
        "stop_sequence": None,
        "usage": {
            "input_tokens": usage.input,
            "cache_read_input_tokens": usage.cache_read,
            "cache_creation_input_tokens": usage.cache_write_5m + usage.cache_write_1h,
            "cache_creation": {
                "ephemeral_5m_input_tokens": usage.cache_write_5m,
                "ephemeral_1h_input_tokens": usage.cache_write_1h,
            },
            "output_tokens": usage.output,
            "output_tokens_details": {"thinking_tokens": usage.reasoning},
        },
    }


def _messages_error(status: int, message: str, _param: str | None) -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 529: "overloaded_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_simulated"}


# --- OpenAI Responses


def _read_responses(body: Any) -> Asked:
    asked = body["input"]
    return Asked(
        model=body["model"],
        prefix=body.get("instructions") or "",
        text=_text_of(asked if isinstance(asked, str) else _joined(asked[-1]["content"])),
        labels=_labels(body["text"]["format"]["schema"]),
        cache_from=_OPENAI_CACHES_FROM,
        max_output=body.get("max_output_tokens") or 2**31,
        thinks=(body.get("reasoning") or {}).get("effort") not in (None, "none"),
    )


def _responses_reply(number: str, asked: Asked, said: Said, usage: Usage) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "output_text", "text": said.text, "annotations": []}
    if said.stopped == "refusal":
        part = {"type": "refusal", "refusal": "I can't help with that."}
    cut = said.stopped == "truncated"
    thought = [{"id": f"rs_{number}", "type": "reasoning", "summary": []}] if usage.reasoning else []
    message = {"id": f"m_{number}", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    return {
        "id": number,
        "object": "response",
        "created_at": 0,
        "model": SIMULATED + asked.model,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "error": None,
        "output": [*thought, message],
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [],
        "usage": _openai_usage(usage),
    }


def _openai_usage(usage: Usage) -> dict[str, Any]:
    """This provider's input holds all buckets."""
    total = usage.input + usage.cache_read + usage.cache_write_5m
    return {
        "input_tokens": total,
        "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write_5m},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": total + usage.output,
    }


def _openai_error(status: int, message: str, param: str | None) -> dict[str, Any]:
    codes = {401: "invalid_api_key", 402: "insufficient_quota", 429: "rate_limit_exceeded"}
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": codes.get(status)}}


# --- OpenAI Decisions


def _read_decisions(body: Any) -> Asked:
    (question,) = body["questions"]
    if question["type"] != "choice":
        raise ValueError("the simulator answers choice questions only")
    choices = [choice["value"] for choice in question["choices"]]
    if not 2 <= len(choices) <= _MOST_CHOICES or len(set(choices)) != len(choices):
        raise ValueError(f"between 2 and {_MOST_CHOICES} different choices are possible, not {len(choices)}")
    described = [f"{choice['value']}: {choice.get('description', '')}" for choice in question["choices"]]
    asked = body["input"]
    return Asked(
        model=body["model"],
        prefix="\n".join([_joined(question["instructions"]), *described]),
        # As it is: text and question are apart already.
        text=asked if isinstance(asked, str) else _joined(asked[-1]["content"]),
        labels=tuple(choices),
        cache_from=_OPENAI_CACHES_FROM,
    )


def _decisions_reply(_number: str, asked: Asked, said: Said, usage: Usage) -> dict[str, Any]:
    """Without an id, as theirs; it goes into the header x-request-id."""
    share = 0.1 / max(1, len(asked.labels) - 1)
    answer = {
        "type": "choice",
        "name": None,
        "choice": said.label,
        "confidence": 0.9,
        "probabilities": [
            {"value": name, "probability": 0.9 if name == said.label else round(share, 6)} for name in asked.labels
        ],
    }
    if said.stopped == "refusal":
        answer = {"type": "refusal", "name": None}
    return {"answers": [answer], "model": SIMULATED + asked.model, "usage": _openai_usage(usage)}


# --- OpenAI-compatible chat


def _read_chat(body: Any) -> Asked:
    messages = body["messages"]
    prefix = "\n".join([_joined(each["content"]) for each in messages if each["role"] in ("system", "developer")])
    style = body.get("response_format") or {"type": "text"}
    constrained = {"json_schema": "schema", "json_object": "json", "text": ""}[style["type"]]
    if constrained == "schema":
        labels = _labels(style["json_schema"]["schema"])
    else:
        listed = prefix.rpartition("\nLabels:\n")[2]
        labels = tuple([json.loads(name) for name in _LISTED.findall(listed)])
        if not labels:
            raise ValueError("no labels: neither a JSON schema nor a list of them in the system message")
    return Asked(
        model=body["model"],
        prefix=prefix,
        text=_text_of(_joined(messages[-1]["content"])),
        labels=labels,
        cache_from=_OPENAI_CACHES_FROM,
        max_output=body.get("max_completion_tokens") or body.get("max_tokens") or 2**31,
        thinks=body.get("reasoning_effort") not in (None, "none"),
        constrained=constrained,
    )


def _chat_reply(number: str, asked: Asked, said: Said, usage: Usage) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
    if said.stopped == "refusal":
        message |= {"content": None, "refusal": "I can't help with that."}
    used = _openai_usage(usage)
    finish = "length" if said.stopped == "truncated" else "stop"
    return {
        "id": number,
        "object": "chat.completion",
        "created": 0,
        "model": SIMULATED + asked.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": used["input_tokens"],
            "prompt_tokens_details": used["input_tokens_details"],
            "completion_tokens": used["output_tokens"],
            "completion_tokens_details": used["output_tokens_details"],
            "total_tokens": used["total_tokens"],
        },
    }


FORMATS = {
    "/v1/messages": Format("messages", "msg_sim", _read_messages, _messages_reply, _messages_error),
    "/v1/responses": Format("responses", "resp_sim", _read_responses, _responses_reply, _openai_error),
    "/v1/decisions": Format("decisions", "dec_sim", _read_decisions, _decisions_reply, _openai_error),
    "/v1/chat/completions": Format("chat", "chatcmpl-sim", _read_chat, _chat_reply, _openai_error),
}
