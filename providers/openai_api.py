"""OpenAI Responses, on the official SDK."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import httpx2
import msgspec
import openai
from openai.providers import bedrock, vertex

from cost.types import Usage
from providers import platforms, usage
from providers.prompt import THINKING_TOKENS, Prompt, user_part
from providers.sdk import Format, Said, SdkProvider
from providers.settings import Kind, Settings
from providers.transport import checked_key, http_client, without_environment

URL = "https://api.openai.com/v1"


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
    id: str | None = None
    incomplete_details: _Cut | None = None
    usage: Any = None
    service_tier: Any = None


def provider(name: str, model: str, api_key: str, settings: Settings) -> SdkProvider[_Reply]:
    """`api_key`: empty for a cloud's own credentials. Raises `ValueError` for what can't be used."""
    thinking = THINKING_TOKENS if settings.thinking_tokens is None else settings.thinking_tokens
    wire = Format(
        "/responses",
        partial(_request, settings),
        partial(Prompt.upper_bound, thinking=thinking),
        _Reply,
        _read,
    )
    identity = settings.identity("openai", model, effort=settings.effort, thinking=thinking)
    return SdkProvider(name, model, client("openai", name, api_key, settings), wire, identity=identity)


def client(kind: Kind, name: str, api_key: str, settings: Settings) -> openai.AsyncOpenAI:
    """For every format that OpenAI's SDK speaks. Raises `ValueError` for what can't be used."""
    return without_environment(_sdk_client(kind, name, api_key, settings))


def _sdk_client(kind: Kind, name: str, api_key: str, settings: Settings) -> openai.AsyncOpenAI:
    if settings.via is None:
        url = settings.base_url or URL
        return openai.AsyncOpenAI(
            api_key=checked_key(api_key, name), base_url=url, max_retries=0, http_client=http_client(url)
        )
    place = platforms.place(kind, name, settings, key=bool(api_key), environ=os.environ)
    key = checked_key(api_key, name) if api_key or settings.via == "azure" else None
    below = http_client(place.url)
    if settings.via == "azure":
        return _azure(key, place.url, settings.api_version, below)
    try:
        cloud = (
            bedrock(region=place.region, base_url=place.url, api_key=key)
            if settings.via == "bedrock"
            else vertex(base_url=place.url, token_provider=None if key is None else lambda: key)
        )
        return openai.AsyncOpenAI(provider=cloud, max_retries=0, http_client=below)
    except openai.OpenAIError as error:  # about region and URL; it names no credentials
        raise ValueError(f"provider {name!r}: {error}") from None


def _azure(key: str | None, url: str, api_version: str | None, below: httpx2.AsyncClient) -> openai.AsyncOpenAI:
    """With an API version the older addresses, by deployment; without one the newer, which are OpenAI's own."""
    if api_version is not None:
        return openai.AsyncAzureOpenAI(
            azure_endpoint=url, api_version=api_version, api_key=key, max_retries=0, http_client=below
        )
    root = url.rstrip("/")
    root = root if root.endswith("/v1") else f"{root}/openai/v1"
    return openai.AsyncOpenAI(api_key=key, base_url=root, max_retries=0, http_client=below)


def list_price(settings: Settings) -> dict[str, Any]:
    """What asks for the tier at list price: a project may have a dearer one by default. Clouds don't all know it."""
    known = settings.via is None or (settings.via == "azure" and settings.api_version is None)
    return {"service_tier": "default"} if known else {}


def _request(settings: Settings, model: str, shown: Prompt, text: str, max_output: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "instructions": shown.prefix,
        "input": user_part(text),
        "text": {"format": {"type": "json_schema", "name": "classification", "strict": True, "schema": shown.schema}},
        "max_output_tokens": max_output,
        "store": False,  # their default keeps texts for 30 days
    }
    if settings.effort is not None:
        body["reasoning"] = {"effort": settings.effort}
    return body | list_price(settings)


def _read(reply: _Reply, _shown: Prompt, bound: Usage) -> Said:
    used = usage.listed(usage.from_responses(reply.usage, bound), reply.service_tier)
    if reply.status != "completed":
        why = reply.incomplete_details.reason if reply.incomplete_details else reply.status
        return Said(reply.model, used, reply.id, stopped=why or "")
    parts = [part for item in reply.output if item.type == "message" for part in item.content or []]
    if any(part.type == "refusal" for part in parts):
        return Said(reply.model, used, reply.id, stopped="refusal")
    text = "".join(part.text or "" for part in parts if part.type == "output_text")
    return Said(reply.model, used, reply.id, text)
