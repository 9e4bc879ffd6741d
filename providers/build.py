"""From a kind in the config to an adapter. The SDKs take a while to import, so only the one that is used is."""

from __future__ import annotations

from typing import Any, get_args

from providers.sdk import SdkProvider
from providers.settings import Kind, Settings


def build(kind: Kind, *, name: str, model: str, api_key: str, settings: Settings | None = None) -> SdkProvider[Any]:
    """Raises `ValueError` for an unknown kind, and for a key, a URL or a platform (`via`) that can't be used."""
    settings = settings or Settings()
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
