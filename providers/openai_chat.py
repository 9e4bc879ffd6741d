"""Chat completions as OpenAI defined them and many servers speak them: vLLM, llama.cpp, LiteLLM, OpenRouter, Gemini.

Not all of them know strict schemas. With structured = "auto" the first refusal lowers the mode: schema → json → none.
What a reply says is checked in every mode, so a lower mode costs answers, never correctness.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from cost.types import Usage
from providers import openai_api, usage
from providers.parse import unwrapped
from providers.prompt import THINKING_TOKENS, Prompt, user_part
from providers.sdk import Format, Said, SdkProvider
from providers.settings import Settings, Structured
from providers.types import BadRequest, ProviderError, SchemaRefused

_MODES: tuple[Structured, ...] = ("schema", "json", "none")


class _Message(msgspec.Struct, frozen=True):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Message
    finish_reason: str | None = None


class _Reply(msgspec.Struct, frozen=True):
    model: str
    choices: list[_Choice]
    id: str | None = None
    usage: Any = None
    service_tier: Any = None


class _Wire:
    """How replies are asked to be structured; learned from refusals."""

    def __init__(self, settings: Settings) -> None:
        self._effort = settings.effort
        # Every server knows max_tokens, and some ignore the newer name: llama.cpp did until 2026 (#13700), llamafile
        # does (#701). OpenAI's reasoning models refuse the older.
        self._limit = "max_tokens" if settings.base_url and not settings.via else "max_completion_tokens"
        # Other servers call their tiers otherwise, or have none.
        self._tier = {} if settings.base_url and not settings.via else openai_api.list_price(settings)
        self._learns = settings.structured == "auto"
        self._mode: Structured = _MODES[0] if settings.structured == "auto" else settings.structured

    def request(self, model: str, shown: Prompt, text: str, max_output: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": model,
            "messages": [
                {"role": "system", "content": shown.prefix},
                {"role": "user", "content": user_part(text)},
            ],
            self._limit: max_output,
        }
        if self._mode == "schema":
            schema = {"name": "classification", "strict": True, "schema": shown.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self._mode == "json":
            body["response_format"] = {"type": "json_object"}
        if self._effort is not None:
            body["reasoning_effort"] = self._effort
        return body | self._tier

    def refused(self, error: BadRequest, body: Mapping[str, Any]) -> ProviderError:
        """Lower the mode that `body` was sent in, once for all calls in flight."""
        if not self._learns or error.status not in (400, 422):
            return error
        sent = _mode_of(body)
        if sent == _MODES[-1]:  # so it was not the structure
            self._mode = _MODES[0]
            return error
        if self._mode == sent:
            self._mode = _MODES[_MODES.index(sent) + 1]
        return SchemaRefused(f"HTTP {error.status}: refused with structured = {sent!r}, asked more simply from now on")


def _mode_of(body: Mapping[str, Any]) -> Structured:
    kind = body.get("response_format", {}).get("type")
    return "schema" if kind == "json_schema" else "json" if kind == "json_object" else "none"


def provider(name: str, model: str, api_key: str, settings: Settings) -> SdkProvider[_Reply]:
    """Raises `ValueError` for a key or URL that can't be used."""
    thinking = THINKING_TOKENS if settings.thinking_tokens is None else settings.thinking_tokens
    wire = _Wire(settings)
    return SdkProvider(
        name,
        model,
        openai_api.client("openai-chat", name, api_key, settings),
        Format(
            "/chat/completions",
            wire.request,
            partial(Prompt.upper_bound, thinking=thinking),
            _Reply,
            _read,
            wire.refused,
        ),
        identity=settings.identity(
            "openai-chat", model, effort=settings.effort, thinking=thinking, structured=settings.structured
        ),
    )


def _read(reply: _Reply, _shown: Prompt, bound: Usage) -> Said:
    used = usage.listed(usage.from_chat(reply.usage, bound), reply.service_tier)
    if len(reply.choices) != 1:
        return Said(reply.model, used, reply.id, stopped="")
    choice = reply.choices[0]
    if choice.message.refusal:
        return Said(reply.model, used, reply.id, stopped="refusal")
    if choice.finish_reason not in ("stop", None):
        return Said(reply.model, used, reply.id, stopped=choice.finish_reason)
    return Said(reply.model, used, reply.id, unwrapped(choice.message.content or ""))
