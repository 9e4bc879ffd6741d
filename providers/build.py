"""From a kind in the config to an adapter. The SDKs take a while to import, so only the one that is used is."""

from __future__ import annotations

from typing import Literal

from providers.types import Provider

Kind = Literal["anthropic", "openai"]


def build(
    kind: Kind,
    *,
    name: str,
    model: str,
    api_key: str,
    base_url: str | None = None,
    effort: str | None = None,
    insecure_http: bool = False,
) -> Provider:
    """Raises `ValueError` for an unknown kind, and for a key or a URL that can't be used."""
    if kind == "anthropic":
        from providers.anthropic_api import AnthropicProvider

        return AnthropicProvider(name, model, api_key, base_url, effort=effort, insecure_http=insecure_http)
    if kind == "openai":
        from providers.openai_api import OpenAIProvider

        return OpenAIProvider(name, model, api_key, base_url, effort=effort, insecure_http=insecure_http)
    raise ValueError(f"provider {name!r}: unknown kind {kind!r}; there are anthropic and openai")
