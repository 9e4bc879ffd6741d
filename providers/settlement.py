"""How an attempt ended, in the ledger's words: what it cost, what it may have cost, that it cost nothing."""

from __future__ import annotations

from typing import Protocol

import structlog

from cost.types import Outcome, Usage
from providers.types import Answer, ProviderError

log = structlog.get_logger(__name__)


class Prices(Protocol):
    """`cost.prices.PriceTable`."""

    @property
    def version(self) -> str: ...
    def cost_nano(self, model: str, usage: Usage, *, batch: bool = False) -> int | None: ...
    def upper_bound_nano(
        self, model: str, input_tokens: int, max_output_tokens: int, *, batch: bool = False
    ) -> int | None: ...


class Settlement:
    """Prices the ends of the attempts at one configured model; `bound` and `estimate` are an attempt's upper bound."""

    def __init__(self, prices: Prices, configured: str) -> None:
        self._prices = prices
        self._configured = configured
        self._unpriced: set[str] = set()  # told once each

    def estimate(self, bound: Usage) -> int | None:
        """nano-USD that the call can cost at most; None: the model has no price, which is told once."""
        nano = self._prices.upper_bound_nano(self._configured, bound.input, bound.output)
        if nano is None:
            self._tell(self._configured)
        return nano

    def answered(self, answer: Answer, estimate: int, latency_us: int) -> Outcome:
        return self._settled(answer.model, answer.usage, estimate, latency_us, None)

    def failed(self, failure: ProviderError, bound: Usage, estimate: int, latency_us: int) -> Outcome:
        name = type(failure).__name__
        if failure.usage is not None or failure.billed == "yes":
            return self._settled(failure.model, failure.usage or bound, estimate, latency_us, name)
        if failure.billed == "no":
            return Outcome("unbilled", model=failure.model, error=name, latency_us=latency_us)
        return self.unknown(name, estimate, latency_us)

    def unknown(self, error: str, estimate: int, latency_us: int) -> Outcome:
        return Outcome("uncertain", cost_nano=estimate, error=error, latency_us=latency_us)

    def _settled(self, model: str, usage: Usage, estimate: int, latency_us: int, error: str | None) -> Outcome:
        """At the price of the model that answered; `price_version` tells where something else stands in for it."""
        model, version = model or self._configured, self._prices.version
        cost = estimate if usage.estimated else self._prices.cost_nano(model, usage)
        if cost is None:
            self._tell(model)
            cost, version = self._prices.cost_nano(self._configured, usage), f"{version} as {self._configured}"
        if cost is None:  # tokens in a bucket that even the configured model has no price for
            cost, version = estimate, f"{version}, bound"
        return Outcome(
            "settled",
            model=model,
            usage=usage,
            cost_nano=cost,
            price_version=version,
            error=error,
            latency_us=latency_us,
        )

    def _tell(self, model: str) -> None:
        if model not in self._unpriced:
            self._unpriced.add(model)
            log.error("model_without_price", model=model, configured=self._configured, do="add its price to the config")
