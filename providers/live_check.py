"""One cheap real call per provider: are key, model, schema and price right?"""

from __future__ import annotations

from typing import Literal

import msgspec

from providers.settlement import Prices
from providers.types import (
    Answer,
    AuthFailed,
    BadAnswer,
    BadRequest,
    Label,
    Provider,
    ProviderError,
    Question,
    RateLimited,
    SchemaRefused,
)

_QUESTION = Question(
    task="check",
    text="Where is the parcel that I ordered last week?",
    labels=(Label("delivery", "about a parcel on its way"), Label("refund", "about getting money back")),
)


class Finding(msgspec.Struct, frozen=True):
    """One line of `crossover check --live`. `what` is one of provider, key, model, schema, price."""

    provider: str
    level: Literal["ok", "warning", "error"]
    what: str
    detail: str


async def check(
    provider: Provider,
    price_table: Prices,
    *,
    usd_per_hour: float | None = None,
    timeout: float = 20.0,  # noqa: ASYNC109
) -> list[Finding]:
    """Ask one question of two labels. Costs a fraction of a cent; never raises for what the provider does.
    `usd_per_hour`: of a server that is not paid by token."""
    findings: list[Finding] = []

    def finding(level: Literal["ok", "warning", "error"], what: str, detail: str) -> Finding:
        return Finding(provider.name, level, what, detail)

    answer: Answer | None = None
    while answer is None:
        try:
            answer = await provider.ask(_QUESTION, timeout=timeout)
        except ProviderError as error:
            if isinstance(error, SchemaRefused) and len(findings) < 2:  # there are three ways of asking
                findings.append(finding("warning", "schema", str(error)))
                continue
            level: Literal["warning", "error"] = "warning" if isinstance(error, RateLimited) else "error"  # it passes
            return [*findings, finding(level, _what(error), f"{type(error).__name__}: {error}")]
    findings.append(finding("ok", "provider", f"{answer.model} answered {answer.label!r}"))
    if answer.model.startswith("simulated/"):
        findings.append(finding("warning", "model", "the answers are simulated: base_url leads to a simulator"))
    elif provider.model.removesuffix("/decisions") not in answer.model and answer.model not in provider.model:
        findings.append(finding("warning", "model", f"{provider.model} is configured, {answer.model} answered"))
    if answer.label != "delivery":
        findings.append(finding("warning", "model", f"a clear case was answered with {answer.label!r}"))
    cost = price_table.cost_nano(answer.model, answer.usage)
    if usd_per_hour is not None:
        findings.append(finding("ok", "price", f"paid by the hour: ${usd_per_hour:g} an hour of calls"))
    elif cost is None:
        findings.append(finding("error", "price", f"no price is known for {answer.model}; add it to the config"))
    elif answer.usage.estimated:
        findings.append(finding("warning", "price", "no usable token counts came back; costs are upper bounds"))
    else:
        findings.append(finding("ok", "price", f"this call cost ${cost / 1e9:.6f}"))
    return findings


def _what(error: ProviderError) -> str:
    match error:
        case AuthFailed():
            return "key"
        case BadRequest():
            return "model"
        case BadAnswer():
            return "schema"
    return "provider"
