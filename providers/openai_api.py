"""OpenAI Responses, on the official SDK."""

from __future__ import annotations

from typing import Any

import msgspec
import openai

from cost.types import Usage
from providers import usage
from providers.prompt import Prompt
from providers.sdk import Format, Said, SdkProvider
from providers.transport import checked_key, http_client


class _Part(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class _Item(msgspec.Struct, frozen=True):
    type: str
    content: list[_Part] | None = None


class _Cut(msgspec.Struct, frozen=True):
    reason: str | None = None


class _Reply(msgspec.Struct, frozen=True):
    model: str
    status: str
    output: list[_Item]
    incomplete_details: _Cut | None = None
    usage: Any = None


def provider(name: str, model: str, api_key: str, base_url: str = "https://api.openai.com/v1") -> SdkProvider[_Reply]:
    """Raises `ValueError` for a key or URL that can't be used."""
    client = openai.AsyncOpenAI(
        api_key=checked_key(api_key, name), base_url=base_url, max_retries=0, http_client=http_client(base_url)
    )
    return SdkProvider(name, model, client, Format("/responses", _request, _Reply, _read))


def _request(model: str, shown: Prompt, user: str) -> dict[str, Any]:
    return {
        "model": model,
        "instructions": shown.prefix,
        "input": user,
        "text": {"format": {"type": "json_schema", "name": "classification", "strict": True, "schema": shown.schema}},
        "max_output_tokens": shown.max_output_tokens,
        "store": False,  # their default keeps texts for 30 days
    }


def _read(reply: _Reply, bound: Usage) -> Said:
    used = usage.from_responses(reply.usage, bound)
    if reply.status != "completed":
        why = reply.incomplete_details.reason if reply.incomplete_details else reply.status
        return Said(reply.model, used, stopped=why or "")
    parts = [part for item in reply.output if item.type == "message" for part in item.content or []]
    if any(part.type == "refusal" for part in parts):
        return Said(reply.model, used, stopped="refusal")
    return Said(reply.model, used, "".join(part.text or "" for part in parts if part.type == "output_text"))
