"""What the config says of a provider, beyond its kind, name, model and key."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["anthropic", "openai", "openai-decisions", "openai-chat"]
Via = Literal["bedrock", "vertex", "azure"]
Structured = Literal["auto", "schema", "json", "none"]

#: That a question to OpenAI Decisions can have.
MOST_DECISION_LABELS = 255


class Settings(msgspec.Struct, frozen=True):
    """None: the default, which depends on kind and model."""

    base_url: str | None = None
    via: Via | None = None
    region: str | None = None
    project: str | None = None
    api_version: str | None = None
    effort: str | None = None
    thinking_tokens: int | None = None
    structured: Structured = "auto"

    def identity(self, kind: Kind, model: str, **more: object) -> str:
        """What of a provider changes its answers. Not where it is: the same model is the same model."""
        parts = {"via": self.via, **more}
        return " ".join([kind, model, *(f"{key}={value}" for key, value in parts.items() if value is not None)])
