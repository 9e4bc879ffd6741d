"""What is asked of a frontier model, what it answers, and every way it can fail.

ProviderError                      carries `usage` where the provider reported one, and `billed`
├── Transient                      another provider, or a later try, may succeed; `retry_after` seconds where it said so
│   ├── RateLimited                429
│   ├── Unavailable                5xx, refused, reset, TLS
│   ├── SchemaRefused              the server knows no strict schemas; the same provider asks more simply next time
│   └── TimedOut                   our deadline; the call may have been billed
├── Permanent                      asking again the same way is pointless
│   ├── AuthFailed                 401, 403
│   └── BadRequest                 400, 404, 413, 422: model name, schema, size
└── BadAnswer                      200, but not an answer: malformed, truncated, outside the label set
    └── Refused                    the model, or a filter before it, would not answer

FrontierUnavailable                what the chain raises in the end, with the reason for `degraded`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from cost.types import Usage

DegradedReason = Literal["budget", "deadline", "provider_unavailable", "no_provider", "overload"]


class Label(msgspec.Struct, frozen=True):
    name: str
    description: str = ""


class Example(msgspec.Struct, frozen=True):
    """A text with its right label, shown to the model as part of the prompt's stable part."""

    text: str
    label: str


class Question(msgspec.Struct, frozen=True):
    """One text and the closed set of labels to choose from (2 or more, unique names)."""

    task: str
    text: str
    labels: tuple[Label, ...]
    instructions: str = ""  # from the config: what the task is about
    examples: tuple[Example, ...] = ()


class Answer(msgspec.Struct, frozen=True):
    """A provider's answer, already validated: `label` is one of the question's labels."""

    label: str
    model: str  # as the response names it
    usage: Usage
    confidence: float | None = None
    scores: tuple[tuple[str, float], ...] = ()  # probabilities of labels, best first, 10 at most; () if none are given
    reply_id: str = ""  # the provider's own name for this reply


class FrontierAnswer(msgspec.Struct, frozen=True):
    """The chain's answer: who gave it, and what all attempts together cost."""

    label: str
    provider: str
    model: str
    cost_nano: int
    latency_us: int
    attempts: int
    confidence: float | None = None
    scores: tuple[tuple[str, float], ...] = ()


class Caller(msgspec.Struct, frozen=True):
    """For whom a question is asked: the ledger's keys."""

    request_id: str
    index: int
    tenant: str
    tokens: int = 0  # of the text, by the local tokenizer


class Provider(Protocol):
    """The seam. Implementations raise only `ProviderError`s (and let cancellation through)."""

    @property
    def name(self) -> str: ...  # in the config
    @property
    def model(self) -> str: ...  # as configured, and as the price table knows it: "gpt-6-luna/decisions"
    @property
    def identity(self) -> str: ...  # kind, model and settings: what of the config changes its answers
    def upper_bound(self, question: Question) -> Usage: ...  # what one call can use at most
    async def ask(self, question: Question, *, timeout: float) -> Answer: ...  # noqa: ASYNC109 - passed to the SDK
    async def close(self) -> None: ...


class ProviderError(Exception):
    """A call that gave no answer. `billed`: "no" (refused before work), "yes" (usage is known), "unknown"."""

    billed: Literal["no", "yes", "unknown"] = "no"

    def __init__(self, message: str, *, usage: Usage | None = None, model: str = "", reply_id: str = "") -> None:
        super().__init__(message)
        self.usage = usage
        self.model = model
        self.reply_id = reply_id


class Transient(ProviderError):
    """Another provider, or a later try, may succeed. `retry_after`: seconds the provider asked for, None if it named
    none that makes sense."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimited(Transient):
    """429."""


class Unavailable(Transient):
    """5xx, connection refused or reset."""

    billed = "unknown"


class SchemaRefused(Transient):
    """The server does not know strict schemas. The provider has noted it: asked again, it asks more simply."""


class TimedOut(Transient):
    """Our deadline passed while the provider worked."""

    billed = "unknown"


class Permanent(ProviderError):
    """Asking again the same way is pointless."""


class AuthFailed(Permanent):
    """401 or 403: the key is wrong, revoked or lacks the permission."""


class BadRequest(Permanent):
    """The provider refuses the request itself: unknown model, schema, size. `status`: 0 if it was never sent."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class BadAnswer(ProviderError):
    """A reply that is not an answer. Billed like any other."""

    billed = "yes"


class Refused(BadAnswer):
    """The model, or a filter before it, would not answer."""


class FrontierUnavailable(Exception):
    """No frontier answer can be had now. `reason` becomes the answer's `degraded`; `cost_nano` was spent anyway."""

    def __init__(self, reason: DegradedReason, detail: str, *, cost_nano: int = 0, latency_us: int = 0) -> None:
        super().__init__(detail)
        self.reason = reason
        self.cost_nano = cost_nano
        self.latency_us = latency_us


class Frontier(Protocol):
    """What the pipeline sees of all this (`providers.chain.Chain`)."""

    async def answer(self, question: Question, caller: Caller, *, deadline: float) -> FrontierAnswer: ...

    def configured(self) -> Sequence[tuple[str, str]]:
        """(provider name, `Provider.identity`) in order: part of a frontier answer's cache identity."""
        ...
