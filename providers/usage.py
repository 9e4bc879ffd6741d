"""A provider's token counts, in our disjoint buckets. Counts that can't be true are replaced by an upper bound.

Ours may be too low, where a provider adds to the prompt or counts otherwise: counts somewhat above it are kept, as
estimated, for the bill may follow them.

Anthropic's `input_tokens` leaves cached tokens out; OpenAI's holds them, cache reads and cache writes alike.
"""

from __future__ import annotations

from typing import Any

import msgspec
import structlog

from cost.types import Usage

log = structlog.get_logger(__name__)

#: What costs more than the list has, where it is not asked for but set for the account: Anthropic's and OpenAI's tiers,
#: Anthropic's speed and place.
_DEARER = {"priority", "fast", "ultrafast", "us"}
#: Times the upper bound: counts above that are nonsense.
_TOO_MANY = 10


def from_messages(reported: Any, bound: Usage) -> Usage:
    """Anthropic Messages. Writes come by time to live; where they don't, they are the five-minute kind."""
    report = _dict(reported)
    written = _count(report, "cache_creation_input_tokens")
    hour = _count(_dict(report.get("cache_creation")), "ephemeral_1h_input_tokens")
    used = _plausible(
        bound,
        _count(report, "input_tokens", required=True),
        _count(report, "cache_read_input_tokens"),
        written - hour,
        hour,
        _count(report, "output_tokens", required=True),
        _count(_dict(report.get("output_tokens_details")), "thinking_tokens"),
    )
    return listed(used, *(report.get(key) for key in ("service_tier", "speed", "inference_geo")))


def from_responses(reported: Any, bound: Usage) -> Usage:
    """OpenAI Responses and Decisions. Writes live for 30 minutes, or for 12 hours where somebody has asked for it:
    these stand with the dearer of two kinds."""
    report = _dict(reported)
    details = _dict(report.get("input_tokens_details"))
    read, written = _count(details, "cached_tokens"), _count(details, "cache_write_tokens")
    long = _count(_dict(details.get("cache_write_tokens_details")), "ttl_12h_tokens")
    return _plausible(
        bound,
        _count(report, "input_tokens", required=True) - read - written,
        read,
        written - long,
        long,
        _count(report, "output_tokens", required=True),
        _count(_dict(report.get("output_tokens_details")), "reasoning_tokens"),
    )


def from_chat(reported: Any, bound: Usage) -> Usage:
    """OpenAI-compatible chat: as Responses, under other names.

    Some servers leave thoughts out of `completion_tokens` and count them in `total_tokens` only: they are output.
    """
    report = _dict(reported)
    details = _dict(report.get("prompt_tokens_details"))
    read, written = _count(details, "cached_tokens"), _count(details, "cache_write_tokens")
    prompt = _count(report, "prompt_tokens", required=True)
    output = _count(report, "completion_tokens", required=True)
    if output >= 0:
        output = max(output, _count(report, "total_tokens") - prompt)
    return _plausible(
        bound,
        prompt - read - written,
        read,
        written,
        0,
        output,
        _count(_dict(report.get("completion_tokens_details")), "reasoning_tokens"),
    )


def listed(used: Usage, *tiers: object) -> Usage:
    """As estimated, so that its upper bound counts, if one of `tiers` is known to cost more than the list price."""
    dearer = [tier for tier in tiers if isinstance(tier, str) and tier in _DEARER]
    if not dearer:
        return used
    log.warning("dearer_than_listed", tier=dearer[0], do="ask for the standard tier in the provider's account")
    return msgspec.structs.replace(used, estimated=True)


def _plausible(bound: Usage, plain: int, read: int, write_5m: int, write_1h: int, output: int, reasoning: int) -> Usage:
    prompt = plain + read + write_5m + write_1h
    if min(plain, read, write_5m, write_1h, reasoning) < 0 or not 0 < prompt <= _TOO_MANY * bound.input:
        return bound
    if not reasoning <= output <= _TOO_MANY * bound.output:
        return bound
    above = prompt > bound.input or output > bound.output
    return Usage(plain, read, write_5m, write_1h, output, reasoning, estimated=above)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(report: dict[str, Any], key: str, *, required: bool = False) -> int:
    """-1, which no report survives, for what is no count."""
    value = report.get(key)
    if value is None and not required:
        return 0
    return value if type(value) is int else -1
