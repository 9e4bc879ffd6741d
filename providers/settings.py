"""What the config says of a provider, beyond its kind, name, model and key."""

from __future__ import annotations

from typing import Literal

import msgspec

from cost.prices import Price

Kind = Literal["anthropic", "openai", "openai-decisions", "openai-chat"]
Via = Literal["bedrock", "vertex", "azure"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Structured = Literal["auto", "schema", "json", "none"]

#: OpenAI's endpoint charges other prices than the model's tokens elsewhere: in the books it is a model of its own.
DECISIONS = "/decisions"
#: That a question to OpenAI Decisions can have.
MOST_DECISION_LABELS = 255


class Settings(msgspec.Struct, frozen=True):
    """None: the default, which depends on kind and model."""

    base_url: str | None = None
    via: Via | None = None
    region: str | None = None
    project: str | None = None
    api_version: str | None = None
    effort: Effort | None = None
    thinking_tokens: int | None = None
    structured: Structured = "auto"

    def identity(self, kind: Kind, model: str, **more: object) -> str:
        """What of a provider changes its answers. Not where it is: the same model is the same model."""
        parts = {"via": self.via, **more}
        return " ".join([kind, model, *(f"{key}={value}" for key, value in parts.items() if value is not None)])


class LaneSettings(msgspec.Struct, frozen=True):
    """How a provider is called, and paid."""

    max_in_flight: int = 16
    nano_per_hour: int | None = None  # what its machine costs; None: it is paid by tokens
    own_price: Price | None = None  # of its tokens, whatever its replies call the model; no other provider's
