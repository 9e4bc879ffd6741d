"""Anthropic Messages, on the official SDK."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import anthropic
import msgspec

from providers import failures, prompt, usage
from providers.parse import answer_of, name_of
from providers.transport import checked_key, http_client
from providers.types import Answer, BadAnswer, ProviderError, Question

BASE_URL = "https://api.anthropic.com"


class _Block(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class _Reply(msgspec.Struct, frozen=True):
    """What is read of a reply; msgspec checks the types, which the SDK does not."""

    model: str
    content: list[_Block]
    stop_reason: str | None = None
    usage: Any = None


class AnthropicProvider:
    """`effort` goes to models that think ("low" is enough for a label); `cache_prefix` marks the labels for caching,
    which pays from about two calls in five minutes on. Raises `ValueError` for a key or URL that can't be used."""

    def __init__(
        self,
        name: str,
        model: str,
        api_key: str,
        base_url: str | None = None,
        *,
        effort: str | None = None,
        cache_prefix: bool = True,
        insecure_http: bool = False,
    ) -> None:
        self.name = name
        self.model = model
        self._effort = effort
        self._cache_prefix = cache_prefix
        client, self._transport = http_client(base_url or BASE_URL, insecure_http=insecure_http)
        # Key and URL are given, so that the environment's are not used; its traces could hold texts.
        self._sdk = anthropic.AsyncAnthropic(
            api_key=checked_key(api_key, name),
            base_url=base_url or BASE_URL,
            max_retries=0,
            http_client=client,
            open_telemetry=False,
        )

    def __repr__(self) -> str:
        return f"AnthropicProvider({self.name!r}, {self.model!r})"

    @property
    def wire_calls(self) -> int:
        return self._transport.calls

    async def close(self) -> None:
        await self._sdk.close()

    async def ask(self, question: Question, *, timeout: float) -> Answer:  # noqa: ASYNC109 - the seam's word
        """One wire call. Raises `ProviderError`s only."""
        failure: ProviderError
        try:
            # The SDK's own time-out is per read: a slow drip outlives it.
            async with asyncio.timeout(timeout):
                raw = await self._sdk.messages.with_raw_response.create(**self._request(question), timeout=timeout)
                return _answer(raw.http_response.content, question)
        except ProviderError:
            raise
        except anthropic.APIStatusError as error:
            failure = failures.from_status(error.status_code, error.response.headers, error.type or "")
        except Exception as error:  # noqa: BLE001 - whatever an SDK raises is a provider's failure
            failure = failures.from_cause(error)
        raise failure

    def _request(self, question: Question) -> dict[str, Any]:
        prefix: dict[str, Any] = {"type": "text", "text": prompt.system_prefix(question.labels, question.instructions)}
        if self._cache_prefix:
            prefix["cache_control"] = {"type": "ephemeral"}
        output: dict[str, Any] = {"format": {"type": "json_schema", "schema": prompt.schema(question.labels)}}
        if self._effort:
            output["effort"] = self._effort
        return {
            "model": self.model,
            "max_tokens": prompt.max_output_tokens(question),
            "system": [prefix],
            "messages": [{"role": "user", "content": prompt.user_part(question.text)}],
            "output_config": output,
        }


def _answer(body: bytes, question: Question) -> Answer:
    bound = prompt.upper_bound(question)
    reply: _Reply | None = None
    # Suppressed, not caught and raised anew: the decoder's error quotes the reply.
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        reply = msgspec.json.decode(body, type=_Reply)
    if reply is None:
        raise BadAnswer("the reply is not a message", usage=bound)
    model = name_of(reply.model)
    used = usage.from_messages(reply.usage, bound)
    if reply.stop_reason not in ("end_turn", "stop_sequence"):
        # "refusal", "max_tokens", ...: what text there is, is no answer.
        raise BadAnswer(
            f"the model stopped early: {name_of(reply.stop_reason) or 'no reason'}", usage=used, model=model
        )
    text = "".join(block.text or "" for block in reply.content if block.type == "text")
    return answer_of(text, question, model=model, usage=used)
