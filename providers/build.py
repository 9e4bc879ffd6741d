"""From a kind in the config to an adapter. The SDKs take a while to import, so only the one that is used is."""

from __future__ import annotations

from typing import Any, get_args

from providers.sdk import SdkProvider
from providers.settings import Kind, Settings, Structured, Via


def build(
    kind: Kind,
    *,
    name: str,
    model: str,
    api_key: str,
    base_url: str | None = None,
    via: Via | None = None,
    region: str | None = None,
    project: str | None = None,
    api_version: str | None = None,
    effort: str | None = None,
    thinking_tokens: int | None = None,
    structured: Structured = "auto",
) -> SdkProvider[Any]:
    """`base_url`: None for the vendor's own. Raises `ValueError` for an unknown kind, and for a key, a URL or a
    platform (`via`) that can't be used."""
    settings = Settings(base_url, via, region, project, api_version, effort, thinking_tokens, structured)
    if kind == "anthropic":
        from providers import anthropic_api

        return anthropic_api.provider(name, model, api_key, settings)
    if kind == "openai":
        from providers import openai_api

        return openai_api.provider(name, model, api_key, settings)
    if kind == "openai-decisions":
        from providers import openai_decisions

        return openai_decisions.provider(name, model, api_key, settings)
    if kind == "openai-chat":
        from providers import openai_chat

        return openai_chat.provider(name, model, api_key, settings)
    raise ValueError(f"provider {name!r}: unknown kind {kind!r}; there are {', '.join(get_args(Kind))}")
