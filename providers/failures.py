"""What goes wrong in an SDK, in this package's words. The only place where both worlds are known.

Nothing of a provider's message is passed on: some quote the key in part, some the text. A caller raises the result
outside of its `except` block, since the SDK's error holds the request, and with it the key (`from None` only hides it).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from providers.transport import ReplyTooLarge
from providers.types import (
    AuthFailed,
    BadAnswer,
    BadRequest,
    ProviderError,
    RateLimited,
    Refused,
    TimedOut,
    Unavailable,
)

_NO_CREDIT = {"insufficient_quota", "billing_error"}
_FILTERED = {"content_filter", "invalid_prompt"}
#: In codes, types or messages: of OpenAI, llama.cpp, vLLM, Anthropic, Gemini.
_TOO_LONG = (
    "context_length_exceeded",
    "exceed_context_size_error",
    "maximum context length",
    "prompt is too long",
    "exceeds the maximum number of tokens",
)


def from_error(error: Exception) -> ProviderError:
    """Whatever an SDK raised. Both SDKs' errors of a status carry the `response` and the name that the body gave."""
    response = getattr(error, "response", None)
    if isinstance(response, httpx2.Response) and not response.is_success:
        codes = {code for name in ("code", "type") if isinstance(code := getattr(error, name, None), str)}
        too_long = any(words in said for words in _TOO_LONG for said in (str(error), *codes))
        return from_status(response.status_code, response.headers, codes, too_long=too_long)
    return from_cause(error)


def from_status(
    status: int, headers: Mapping[str, str], codes: Collection[str] = (), *, too_long: bool = False
) -> ProviderError:
    """`codes`: the error's own names in the body, where it has some. `too_long`: it says that the text is."""
    said = f"HTTP {status}"
    if status in (401, 403):
        return AuthFailed(f"{said}: the key is wrong, revoked or may not use this model")
    if status == 402 or not _NO_CREDIT.isdisjoint(codes):
        return AuthFailed(f"{said}: the account has no credit left")
    if status == 429:
        return RateLimited(said, retry_after=retry_after(headers))
    if status in (503, 529):
        # Turned away before any work.
        return unbilled(Unavailable(f"{said}: overloaded", retry_after=retry_after(headers)))
    if status >= 500:
        return Unavailable(said, retry_after=retry_after(headers))
    if status in (408, 409, 425):
        return unbilled(Unavailable(said))
    if 300 <= status < 400:
        return BadRequest(f"{said}: redirects are not followed; set base_url to where the API is", status=status)
    if not _FILTERED.isdisjoint(codes):
        return perhaps_billed(Refused(f"{said}: a filter refused the text"))  # Azure charges what it has read
    if status == 413 or too_long:
        return BadRequest(f"{said}: the text, or the prompt with its labels, is too long for the model", status=413)
    return BadRequest(f"{said}: the request was refused; check the model's name and the labels", status=status)


def from_cause(error: BaseException) -> ProviderError:
    """An error that came without a status; the SDKs wrap what httpx2 raised, so the chain of causes is walked."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__
    for found in links:
        match found:
            case ReplyTooLarge() | httpx2.DecodingError():
                return BadAnswer("the reply is too large or its compression is broken")
            case httpx2.ConnectTimeout() | httpx2.PoolTimeout():
                return unbilled(TimedOut("no connection in time"))
            case httpx2.ConnectError() | httpx2.ProxyError():
                return unbilled(Unavailable("no connection (refused, name not found or TLS)"))
            case httpx2.TimeoutException() | TimeoutError():
                return TimedOut("no answer in time")
            case httpx2.TransportError():
                return Unavailable(f"the connection broke ({type(found).__name__})")
            case _ if _about_credentials(found):
                return AuthFailed("no credentials could be had, or they have expired")
    return Unavailable(f"the call failed ({type(error).__name__})")


def _about_credentials(error: BaseException) -> bool:
    """A cloud's own are looked for at the first call, by libraries that need not be installed."""
    if type(error).__name__ in ("DefaultCredentialsError", "RefreshError", "NoCredentialsError", "ProfileNotFound"):
        return True
    return type(error).__name__ in ("RuntimeError", "OpenAIError", "AnthropicError") and "redential" in str(error)


def unbilled(error: ProviderError) -> ProviderError:
    """Nothing was computed, so nothing is charged."""
    error.billed = "no"
    return error


def perhaps_billed(error: ProviderError) -> ProviderError:
    error.billed = "unknown"
    return error


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds a provider asks to wait: from milliseconds, seconds or a date; None for none, junk and the past."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        try:
            seconds = float(value) * scale
        except ValueError:
            seconds = _until(value)
        if math.isfinite(seconds) and seconds > 0:
            return seconds
    return None


def _until(date: str) -> float:
    try:
        when = parsedate_to_datetime(date)
        return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return math.nan
