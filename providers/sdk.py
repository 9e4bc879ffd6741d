"""One paid call on an official SDK: time-out, errors, a bounded reply, and a label that is believed only once checked.

The same for every wire format. An adapter (`providers.anthropic_api` is one) adds its client and its `Format`: how a
request is built and where a reply keeps its parts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

import httpx2
import msgspec

from cost.types import Usage
from providers import failures, prompt
from providers.parse import label_of, member, name_of
from providers.prompt import Prompt
from providers.types import Answer, BadAnswer, BadRequest, ProviderError, Question, Refused

R = TypeVar("R")

#: What replies call it when the model, or a filter before it, would not answer.
_REFUSALS = ("refusal", "content_filter")
#: Scores that an answer keeps.
_SCORES = 10


class Said(msgspec.Struct, frozen=True):
    """What a reply says, unchecked but for usage and scores. `stopped`: why there is no answer in it, None if there is
    one: in `label` where the format has a place for it, else in `text`, as JSON."""

    model: str
    usage: Usage
    reply_id: str | None = None
    text: str = ""
    label: str | None = None
    scores: tuple[tuple[str, float], ...] = ()  # best first
    stopped: str | None = None


class Format(msgspec.Struct, Generic[R], frozen=True):
    """A wire format."""

    path: str
    request: Callable[[str, Prompt, str, int], dict[str, Any]]  # (model, prompt, text, most output tokens) -> body
    bound: Callable[[Prompt, str], Usage]  # (prompt, text): what a call can use at most
    reply: type[R]  # what is read of a reply; msgspec checks the types, which the SDKs do not
    read: Callable[[R, Prompt, Usage], Said]  # (reply, prompt, upper bound of the usage)
    # What becomes of a request that was refused, by its body: the same error, or one that has the chain ask anew.
    refused: Callable[[BadRequest, Mapping[str, Any]], ProviderError] = lambda error, _body: error


class Client(Protocol):
    """What the official SDKs' asynchronous clients share: authentication, headers, errors. They must not retry."""

    async def post(
        self, path: str, *, cast_to: type[httpx2.Response], body: dict[str, Any], options: Any
    ) -> httpx2.Response: ...
    async def close(self) -> None: ...


class SdkProvider(Generic[R]):
    """A `Provider` that speaks `wire` through `client`, which has `providers.transport.http_client` below it.

    `model` is its name on the wire; `priced_as` that in the books, where it has another there. `identity`: see
    `Provider`.
    """

    def __init__(
        self, name: str, model: str, client: Client, wire: Format[R], *, identity: str, priced_as: str | None = None
    ) -> None:
        self.name = name
        self.model = priced_as or model
        self.identity = identity
        self.client = client  # for batches: the SDK's own
        self._wire_model = model
        self._wire = wire
        self._decoder = msgspec.json.Decoder(wire.reply)

    def __repr__(self) -> str:
        return f"SdkProvider({self.name!r}, {self.model!r})"

    @property
    def path(self) -> str:
        return self._wire.path

    def upper_bound(self, question: Question) -> Usage:
        return self._wire.bound(prompt.of(question), question.text)

    def request(self, question: Question) -> dict[str, Any]:
        """The body of a call. Raises `BadRequest` for a question that the format can't ask."""
        return self._wire.request(
            self._wire_model, prompt.of(question), question.text, self.upper_bound(question).output
        )

    async def close(self) -> None:
        await self.client.close()

    async def ask(self, question: Question, *, timeout: float) -> Answer:  # noqa: ASYNC109 - the seam's word
        """One wire call. Raises `ProviderError`s only."""
        failure: ProviderError
        body: dict[str, Any] = {}
        try:
            body = self.request(question)
            # The SDKs' own time-out is per read: a slow drip outlives it.
            async with asyncio.timeout(timeout):
                # Without a connection nothing was sent, nor charged: to know it, that has to be over first.
                limits = httpx2.Timeout(timeout, connect=0.8 * timeout, pool=0.8 * timeout)
                reply = await self.client.post(
                    self._wire.path, cast_to=httpx2.Response, body=body, options={"timeout": limits}
                )
            return self.answer(question, reply.content, _named(reply.headers))
        except ProviderError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - whatever an SDK raises is a provider's failure
            failure = failures.from_error(error)
        if isinstance(failure, BadRequest):
            failure = self._wire.refused(failure, body)
        raise failure

    def answer(self, question: Question, body: bytes, reply_id: str = "") -> Answer:
        """What a reply with status 200 says. `reply_id` is used where it names itself nowhere. Raises `BadAnswer`."""
        shown = prompt.of(question)
        bound = self._wire.bound(shown, question.text)
        reply: R | None = None
        # Suppressed, not caught and raised anew: the decoder's error quotes the reply.
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            reply = self._decoder.decode(body)
        if reply is None:
            raise BadAnswer(f"the reply is none that {self._wire.path} gives", usage=bound, reply_id=reply_id)
        said = self._wire.read(reply, shown, bound)
        model = name_of(said.model)
        reply_id = name_of(said.reply_id) or reply_id
        if said.stopped is not None:
            why = name_of(said.stopped) or "no reason"
            kind = Refused if why in _REFUSALS else BadAnswer
            raise kind(f"the model stopped early: {why}", usage=said.usage, model=model, reply_id=reply_id)
        try:
            label = label_of(said.text, shown.names) if said.label is None else member(said.label, shown.names)
        except BadAnswer as error:  # billed all the same
            error.usage, error.model, error.reply_id = said.usage, model, reply_id
            raise
        confidence = dict(said.scores).get(label)
        return Answer(label, model, said.usage, confidence, said.scores[:_SCORES], reply_id)


def _named(headers: Mapping[str, str]) -> str:
    """How the provider finds the call in its logs, for a reply that names itself nowhere."""
    return name_of(headers.get("request-id") or headers.get("x-request-id"))
