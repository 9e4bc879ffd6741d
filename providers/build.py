"""From a kind in the config to an adapter. The SDKs take a while to import, so only the one that is used is."""

from __future__ import annotations

from typing import Literal

from providers.types import Provider

Kind = Literal["anthropic", "openai", "openai-decisions", "openai-chat"]


def build(kind: Kind, *, name: str, model: str, api_key: str, base_url: str | None = None) -> Provider:
    """`base_url`: None for the provider's own. Raises `ValueError` for an unknown kind, and for a key or a URL that
    can't be used."""
    given = {"base_url": base_url} if base_url else {}
    if kind == "anthropic":
        from providers import anthropic_api

        return anthropic_api.provider(name, model, api_key, **given)
    if kind == "openai":
        from providers import openai_api

        return openai_api.provider(name, model, api_key, **given)
    raise ValueError(f"provider {name!r}: unknown kind {kind!r}; there are anthropic and openai")
