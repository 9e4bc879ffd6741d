"""Anthropic Messages, on the official SDK."""

from __future__ import annotations

from typing import Any

import anthropic
import msgspec

from cost.types import Usage
from providers import usage
from providers.prompt import Prompt
from providers.sdk import Format, Said, SdkProvider
from providers.transport import checked_key, http_client


class _Block(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class _Reply(msgspec.Struct, frozen=True):
    model: str
    content: list[_Block]
    stop_reason: str | None = None
    usage: Any = None


def provider(name: str, model: str, api_key: str, base_url: str = "https://api.anthropic.com") -> SdkProvider[_Reply]:
    """Raises `ValueError` for a key or URL that can't be used."""
    # Key and URL are given, so that the environment's are not used; its traces could hold texts.
    client = anthropic.AsyncAnthropic(
        api_key=checked_key(api_key, name),
        base_url=base_url,
        max_retries=0,
        http_client=http_client(base_url),
        open_telemetry=False,
    )
    return SdkProvider(name, model, client, Format("/v1/messages", _request, _Reply, _read))


def _request(model: str, shown: Prompt, user: str) -> dict[str, Any]:
    # Caching the labels pays from about two calls in five minutes on.
    prefix = {"type": "text", "text": shown.prefix, "cache_control": {"type": "ephemeral"}}
    return {
        "model": model,
        "max_tokens": shown.max_output_tokens,
        "system": [prefix],
        "messages": [{"role": "user", "content": user}],
        "output_config": {"format": {"type": "json_schema", "schema": shown.schema}},
    }


def _read(reply: _Reply, bound: Usage) -> Said:
    used = usage.from_messages(reply.usage, bound)
    if reply.stop_reason not in ("end_turn", "stop_sequence"):
        # "refusal", "max_tokens", ...: what text there is, is no answer.
        return Said(reply.model, used, stopped=reply.stop_reason or "")
    return Said(reply.model, used, "".join(block.text or "" for block in reply.content if block.type == "text"))
