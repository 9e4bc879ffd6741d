"""OpenAI Responses, on the official SDK."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
import openai

from providers import failures, prompt, usage
from providers.parse import answer_of, name_of
from providers.transport import checked_key, http_client
from providers.types import Answer, BadAnswer, ProviderError, Question

BASE_URL = "https://api.openai.com/v1"


class _Part(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class _Item(msgspec.Struct, frozen=True):
    type: str
    content: list[_Part] | None = None


class _Cut(msgspec.Struct, frozen=True):
    reason: str | None = None


class _Reply(msgspec.Struct, frozen=True):
    """What is read of a reply; msgspec checks the types, which the SDK does not."""

    model: str
    status: str
    output: list[_Item]
    incomplete_details: _Cut | None = None
    usage: Any = None


class OpenAIProvider:
    """`effort` goes to models that reason ("none" or "low" is enough for a label). Raises `ValueError` for a key or
    URL that can't be used."""

    def __init__(
        self,
        name: str,
        model: str,
        api_key: str,
        base_url: str | None = None,
        *,
        effort: str | None = None,
        insecure_http: bool = False,
    ) -> None:
        self.name = name
        self.model = model
        self._effort = effort
        client, self._transport = http_client(base_url or BASE_URL, insecure_http=insecure_http)
        self._sdk = openai.AsyncOpenAI(
            api_key=checked_key(api_key, name), base_url=base_url or BASE_URL, max_retries=0, http_client=client
        )

    def __repr__(self) -> str:
        return f"OpenAIProvider({self.name!r}, {self.model!r})"

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
                raw = await self._sdk.responses.with_raw_response.create(**self._request(question), timeout=timeout)
                return _answer(raw.http_response.content, question)
        except ProviderError:
            raise
        except openai.APIStatusError as error:
            failure = failures.from_status(error.status_code, error.response.headers, error.code or "")
        except Exception as error:  # noqa: BLE001 - whatever an SDK raises is a provider's failure
            failure = failures.from_cause(error)
        raise failure

    def _request(self, question: Question) -> dict[str, Any]:
        format_ = {
            "type": "json_schema",
            "name": "classification",
            "strict": True,
            "schema": prompt.schema(question.labels),
        }
        request: dict[str, Any] = {
            "model": self.model,
            "instructions": prompt.system_prefix(question.labels, question.instructions),
            "input": prompt.user_part(question.text),
            "text": {"format": format_},
            "max_output_tokens": prompt.max_output_tokens(question),
            "store": False,  # their default keeps texts for 30 days
        }
        if self._effort:
            request["reasoning"] = {"effort": self._effort}
        return request


def _answer(body: bytes, question: Question) -> Answer:
    bound = prompt.upper_bound(question)
    reply: _Reply | None = None
    # Suppressed, not caught and raised anew: the decoder's error quotes the reply.
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        reply = msgspec.json.decode(body, type=_Reply)
    if reply is None:
        raise BadAnswer("the reply is not a response", usage=bound)
    model = name_of(reply.model)
    used = usage.from_responses(reply.usage, bound)
    if reply.status != "completed":
        why = reply.incomplete_details.reason if reply.incomplete_details else reply.status
        raise BadAnswer(f"the model stopped early: {name_of(why) or 'no reason'}", usage=used, model=model)
    parts = [part for item in reply.output if item.type == "message" for part in item.content or []]
    if any(part.type == "refusal" for part in parts):
        raise BadAnswer("the model refused", usage=used, model=model)
    text = "".join(part.text or "" for part in parts if part.type == "output_text")
    return answer_of(text, question, model=model, usage=used)
