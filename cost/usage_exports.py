"""What providers say they have billed: their usage and cost exports, and a plain CSV of ours, as one kind of line.

Read are (as of 2026-11): Anthropic's console CSVs of usage (`usage_date_utc`, `model_version`,
`usage_input_tokens_no_cache`, ...) and of cost (`token_type`, `cost_usd`), its Admin API's `usage_report/messages` and
`cost_report` (amounts in cents), OpenAI's `organization/usage/completions` and `organization/costs` as JSON and as the
dashboard's CSVs, and `day,model,input_tokens,cache_read_tokens,cache_write_5m_tokens,cache_write_1h_tokens,
output_tokens,cost_usd,reply_id` (what is not known is left out). docs/ledger.md says where to get them.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import msgspec

from cost.types import LedgerError

_EPOCH = date(1970, 1, 1).toordinal()
_DAY = ("day", "date", "usage_date_utc", "start_time_iso", "start_time")
_MODEL = ("model", "model_version", "line_item")
_COST = ("cost_usd", "amount_value", "cost")
_OUTPUT = ("output_tokens", "usage_output_tokens")
_INPUT_PARTS = (
    "usage_input_tokens_no_cache",
    "usage_input_tokens_cache_write_5m",
    "usage_input_tokens_cache_write_1h",
    "usage_input_tokens_cache_read",
)
_OUR_PARTS = ("input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")


class Billed(msgspec.Struct, frozen=True):
    """One line. None: the export does not say."""

    day: int  # days since 1970-01-01, UTC
    model: str  # as `same_name` writes it
    prompt: int | None = None  # tokens, those from and for the cache included
    output: int | None = None
    cost_nano: int | None = None
    rounding_nano: int = 0  # how far the cost may be off: half of its last digit
    reply_id: str = ""


def same_name(model: str) -> str:
    """A model's name without its date, as exports and replies write it differently: "Claude Haiku 4.5" and
    "claude-haiku-4-5-20251001" are the same."""
    name = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return re.sub(r"-(\d{8}|\d{4}-\d{2}-\d{2}|latest)$", "", name)


def read(path: Path) -> list[Billed]:
    """Raises `LedgerError`: can't be read, or is in no known format; with the line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(f"{path} can't be read: {error}") from error
    lines = _json(path, text) if text.lstrip()[:1] in ("{", "[") else _csv(path, text)
    return [line for line in lines if line is not None]


def _csv(path: Path, text: str) -> Iterator[Billed | None]:
    lines = text.splitlines()
    rows = csv.DictReader(lines, delimiter="\t" if lines and "\t" in lines[0] else ",")
    header = {(name or "").strip().lower() for name in rows.fieldnames or ()}
    if not (header & set(_DAY) and header & set(_MODEL) and header & {*_COST, *_OUTPUT, *_INPUT_PARTS, *_OUR_PARTS}):
        raise LedgerError(
            f"{path}: no usage export that is known, its columns are {', '.join(sorted(header)) or 'none'}; "
            "write one with day,model,input_tokens,output_tokens,cost_usd (docs/ledger.md)"
        )
    for row in rows:
        found = {(name or "").strip().lower(): (value or "").strip() for name, value in row.items() if name is not None}
        try:
            yield _from_csv(found)
        except (ValueError, ArithmeticError) as error:
            raise LedgerError(f"{path}, line {rows.line_num}: {error}") from error


def _from_csv(row: Mapping[str, str]) -> Billed | None:
    model, cost = _first(row, _MODEL).split(",")[0], _first(row, _COST)
    # OpenAI's count of input tokens has the cached ones in it; with us, and Anthropic, they are beside it.
    parts = ("input_tokens",) if "num_model_requests" in row or "input_cached_tokens" in row else _OUR_PARTS
    prompt, output = _whole(row, (*_INPUT_PARTS, *parts)), _whole(row, _OUTPUT)
    if not model and not cost and not prompt and not output:
        return None  # a day on which nothing happened
    nano, rounding = _money(cost, row.get("amount_currency") or row.get("currency") or "usd") if cost else (None, 0)
    return Billed(
        _day(_first(row, _DAY)), _named(model), prompt, output, nano, rounding, _first(row, ("reply_id", "id"))
    )


def _json(path: Path, text: str) -> Iterator[Billed | None]:
    try:
        pages = json.loads(text, parse_float=Decimal)
        for page in pages if isinstance(pages, list) else [pages]:
            for bucket in page["data"]:
                day = _day(str(bucket.get("starting_at") or bucket["start_time"]))
                for result in bucket["results"]:
                    yield _result(day, result)
    except (ValueError, ArithmeticError, KeyError, TypeError, AttributeError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise LedgerError(f"{path}: no usage export that is known (docs/ledger.md): {said}") from error


def _result(day: int, found: Mapping[str, Any]) -> Billed:
    amount = found.get("amount")
    if isinstance(amount, Mapping):  # OpenAI's costs
        name = str(found.get("line_item") or "").split(",")[0]
        return Billed(day, _named(name), None, None, *_money(str(amount["value"]), str(amount["currency"])))
    model = str(found.get("model") or "")
    if amount is not None:  # Anthropic's cost report: cents; what is no token (a search) has no model
        cents, rounding = _money(str(amount), str(found.get("currency") or "usd"))
        return Billed(day, same_name(model or str(found["cost_type"])), None, None, cents // 100, rounding // 100)
    if "uncached_input_tokens" in found:
        written = found.get("cache_creation") or {}
        prompt = found["uncached_input_tokens"] + found["cache_read_input_tokens"] + sum(written.values())
    else:
        prompt = found["input_tokens"]
    return Billed(day, _named(model), int(prompt), int(found["output_tokens"]))


def _first(row: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((row[name] for name in names if row.get(name)), "")


def _whole(row: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    """The sum of those that are there."""
    found = [int(Decimal(row[name])) for name in names if row.get(name)]
    return sum(found) if found else None


def _named(model: str) -> str:
    if not model:
        raise ValueError("a line without a model; export by model (group by model, or line item)")
    return same_name(model)


def _day(text: str) -> int:
    if text.replace(".", "", 1).isdigit():
        return int(float(text)) // 86_400
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no day; write 2026-11-21") from None
    return (moment.astimezone(UTC) if moment.tzinfo else moment).date().toordinal() - _EPOCH


def _money(text: str, currency: str) -> tuple[int, int]:
    """nano-USD, and half of the last digit that is written."""
    if currency.lower() != "usd":
        raise ValueError(f"an amount in {currency}; the ledger is kept in US dollars")
    try:
        amount = Decimal(text.removeprefix("$").replace(",", ""))
        exponent = amount.as_tuple().exponent
        assert isinstance(exponent, int)
    except (InvalidOperation, AssertionError):
        raise ValueError(f"{text!r} is no amount") from None
    return round(amount * 10**9), round(Decimal(10) ** (9 + min(0, exponent)) / 2)
