"""One paid call on an official SDK: time-out, errors, a bounded reply, and a label that is believed only once checked.

The same for every wire format. An adapter (`providers.anthropic_api` is one) adds its client and its `Format`: how a
request is built and where a reply keeps its parts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

import httpx2
import msgspec

from cost.types import Usage
from providers import failures, prompt
from providers.parse import answer_of, name_of
from providers.prompt import Prompt
from providers.types import Answer, BadAnswer, ProviderError, Question

R = TypeVar("R")


class Said(msgspec.Struct, frozen=True):
    """What a reply says, unchecked but for the usage. `stopped`: why there is no answer in it, None if there is one."""

    model: str
    usage: Usage
    text: str = ""
    stopped: str | None = None


class Format(msgspec.Struct, Generic[R], frozen=True):
    """A wire format."""

    path: str
    request: Callable[[str, Prompt, str], dict[str, Any]]  # (model, prompt, user message) -> body
    reply: type[R]  # what is read of a reply; msgspec checks the types, which the SDKs do not
    read: Callable[[R, Usage], Said]  # (reply, upper bound of the usage)


class Client(Protocol):
    """What the official SDKs' asynchronous clients share: authentication, headers, errors. They must not retry."""

    async def post(
        self, path: str, *, cast_to: type[httpx2.Response], body: dict[str, Any], options: Any
    ) -> httpx2.Response: ...
    async def close(self) -> None: ...


class SdkProvider(Generic[R]):
    """A `Provider` that speaks `wire` through `client`, which has `providers.transport.http_client` below it."""

    def __init__(self, name: str, model: str, client: Client, wire: Format[R]) -> None:
        self.name = name
        self.model = model
        self._client = client
        self._wire = wire
        self._decoder = msgspec.json.Decoder(wire.reply)

    def __repr__(self) -> str:
        return f"SdkProvider({self.name!r}, {self.model!r})"

    @property
    def identity(self) -> str:
        return self.model

    def upper_bound(self, question: Question) -> Usage:
        """A byte-level tokenizer never makes more tokens than there are bytes."""
        return prompt.of(question).upper_bound(question.text)

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, question: Question, *, timeout: float) -> Answer:  # noqa: ASYNC109 - the seam's word
        """One wire call. Raises `ProviderError`s only."""
        failure: ProviderError
        try:
            shown = prompt.of(question)
            body = self._wire.request(self.model, shown, prompt.user_part(question.text))
            # The SDKs' own time-out is per read: a slow drip outlives it.
            async with asyncio.timeout(timeout):
                reply = await self._client.post(
                    self._wire.path, cast_to=httpx2.Response, body=body, options={"timeout": timeout}
                )
            return self._answer(reply.content, shown, shown.upper_bound(question.text))
        except ProviderError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever an SDK raises is a provider's failure
            failure = failures.from_error(error)
        raise failure

    def _answer(self, body: bytes, shown: Prompt, bound: Usage) -> Answer:
        reply: R | None = None
        # Suppressed, not caught and raised anew: the decoder's error quotes the reply.
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            reply = self._decoder.decode(body)
        if reply is None:
            raise BadAnswer(f"the reply is none that {self._wire.path} gives", usage=bound)
        said = self._wire.read(reply, bound)
        model = name_of(said.model)
        if said.stopped is not None:
            why = name_of(said.stopped) or "no reason"
            raise BadAnswer(f"the model stopped early: {why}", usage=said.usage, model=model)
        return answer_of(said.text, shown.names, model=model, usage=said.usage)
