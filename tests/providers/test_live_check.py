"""`crossover check --live`: one call a provider says whether key, model, schema and price are right."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from cost.fake import MemoryLedger
from cost.prices import Price, PriceTable
from cost.types import Budget, Usage
from providers.fake import ScriptedProvider
from providers.live_check import Finding
from providers.live_check import check as live_check
from providers.settings import LaneSettings
from providers.simulator import Simulator
from providers.tariffs import Tariff, tariff_of
from providers.types import Answer, AuthFailed, Caller, Provider, ProviderError, RateLimited, SchemaRefused

On = Callable[..., Provider]


def check(provider: Provider, tariff: Tariff, ledger: MemoryLedger | None = None, day: int | None = None) -> Any:
    caller = Caller("cmp_check_1", 0, "local")
    return live_check(provider, tariff, ledger=ledger or MemoryLedger(), budget=Budget(day), caller=caller)


def tariff(model: str, lane: LaneSettings | None = None) -> Tariff:
    return tariff_of(PriceTable.load(), model, lane or LaneSettings(), time.monotonic)


def found(
    provider_on: On,
    kind: str,
    model: str | None = None,
    *,
    fail: Sequence[str] = (),
    structured: Any = "schema",
    **pricing: Any,
) -> list[Finding]:
    async def main() -> list[Finding]:
        async with Simulator(structured=structured) as sim:
            sim.fail_next(fail)
            provider = provider_on(sim, kind, model=model)
            try:
                return await check(provider, tariff(provider.model, **pricing))
            finally:
                await provider.close()

    return asyncio.run(main())


def failed(error: ProviderError) -> tuple[str, str]:
    (finding,) = asyncio.run(check(ScriptedProvider("p", "gpt-6-luna", [error]), tariff("gpt-6-luna")))
    return finding.level, finding.what


def test_it_is_fine_with_every_kind_but_for_the_warning_that_a_simulator_answers(provider_on: On, kind: str) -> None:
    levels = [(each.level, each.what) for each in found(provider_on, kind)]
    assert levels == [("ok", "provider"), ("warning", "model"), ("ok", "price")]


def test_an_answer_outside_the_labels_is_an_error(provider_on: On, kind: str) -> None:
    (finding,) = found(provider_on, kind, fail=["out_of_set"])
    assert (finding.level, finding.what) == ("error", "schema")


def test_it_blames_the_key_for_a_401() -> None:
    assert failed(AuthFailed("HTTP 401")) == ("error", "key")


def test_a_rate_limit_is_a_warning() -> None:
    """It is no fault of the key, and it passes."""
    assert failed(RateLimited("HTTP 429")) == ("warning", "provider")


def test_a_server_that_knows_no_strict_schemas_is_told_and_asked_on(provider_on: On) -> None:
    findings = found(provider_on, "openai-chat", structured="none")
    assert [each.what for each in findings if each.level == "warning"] == ["schema", "schema", "model"]
    assert findings[-1].level == "ok"
    (*_, last) = found(provider_on, "openai-chat", fail=["400"] * 9)
    assert (last.level, last.what) == ("error", "model")


def test_a_server_that_is_paid_by_the_hour_needs_no_price(provider_on: On) -> None:
    (*_, unknown) = found(provider_on, "openai-chat", "llama-4-8b")
    assert (unknown.level, unknown.what) == ("error", "price")
    assert "llama-4-8b" in unknown.detail
    lane = LaneSettings(nano_per_hour=1_200_000_000)
    (*_, paid) = found(provider_on, "openai-chat", "llama-4-8b", lane=lane)
    assert (paid.level, paid.what) == ("ok", "price")
    assert "$1.2/h" in paid.detail


def test_a_price_of_its_own_holds_whatever_the_reply_calls_the_model() -> None:
    """As the service books it: the vendor's name, which the reply has, is listed at another price or not at all."""
    ours = tariff("us.haiku", LaneSettings(own_price=Price(input=7_000_000_000, output=0)))
    for name in ("claude-haiku-4-5", "claude-next"):
        answer = Answer("delivery", name, Usage(input=1_000_000))
        (*_, price) = asyncio.run(check(ScriptedProvider("cloud", "us.haiku", [answer]), ours))
        assert (price.level, price.what) == ("ok", "price")
        assert "$7.000000" in price.detail
        assert " as us.haiku" in price.detail


def test_its_calls_are_in_the_books_and_within_the_budget() -> None:
    used = Usage(input=100, output=9)
    steps = [SchemaRefused("HTTP 400"), Answer("delivery", "gpt-6-luna", used)]
    provider, ledger = ScriptedProvider("p", "gpt-6-luna", steps), MemoryLedger()
    asyncio.run(check(provider, tariff("gpt-6-luna"), ledger))
    assert [attempt.state for attempt in ledger.attempts.values()] == ["unbilled", "settled"]
    assert ledger.spent_today_nano() == PriceTable.load().cost_nano("gpt-6-luna", used)
    (finding,) = asyncio.run(check(provider, tariff("gpt-6-luna"), ledger, day=1))
    assert (finding.level, finding.what) == ("error", "ledger")
    assert len(ledger.attempts) == len(provider.asked) == 2
    assert asyncio.run(check(provider, tariff("nobody-knows")))[0].what == "price"
    assert len(provider.asked) == 2
