"""Anthropic Messages, on the official SDK."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import anthropic
import msgspec

from cost.prices import PriceTable
from cost.types import Usage
from providers import platforms, usage
from providers.prompt import ALWAYS_THINKING_TOKENS, THINKING_TOKENS, Prompt, user_part
from providers.sdk import Client, Format, Said, SdkProvider
from providers.settings import Settings, Via
from providers.transport import checked_key, http_client, without_environment

URL = "https://api.anthropic.com"


class _Block(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class _Reply(msgspec.Struct, frozen=True):
    model: str
    content: list[_Block]
    id: str | None = None
    stop_reason: str | None = None
    usage: Any = None


def provider(name: str, model: str, api_key: str, settings: Settings) -> SdkProvider[_Reply]:
    """`api_key`: empty for a cloud's own credentials. Raises `ValueError` for what can't be used."""
    always = _always_thinks(model)
    # A classification needs few thoughts, and they are paid for; the model's own default is "high".
    effort = settings.effort or ("low" if always else None)
    thinking = settings.thinking_tokens
    if thinking is None:
        thinking = ALWAYS_THINKING_TOKENS if always else THINKING_TOKENS
    wire = Format(
        "/v1/messages",
        partial(_request, effort, settings.via),
        partial(Prompt.upper_bound, thinking=thinking),
        _Reply,
        _read,
    )
    identity = settings.identity("anthropic", model, effort=effort, thinking=thinking)
    return SdkProvider(name, model, _client(name, api_key, settings), wire, identity=identity)


def _always_thinks(model: str) -> bool:
    """By the longest name of the price table that is part of the model's: clouds add to it
    (eu.anthropic.claude-opus-5-5-v1:0)."""
    models = PriceTable.load().models
    known = max((name for name in models if name in model), key=len, default=None)
    return known is not None and models[known].thinking_always_on


def _client(name: str, api_key: str, settings: Settings) -> Client:
    """Key and URL are given, headers dropped: the environment's are not used. The SDK's traces could hold texts."""
    return without_environment(_sdk_client(name, api_key, settings))


def _sdk_client(name: str, api_key: str, settings: Settings) -> Client:
    if settings.via is None:
        url = settings.base_url or URL
        return anthropic.AsyncAnthropic(
            api_key=checked_key(api_key, name),
            base_url=url,
            max_retries=0,
            http_client=http_client(url),
            open_telemetry=False,
        )
    place = platforms.place("anthropic", name, settings, key=bool(api_key), environ=os.environ)
    key = checked_key(api_key, name) if api_key or settings.via == "azure" else None
    below = http_client(place.url)
    if settings.via == "bedrock":
        return anthropic.AsyncAnthropicBedrock(
            aws_region=place.region,
            api_key=key,
            base_url=place.url,
            max_retries=0,
            http_client=below,
            open_telemetry=False,
        )
    if settings.via == "vertex":
        return anthropic.AsyncAnthropicVertex(
            region=place.region,
            project_id=place.project,
            access_token=key,
            base_url=place.url,
            max_retries=0,
            http_client=below,
            open_telemetry=False,
        )
    return anthropic.AsyncAnthropicFoundry(
        api_key=key, base_url=place.url, max_retries=0, http_client=below, open_telemetry=False
    )


def _request(
    effort: str | None, via: Via | None, model: str, shown: Prompt, text: str, max_output: int
) -> dict[str, Any]:
    # Caching the labels pays from about two calls in five minutes on.
    prefix = {"type": "text", "text": shown.prefix, "cache_control": {"type": "ephemeral"}}
    output: dict[str, Any] = {"format": {"type": "json_schema", "schema": shown.schema}}
    if effort is not None:
        output["effort"] = effort
    body = {
        "model": model,
        "max_tokens": max_output,
        "system": [prefix],
        "messages": [{"role": "user", "content": user_part(text)}],
        "output_config": output,
    }
    if via is None:  # an account may have a dearer tier by default; clouds don't know the word
        body["service_tier"] = "standard_only"
    return body


def _read(reply: _Reply, _shown: Prompt, bound: Usage) -> Said:
    used = usage.from_messages(reply.usage, bound)
    if reply.stop_reason not in ("end_turn", "stop_sequence"):
        # "refusal", "max_tokens", ...: what text there is, is no answer.
        return Said(reply.model, used, reply.id, stopped=reply.stop_reason or "")
    text = "".join(block.text or "" for block in reply.content if block.type == "text")
    return Said(reply.model, used, reply.id, text)
