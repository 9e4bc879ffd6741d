"""What a provider's calls cost, and the end of each in the ledger's words: what it cost, may have cost, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from cost.prices import SIMULATED, Price
from cost.types import Outcome, Usage
from providers.hourly import HourlyTariff
from providers.settings import LaneSettings
from providers.types import Answer, ProviderError

log = structlog.get_logger(__name__)

#: Models without a price that are remembered; a server that makes up names must not fill memory and log.
MOST_UNPRICED = 20


class Prices(Protocol):
    """`cost.prices.PriceTable`."""

    @property
    def version(self) -> str: ...
    def cost_nano(self, model: str, usage: Usage, *, batch: bool = False) -> int | None: ...
    def upper_bound_nano(
        self, model: str, input_tokens: int, max_output_tokens: int, *, batch: bool = False
    ) -> int | None: ...
    def too_long(self, model: str, usage: Usage) -> bool: ...
    def with_price(self, model: str, price: Price) -> Prices: ...


class Pricing(Protocol):
    """The end of one attempt: exactly one of these is called. `bound` and `estimate` are its upper bound."""

    def answered(self, answer: Answer, estimate: int, latency_us: int) -> Outcome: ...
    def failed(self, failure: ProviderError, bound: Usage, estimate: int, latency_us: int) -> Outcome: ...
    def unknown(self, error: str, estimate: int, latency_us: int) -> Outcome: ...


class Tariff(Protocol):
    """What a provider's calls cost: by tokens (`TokenTariff`) or by the hour (`providers.hourly.HourlyTariff`)."""

    @property
    def kind(self) -> str: ...  # "tokens", "$1.2/h"
    @property
    def unpriced(self) -> Sequence[str]: ...  # models that were met and have no price: each is an alarm
    def estimate(self, bound: Usage, seconds: float) -> int | None: ...
    def begin(self) -> Pricing: ...


def tariff_of(prices: Prices, model: str, settings: LaneSettings, clock: Callable[[], float]) -> Tariff:
    """Of single calls; `clock` in seconds. A batch is paid by tokens, whatever runs the provider's machine."""
    if settings.nano_per_hour is not None:
        return HourlyTariff(settings.nano_per_hour, clock)
    return TokenTariff(prices, model, own_price=settings.own_price)


class TokenTariff:
    """Prices the ends of the attempts at one configured model, by tokens. `batch`: at the batch API's price.
    `own_price`: at that one, whatever the replies call the model (a cloud's names and prices are its own)."""

    kind = "tokens"

    def __init__(self, prices: Prices, configured: str, *, batch: bool = False, own_price: Price | None = None) -> None:
        self._prices = prices if own_price is None else prices.with_price(configured, own_price)
        self._configured = configured
        self._batch = batch
        self._own_price = own_price is not None
        self.unpriced: list[str] = []  # told once each

    def estimate(self, bound: Usage, seconds: float = 0.0) -> int | None:  # noqa: ARG002 - tokens take no time
        """nano-USD that the call can cost at most; None: the model has no price, which is told once, or none for so
        long a prompt."""
        nano = self._prices.upper_bound_nano(self._configured, bound.input, bound.output, batch=self._batch)
        if nano is None:
            self._tell(self._configured, bound)
        return nano

    def begin(self) -> Pricing:
        return self

    def answered(self, answer: Answer, estimate: int, latency_us: int) -> Outcome:
        return self._settled(answer.model, answer.usage, estimate, latency_us, None, answer.reply_id)

    def failed(self, failure: ProviderError, bound: Usage, estimate: int, latency_us: int) -> Outcome:
        name, reply_id = type(failure).__name__, failure.reply_id
        if failure.usage is not None or failure.billed == "yes":
            usage = failure.usage or bound
            return self._settled(failure.model, usage, estimate, latency_us, name, reply_id)
        if failure.billed == "no":
            return Outcome("unbilled", model=failure.model, error=name, latency_us=latency_us, reply_id=reply_id)
        return self.unknown(name, estimate, latency_us, reply_id)

    def unknown(self, error: str, estimate: int, latency_us: int, reply_id: str = "") -> Outcome:
        return Outcome("uncertain", cost_nano=estimate, error=error, latency_us=latency_us, reply_id=reply_id)

    def _settled(
        self, model: str, usage: Usage, estimate: int, latency_us: int, error: str | None, reply_id: str
    ) -> Outcome:
        """At the price of the model that answered; `price_version` tells where something else stands in for it."""
        model, version = model or self._configured, self._prices.version
        priced = self._configured if self._own_price else model
        cost = self._cost(priced, usage)
        if usage.estimated:
            cost = max(estimate, cost or 0)
        elif cost is None:
            self._tell(priced, usage)
            priced = self._configured
            cost = self._cost(priced, usage)
        if priced not in (model, model.removeprefix(SIMULATED)):
            version = f"{version} as {priced}"
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
            reply_id=reply_id,
        )

    def _cost(self, model: str, usage: Usage) -> int | None:
        return self._prices.cost_nano(model, usage, batch=self._batch)

    def _tell(self, model: str, usage: Usage) -> None:
        if self._prices.too_long(model, usage):
            return  # only this text has no price
        if model not in self.unpriced and len(self.unpriced) < MOST_UNPRICED:
            self.unpriced.append(model)
            log.error("model_without_price", model=model, configured=self._configured, do="add its price to the config")
