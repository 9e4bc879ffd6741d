"""OpenAI Decisions: one question with choices, answered with probabilities. On the official SDK's client."""

from __future__ import annotations

from typing import Any

import msgspec

from cost.types import Usage
from providers import openai_api, usage
from providers.parse import scores_of
from providers.prompt import Prompt, plain
from providers.sdk import Format, Said, SdkProvider
from providers.settings import DECISIONS, MOST_DECISION_LABELS, Settings
from providers.types import BadRequest


class _Probability(msgspec.Struct, frozen=True):
    value: object
    probability: object


class _Answer(msgspec.Struct, frozen=True):
    type: str
    choice: object = None
    probabilities: list[_Probability] | None = None


class _Reply(msgspec.Struct, frozen=True):
    model: str
    answers: list[_Answer]
    id: str | None = None  # not documented; the header names the call
    usage: Any = None


def provider(name: str, model: str, api_key: str, settings: Settings) -> SdkProvider[_Reply]:
    """`model` with or without the suffix. Raises `ValueError` for a key or URL that can't be used."""
    model = model.removesuffix(DECISIONS)
    return SdkProvider(
        name,
        model,
        openai_api.client("openai-decisions", name, api_key, settings),
        Format(DECISIONS, _request, Prompt.choice_upper_bound, _Reply, _read),
        identity=settings.identity("openai-decisions", model),
        priced_as=model + DECISIONS,
    )


def _request(model: str, shown: Prompt, text: str, _max_output: int) -> dict[str, Any]:
    if len(shown.names) > MOST_DECISION_LABELS:
        raise BadRequest(
            f"OpenAI Decisions takes {MOST_DECISION_LABELS} labels at most and the task has {len(shown.names)}; "
            'use kind = "openai" for it'
        )
    return {"model": model, "input": plain(text), "questions": [shown.choice]}


def _read(reply: _Reply, shown: Prompt, bound: Usage) -> Said:
    used, model = usage.from_responses(reply.usage, bound), reply.model + DECISIONS
    answer = reply.answers[0] if len(reply.answers) == 1 else None
    if answer is None or answer.type != "choice":
        return Said(model, used, reply.id, stopped=answer.type if answer else "")
    scores = scores_of(((p.value, p.probability) for p in answer.probabilities or ()), shown.names)
    label = answer.choice if isinstance(answer.choice, str) else ""
    return Said(model, used, reply.id, label=label, scores=scores)
