"""List prices, dated, and what a call costs by them. All integers: nano-USD per million tokens, nano-USD.

The table is a file of this package, so nothing is fetched and history can be priced again. A model that it does not
know has no price (None), never the price 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from functools import cache
from importlib import resources

import msgspec

from cost.types import Usage

TABLE = "prices-2026-11-21.json"
SIMULATED = "simulated/"
_MILLION = 1_000_000
#: Snapshots cost what the model without the date costs: `gpt-6-luna-2026-10-01`, `claude-haiku-4-5-20251001`; so
#: does what they charge at an endpoint of its own, `gpt-6-luna-2026-10-01/decisions`.
_SNAPSHOT = re.compile(r"-(20\d{2}-\d{2}-\d{2}|20\d{6})(?=$|/)")


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """nano-USD per million tokens, by bucket. None: the provider names no such price."""

    input: int
    output: int
    cache_read: int | None = None
    cache_write_5m: int | None = None
    cache_write_1h: int | None = None  # the longer-lived kind: an hour (Anthropic), 12 hours (OpenAI)
    batch_input: int | None = None
    batch_output: int | None = None
    prompt_cache_min_tokens: int | None = None  # shorter prompt prefixes are not cached
    max_prompt_tokens: int | None = None  # above it the provider charges more than is written here
    thinking_always_on: bool = False


class _File(msgspec.Struct, frozen=True):
    as_of: date
    source: str
    models: dict[str, Price]


class PriceTable(msgspec.Struct, frozen=True):
    """`version` names the table in the ledger; it ends in `+config` where the config replaces or adds prices."""

    version: str
    as_of: date
    source: str
    models: dict[str, Price]

    @classmethod
    def load(cls, overrides: Mapping[str, Price] | None = None) -> PriceTable:
        """The shipped table, with the config's own prices on top."""
        file = _shipped()
        version = file.as_of.isoformat() + ("+config" if overrides else "")
        return cls(version, file.as_of, file.source, {**file.models, **(overrides or {})})

    def price(self, model: str) -> Price | None:
        """None: unknown. `simulated/<model>` is priced as `<model>`; a dated snapshot as the model without the date."""
        name = model.removeprefix(SIMULATED)
        return self.models.get(name) or self.models.get(_SNAPSHOT.sub("", name))

    def with_price(self, model: str, price: Price) -> PriceTable:
        """This table, but for `model`. What is listed as its longest prompt stays so, if `price` names none."""
        listed = self.price(model)
        if listed is not None and price.max_prompt_tokens is None:
            price = msgspec.structs.replace(price, max_prompt_tokens=listed.max_prompt_tokens)
        version = self.version.removesuffix("+config") + "+config"
        return msgspec.structs.replace(self, version=version, models={**self.models, model: price})

    def too_long(self, model: str, usage: Usage) -> bool:
        """The model has a price, but not for such long prompts."""
        price = self.price(model)
        return price is not None and _too_long(price, _prompt(usage))

    def _for(self, model: str, batch: bool) -> Price | None:
        price = self.price(model)
        return _in_batch(price) if price is not None and batch else price

    def cost_nano(self, model: str, usage: Usage, *, batch: bool = False) -> int | None:
        """What the call costs, rounded half up once on the sum; None if a price it needs is unknown."""
        price = self._for(model, batch)
        if price is None or _too_long(price, _prompt(usage)):
            return None
        total = 0
        for tokens, rate in (
            (usage.input, price.input),
            (usage.cache_read, price.cache_read),
            (usage.cache_write_5m, price.cache_write_5m),
            (usage.cache_write_1h, price.cache_write_1h),
            (usage.output, price.output),
        ):
            if tokens:
                if rate is None:
                    return None
                total += tokens * rate
        return (total + _MILLION // 2) // _MILLION

    def upper_bound_nano(
        self, model: str, input_tokens: int, max_output_tokens: int, *, batch: bool = False
    ) -> int | None:
        """The most the call can cost: every input token in the dearest bucket, all output used, rounded up."""
        price = self._for(model, batch)
        if price is None or _too_long(price, input_tokens):
            return None
        dearest = max(price.input, price.cache_read or 0, price.cache_write_5m or 0, price.cache_write_1h or 0)
        return -(-(input_tokens * dearest + max_output_tokens * price.output) // _MILLION)


def _in_batch(price: Price) -> Price | None:
    """What the batch API charges. Discounts multiply: cached tokens get that of plain input. None: no batch price."""
    if price.batch_input is None or price.batch_output is None:
        return None

    def less(rate: int | None) -> int | None:
        return None if rate is None else rate * (price.batch_input or 0) // (price.input or 1)

    return msgspec.structs.replace(
        price,
        input=price.batch_input,
        output=price.batch_output,
        cache_read=less(price.cache_read),
        cache_write_5m=less(price.cache_write_5m),
        cache_write_1h=less(price.cache_write_1h),
    )


def _prompt(usage: Usage) -> int:
    return usage.input + usage.cache_read + usage.cache_write_5m + usage.cache_write_1h


def _too_long(price: Price, prompt_tokens: int) -> bool:
    return price.max_prompt_tokens is not None and prompt_tokens > price.max_prompt_tokens


@cache
def _shipped() -> _File:
    return msgspec.json.decode(resources.files("cost").joinpath("data", TABLE).read_bytes(), type=_File)
