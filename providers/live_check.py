"""One cheap real call per provider: are key, model, schema and price right?"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Literal

import msgspec

from cost.prices import SIMULATED
from cost.types import NANO_PER_USD, Budget, Intent, LedgerError, Outcome
from providers.books import Ledger
from providers.settings import DECISIONS
from providers.tariffs import Tariff
from providers.types import (
    AuthFailed,
    BadAnswer,
    BadRequest,
    Caller,
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


Level = Literal["ok", "warning", "error"]


class Finding(msgspec.Struct, frozen=True):
    """One line of `crossover check --live`. `what` is one of provider, key, model, schema, price, ledger."""

    provider: str
    level: Level
    what: str
    detail: str


async def check(
    provider: Provider,
    tariff: Tariff,
    *,
    ledger: Ledger,
    budget: Budget,
    caller: Caller,
    timeout: float = 20.0,  # noqa: ASYNC109
) -> list[Finding]:
    """Ask one question of two labels. Costs a fraction of a cent, reserved and booked like any other call; never raises
    for what the provider does, nor the ledger."""
    findings: list[Finding] = []

    def finding(level: Level, what: str, detail: str) -> Finding:
        return Finding(provider.name, level, what, detail)

    bound = provider.upper_bound(_QUESTION)
    estimate = tariff.estimate(bound, timeout)
    if estimate is None:
        return [finding("error", "price", f"no price is known for {provider.model}; add it to the config")]
    intent = Intent(
        request_id=caller.request_id,
        index=caller.index,
        at_us=time.time_ns() // 1000,
        tenant=caller.tenant,
        task=_QUESTION.task,
        provider=provider.name,
        model=provider.model,
        estimate_nano=estimate,
        limits=budget.limits(_QUESTION.task, caller.tenant),
    )
    while True:
        try:
            attempt = await ledger.reserve(intent)
        except LedgerError as error:
            return [*findings, finding("error", "ledger", f"no call was made: {error}")]
        pricing, started = tariff.begin(), time.perf_counter_ns()
        try:
            answer = await provider.ask(_QUESTION, timeout=timeout)
            break
        except ProviderError as error:
            outcome = pricing.failed(error, bound, estimate, (time.perf_counter_ns() - started) // 1000)
            await _settle(ledger, attempt, outcome)
            if isinstance(error, SchemaRefused) and len(findings) < 2:  # there are three ways of asking
                findings.append(finding("warning", "schema", str(error)))
                continue
            level: Level = "warning" if isinstance(error, RateLimited) else "error"  # it passes
            return [*findings, finding(level, _what(error), f"{type(error).__name__}: {error}")]
    booked = pricing.answered(answer, estimate, (time.perf_counter_ns() - started) // 1000)
    await _settle(ledger, attempt, booked)
    findings.append(finding("ok", "provider", f"{answer.model} answered {answer.label!r}"))
    if answer.model.startswith(SIMULATED):
        findings.append(finding("warning", "model", "the answers are simulated: base_url leads to a simulator"))
    elif provider.model.removesuffix(DECISIONS) not in answer.model and answer.model not in provider.model:
        findings.append(finding("warning", "model", f"{provider.model} is configured, {answer.model} answered"))
    if answer.label != "delivery":
        findings.append(finding("warning", "model", f"a clear case was answered with {answer.label!r}"))
    if tariff.unpriced:
        findings.append(finding("error", "price", f"no price is known for {tariff.unpriced[-1]}; add it to the config"))
    elif tariff.kind == "tokens" and answer.usage.estimated:
        findings.append(finding("warning", "price", "no usable token counts came back; costs are upper bounds"))
    else:
        cost = f"${booked.cost_nano / NANO_PER_USD:.6f}"
        findings.append(finding("ok", "price", f"this call cost {cost} (price {booked.price_version})"))
    return findings


async def _settle(ledger: Ledger, attempt: int, outcome: Outcome) -> None:
    with suppress(LedgerError):  # then it counts with its upper bound
        await ledger.settle(attempt, outcome)


def _what(error: ProviderError) -> str:
    match error:
        case AuthFailed():
            return "key"
        case BadRequest():
            return "model"
        case BadAnswer():
            return "schema"
    return "provider"
