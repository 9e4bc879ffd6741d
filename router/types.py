"""The wire: what a caller sends and gets. `docs` of each field are in the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

Degraded = Literal["budget", "deadline", "provider_unavailable", "no_provider", "overload", "drift"]
ANY_REASON: frozenset[Degraded] = frozenset(get_args(Degraded))
Text = Annotated[str, Meta(description="The text to classify.")]


class ClassifyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One to 128 texts for one task."""

    input: Annotated[
        Text | Annotated[list[Text], Meta(min_length=1, max_length=128)],
        Meta(description="One text, or a list of 1 to 128."),
    ]
    task: Annotated[str | None, Meta(description="May be left out where one task is configured.")] = None
    top_k: Annotated[int, Meta(ge=1, le=10, description="Adds `scores`: the best labels.")] | None = None
    route: Annotated[
        Literal["auto", "local"], Meta(description='"local": the local model\'s label, whatever its confidence.')
    ] = "auto"
    strict: Annotated[
        bool,
        Meta(
            description="A degraded answer becomes that input's error. So it does where a budget is out and the "
            "service is configured to refuse then."
        ),
    ] = False


class LatencyMs(msgspec.Struct, frozen=True, omit_defaults=True):
    """Milliseconds, by stage; a stage that was not entered is absent."""

    total: float
    cache: float | None = None
    queue: float | None = None
    local: float | None = None
    frontier: float | None = None


class Answer(msgspec.Struct, frozen=True):
    label: str
    confidence: Annotated[float, Meta(ge=0, le=1)] | None  # null: a frontier gave none
    source: Literal["cache", "local", "frontier"]
    model: Annotated[str, Meta(description="Who answered: the task's local model, or the frontier model by name.")]
    degraded: Degraded | None  # why the local label stands although a frontier answer was wanted
    certified: Annotated[bool, Meta(description="Covered by a loaded certificate.")]
    truncated: Annotated[bool, Meta(description="The model read only the beginning of the text.")]
    coalesced: Annotated[
        bool,
        Meta(description="Shared what was computed, or bought by another replica, for an identical input just now."),
    ]
    cost_usd: Annotated[float, Meta(ge=0, description="What this answer cost: device time and frontier calls.")]
    latency_ms: LatencyMs
    cache_tier: Annotated[
        Literal["memory", "redis"] | UnsetType,
        Meta(description="Which cache answered: what the process that was asked remembers, or Redis."),
    ] = UNSET
    answered_by: Literal["local", "frontier"] | UnsetType = UNSET
    scores: Annotated[list[tuple[str, float]], Meta(max_length=10)] | UnsetType = UNSET


class Problem(msgspec.Struct, frozen=True):
    """RFC 9457. `type` is stable; `detail` is for people."""

    type: str
    title: str
    status: int
    detail: str


class Failed(msgspec.Struct, frozen=True):
    error: Problem


class ClassifyResponse(msgspec.Struct, frozen=True):
    id: Annotated[str, Meta(description="The server's id of this request; the ledger's key.")]
    task: str
    results: Annotated[list[Answer | Failed], Meta(description="In input order: an answer or an error each.")]
