"""What an SDK raises, in our words; how long a provider asks to wait."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers import failures
from providers.types import AuthFailed, BadRequest, Refused


def test_retry_after_understands_dates_and_milliseconds() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    heard = failures.retry_after({"retry-after": soon})
    assert heard is not None
    assert 25 < heard <= 30
    assert failures.retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) is None
    assert failures.retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert failures.retry_after({"retry-after-ms": "junk", "retry-after": "9"}) == 9
    assert failures.retry_after({}) is None
    for no_date in ("Mon, 99999999999999999999 Jan 2026 00:00:00 GMT", "Mon, 01 Jan 99999 00:00:00 GMT"):
        assert failures.retry_after({"retry-after": no_date}) is None


@given(st.text())
def test_for_all_strings_retry_after_is_positive_or_nothing(value: str) -> None:
    heard = failures.retry_after({"retry-after": value})
    assert heard is None or heard > 0


@pytest.mark.parametrize(
    ("sdk_error", "status", "body"),
    [
        (anthropic.APIStatusError, 400, {"type": "error", "error": {"type": "billing_error", "message": "no credit"}}),
        (openai.APIStatusError, 429, {"type": "insufficient_quota", "code": "insufficient_quota"}),
        (openai.APIStatusError, 429, {"type": "insufficient_quota", "code": None}),
    ],
)
def test_an_account_without_credit_is_not_mistaken_for_a_moments_rush(sdk_error: Any, status: int, body: Any) -> None:
    """By the name in the body, where either SDK keeps it."""
    response = httpx2.Response(status, request=httpx2.Request("POST", "https://api.example.com"))
    assert type(failures.from_error(sdk_error("said", response=response, body=body))) is AuthFailed
    assert type(failures.from_error(sdk_error("said", response=response, body=None))) is not AuthFailed


def refused(body: dict[str, Any], status: int = 400) -> Any:
    response = httpx2.Response(status, request=httpx2.Request("POST", "https://api.example.com"), json={"error": body})
    client = openai.AsyncOpenAI(api_key="k", base_url="https://api.example.com")
    return failures.from_error(client._make_status_error_from_response(response))


@pytest.mark.parametrize(
    "body",
    [
        {"message": "This model's maximum context length is 4096 tokens.", "type": "BadRequestError", "code": 400},
        {"message": "the request exceeds it", "type": "exceed_context_size_error", "code": 400},
        {"message": "too much", "type": "invalid_request_error", "code": "context_length_exceeded"},
        {"message": "prompt is too long: 215000 tokens > 200000 maximum", "type": "invalid_request_error"},
    ],
)
def test_a_text_that_is_too_long_is_known_by_whatever_a_server_calls_it(body: dict[str, Any]) -> None:
    failure = refused(body)
    assert (type(failure), failure.status) == (BadRequest, 413)


def test_a_text_that_a_filter_refused_may_have_been_charged() -> None:
    for code in ("content_filter", "invalid_prompt"):
        failure = refused({"message": "The response was filtered", "code": code})
        assert (type(failure), failure.billed) == (Refused, "unknown")
