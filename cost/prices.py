"""List prices, dated, and what a call costs by them. All integers: nano-USD per million tokens, nano-USD.

The tables are files of this package (`data/prices-DATE.json`), so nothing is fetched and history can be priced again.
Of several, each tells what changed by its date: a model's price then has rows, each with the day it holds from. A model
that no table knows has no price (None), never the price 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import msgspec

from cost.types import LedgerError, Usage

STALE_DAYS = 60  # after which list prices are doubted
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
    source: str = ""  # where it was read; empty: as the table
    since: date | None = None  # the first day (UTC) it holds; None: from the beginning, as far as anybody knows


class _File(msgspec.Struct, frozen=True):
    """One row a model, or several where its price has changed."""

    as_of: date
    source: str
    models: dict[str, Price | list[Price]]


class PriceTable(msgspec.Struct, frozen=True):
    """`version` names the table in the ledger; it ends in `+config` where the config replaces or adds prices.

    `models` has each model's newest row; `earlier` the rows before it, the oldest first, where there are any.
    """

    version: str
    as_of: date
    source: str
    models: dict[str, Price]
    earlier: dict[str, tuple[Price, ...]] = {}

    @classmethod
    def load(
        cls, overrides: Mapping[str, Price | Sequence[Price]] | None = None, *, files: Sequence[Path] = ()
    ) -> PriceTable:
        """The shipped tables and `files` of their form, the newest last; the config's own prices on top.

        Raises `LedgerError`: a file that is no price table.
        """
        tables = sorted((*_shipped(), *map(_read, files)), key=lambda file: file.as_of)
        rows: dict[str, list[Price]] = {}
        for file in tables:
            for model, given in file.models.items():
                _append(rows.setdefault(model, []), given, file)
        for model, own in (overrides or {}).items():
            rows[model] = _in_order(own)
        newest = tables[-1]
        return cls(
            newest.as_of.isoformat() + ("+config" if overrides else ""),
            newest.as_of,
            newest.source,
            {model: prices[-1] for model, prices in rows.items()},
            {model: tuple(prices[:-1]) for model, prices in rows.items() if len(prices) > 1},
        )

    @property
    def newest(self) -> PriceTable:
        """Without history: what each model costs now, for any day."""
        now = {model: msgspec.structs.replace(price, since=None) for model, price in self.models.items()}
        return msgspec.structs.replace(self, models=now, earlier={})

    def age_days(self, now: float) -> int:
        """Whole days from the newest table to `now` (unix time, seconds)."""
        return (datetime.fromtimestamp(now, UTC).date() - self.as_of).days

    def stale(self, now: float) -> str | None:
        """What to tell people about a table older than `STALE_DAYS`."""
        age = self.age_days(now)
        if age <= STALE_DAYS:
            return None
        return f"The price list is {age} days old ({self.as_of}); check it before you decide anything by it."

    def name(self, model: str) -> str | None:
        """As the table calls it: `simulated/<model>` is `<model>`, a dated snapshot the model without the date."""
        name = model.removeprefix(SIMULATED)
        return next((known for known in (name, _SNAPSHOT.sub("", name)) if known in self.models), None)

    def price(self, model: str, on: date | None = None) -> Price | None:
        """The newest, or the one that held on a day (UTC). None: unknown."""
        name = self.name(model)
        if name is None or on is None:
            return self.models[name] if name else None
        held = [row for row in self.rows(name) if row.since is None or row.since <= on]
        return held[-1] if held else None

    def rows(self, name: str) -> tuple[Price, ...]:
        """All that is known of a model under its name in the table, the oldest first."""
        return (*self.earlier.get(name, ()), self.models[name])

    def with_price(self, model: str, price: Price) -> PriceTable:
        """This table, but for `model`. What is listed as its longest prompt stays so, if `price` names none."""
        listed = self.price(model)
        if listed is not None and price.max_prompt_tokens is None:
            price = msgspec.structs.replace(price, max_prompt_tokens=listed.max_prompt_tokens)
        version = self.version.removesuffix("+config") + "+config"
        earlier = {name: prices for name, prices in self.earlier.items() if name != model}
        models = {**self.models, model: price}
        return msgspec.structs.replace(self, version=version, models=models, earlier=earlier)

    def too_long(self, model: str, usage: Usage) -> bool:
        """The model has a price, but not for such long prompts."""
        price = self.price(model)
        return price is not None and _too_long(price, _prompt(usage))

    def _for(self, model: str, batch: bool, on: date | None = None) -> Price | None:
        price = self.price(model, on)
        return in_batch(price) if price is not None and batch else price

    def cost_nano(self, model: str, usage: Usage, *, batch: bool = False, on: date | None = None) -> int | None:
        """What the call costs (on a day, else now), rounded half up on the sum; None if a price it needs is unknown."""
        price = self._for(model, batch, on)
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


def in_batch(price: Price) -> Price | None:
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


def _append(rows: list[Price], given: Price | list[Price], file: _File) -> None:
    """Behind what earlier tables say; a price that only this one knows of has changed by its date, if there was one."""
    for price in _in_order(given):
        told = price if price.source else msgspec.structs.replace(price, source=file.source)
        if rows and _rates(rows[-1]) == _rates(told):
            continue
        if rows and told.since is None:
            told = msgspec.structs.replace(told, since=file.as_of)
        while rows and told.since is not None and (rows[-1].since or date.min) >= told.since:
            rows.pop()  # corrected: the newer table says what held then
        rows.append(told)


def _in_order(given: Price | Sequence[Price]) -> list[Price]:
    return [given] if isinstance(given, Price) else sorted(given, key=lambda price: price.since or date.min)


def _rates(price: Price) -> Price:
    return msgspec.structs.replace(price, source="", since=None)


@cache
def _shipped() -> tuple[_File, ...]:
    folder = resources.files("cost").joinpath("data")
    return tuple(_decoded(file.read_bytes(), file.name) for file in _tables(folder.iterdir()))


def _tables(files: Iterable[Traversable]) -> list[Traversable]:
    return sorted((file for file in files if file.name.startswith("prices-")), key=lambda file: file.name)


def _read(path: Path) -> _File:
    try:
        return _decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise LedgerError(f"the price table {path} can't be read: {error.strerror}") from error


def _decoded(data: bytes, name: str) -> _File:
    try:
        file = msgspec.json.decode(data, type=_File)
    except msgspec.DecodeError as error:
        raise LedgerError(f"{name} is no price table: {error}; cost/data has one that shows the form") from error
    if empty := [model for model, rows in file.models.items() if rows == []]:
        raise LedgerError(f"{name} has no price for {empty[0]}: give it a row, or take it out")
    return file
