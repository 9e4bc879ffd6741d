"""What no single key of a [providers.NAME] section shows: other keys, prices and the environment belong to it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from providers import platforms
from providers.addresses import is_loopback, is_url
from router.config import Provider

Key = tuple[str, ...]
Problem = tuple[Key, str]

#: A value of `api_key_env` that is shown in messages. What looks otherwise may be the key itself.
VARIABLE = re.compile(r"^[A-Z][A-Z0-9]{0,15}(_[A-Z0-9]{1,16}){1,7}$")


def check(here: Key, provider: Provider, environ: Mapping[str, str]) -> Iterator[Problem]:
    """`here`: the section's key."""
    url = provider.base_url
    on_this_machine = url is not None and is_url(url) and is_loopback(urlsplit(url).hostname or "")
    variable, key = provider.key_variable, environ.get(provider.key_variable, "")
    named = f"the environment variable {variable}"
    if not VARIABLE.match(variable):
        named = "the environment variable that api_key_env names (its name, not the key itself, belongs there)"
    others = provider.via in ("bedrock", "vertex") and provider.api_key_env is None  # the cloud's own credentials
    if not key and not on_this_machine and not others:
        yield here, f"{named} is not set; it holds the API key"
    if not key.isascii() or (key and not key.isprintable()) or " " in key:
        yield here, f"{named} has blanks, line breaks or other signs in it that no API key has; set it again"
    for name, what in platforms.problems(provider.kind, provider.settings, key=bool(key), environ=environ):
        yield (*here, name), what
    yield from _out_of_place(here, provider)
    yield from _priced(here, provider)
    if url is None:
        return
    if not is_url(url):
        yield (*here, "base_url"), "this is no URL that can be used; write https://HOST or https://HOST:PORT/PATH"
    elif "@" in urlsplit(url).netloc:
        yield (*here, "base_url"), "this holds a user or a password; the key belongs into the environment"
    elif url.startswith("http://") and not on_this_machine:
        yield (*here, "base_url"), "must be https:// unless it is on this machine"


def _out_of_place(here: Key, provider: Provider) -> Iterator[Problem]:
    """Keys that mean nothing where they stand: whoever wrote one expects something of it."""
    kind, via = provider.kind, provider.via
    if provider.region is not None and via not in ("bedrock", "vertex"):
        yield (*here, "region"), 'only via = "bedrock" and "vertex" have one; take it out'
    if provider.project is not None and via != "vertex":
        yield (*here, "project"), 'only via = "vertex" has one; take it out'
    if provider.api_version is not None and (via != "azure" or kind == "anthropic"):
        yield (*here, "api_version"), 'only kind = "openai" and "openai-chat" via = "azure" have one; take it out'
    if provider.structured != "auto" and kind != "openai-chat":
        yield (*here, "structured"), 'only kind = "openai-chat" needs it: the others have strict schemas; take it out'
    if kind == "openai-decisions" and provider.effort is not None:
        yield (*here, "effort"), "OpenAI Decisions has no such setting; take it out"
    if kind == "openai-decisions" and provider.thinking_tokens is not None:
        yield (*here, "thinking_tokens"), "OpenAI Decisions has no such setting; take it out"
    if kind == "anthropic" and provider.effort in ("none", "minimal"):
        yield (*here, "effort"), f'Anthropic knows no effort {provider.effort!r}; write "low" or more, or take it out'


def _priced(here: Key, provider: Provider) -> Iterator[Problem]:
    from cost.prices import PriceTable

    if provider.usd_per_hour is not None:
        if provider.price is not None:
            yield (*here, "usd_per_hour"), "a call is paid by the hour or by the token; take this or `price` out"
        elif provider.base_url is None:
            yield (*here, "usd_per_hour"), "this is for a server of your own; write its address as base_url"
        return
    prices = PriceTable.load()
    if provider.price is None and prices.price(provider.priced_as) is None:
        yield (
            (*here, "model"),
            f"no price is known for {provider.priced_as!r} (price table of {prices.version}); "
            f"add [providers.{here[-1]}.price] with dollars per million tokens, or usd_per_hour for a server of your "
            "own, or correct the name",
        )
