"""The socket below the SDKs: small replies only, no redirects, no plain text beyond this machine.

The SDKs use httpx2. They are given a client with this transport, and nothing of them is patched.
"""

from __future__ import annotations

import logging
import zlib
from typing import Any, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx2

from providers.addresses import is_loopback

C = TypeVar("C", bound=Any)

#: A label and its wrapping take a few hundred bytes; what is larger than this is no answer.
MAX_REPLY_BYTES = 256 * 1024
#: With the value "stream": how both SDKs ask for a response before its body is read.
STREAMED = "x-stainless-raw-response"


class ReplyTooLarge(httpx2.TransportError):
    """The reply, decoded, is larger than `MAX_REPLY_BYTES`, or encoded in a way that can't be bounded."""


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Reads each reply whole, decoding at most `MAX_REPLY_BYTES` of it. Only a batch's results, which are asked for as
    a stream, are passed on as they come, never compressed: who reads them bounds them (`providers.batches.lines`)."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        streamed = request.headers.get(STREAMED) == "stream" and response.is_success
        if streamed and _encoding(response) in ("identity", ""):
            return response
        try:
            body = await _bounded(response)
        except (ReplyTooLarge, httpx2.DecodingError):
            if response.is_success:
                raise
            body = b""  # the status says what became of the call
        finally:
            await response.aclose()
        headers = [(k, v) for k, v in response.headers.multi_items() if k not in ("content-encoding", "content-length")]
        return httpx2.Response(response.status_code, headers=headers, content=body, extensions=response.extensions)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _encoding(response: httpx2.Response) -> str:
    return response.headers.get("content-encoding", "identity").strip().lower()


async def _bounded(response: httpx2.Response) -> bytes:
    encoding = _encoding(response)
    if encoding not in ("identity", "gzip", "deflate", ""):
        raise ReplyTooLarge(f"a reply in the encoding {encoding!r}, which was not asked for")
    # 47: zlib or gzip, by the header.
    unpack = zlib.decompressobj(47) if encoding in ("gzip", "deflate") else None
    body = bytearray()
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    async for chunk in response.stream:
        try:
            body += unpack.decompress(chunk, MAX_REPLY_BYTES + 1) if unpack else chunk
        except zlib.error:
            raise httpx2.DecodingError("the reply's compression is broken") from None
        if len(body) > MAX_REPLY_BYTES:
            raise ReplyTooLarge(f"a reply of more than {MAX_REPLY_BYTES} bytes")
    return bytes(body)


def http_client(base_url: str) -> httpx2.AsyncClient:
    """A client for one provider. Raises `ValueError` for a URL that would send key and text in the clear.

    A proxy from the environment (HTTPS_PROXY, NO_PROXY) is honoured: with a transport of one's own httpx2 ignores it.
    """
    url = httpx2.URL(base_url)
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"base_url {base_url!r} is no http(s) address")
    if url.userinfo:
        raise ValueError(f"base_url for {url.host} holds a password; keys belong into api_key")
    local = is_loopback(url.host)
    if url.scheme == "http" and not local:
        raise ValueError(f"base_url {base_url!r} is not https: key and texts would travel in the clear")
    proxy = None if local or proxy_bypass(url.host) else getproxies().get(url.scheme)
    _keep_texts_out_of_logs()
    # As many connections as there are calls, which the lane limits (`max_in_flight`).
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    transport = BoundedTransport(httpx2.AsyncHTTPTransport(proxy=proxy, limits=limits))
    return httpx2.AsyncClient(
        transport=transport,
        # A gzip bomb is decoded before an SDK can look at it, so none is asked for. The transport can't set this: by
        # then a request may be signed, and AWS' signature covers it.
        headers={"accept-encoding": "identity"},
        follow_redirects=False,
        trust_env=False,
    )


def without_environment(client: C) -> C:
    """The SDK's client without the headers that the environment would add (OPENAI_CUSTOM_HEADERS, OPENAI_ORG_ID,
    ANTHROPIC_CUSTOM_HEADERS, ...): they may hold another key, which replaces ours, and go to whomever `base_url` names.
    """
    if not hasattr(client, "_custom_headers"):
        raise RuntimeError("the SDK keeps its headers elsewhere now")
    client._custom_headers = {}
    for name in ("organization", "project"):
        if hasattr(client, name):
            setattr(client, name, None)
    return client


def checked_key(api_key: str, name: str) -> str:
    """The key, if it can be sent in a header. Raises `ValueError`, which doesn't quote it."""
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ValueError(f"the key of provider {name!r} is empty or has blanks, line breaks or non-ASCII letters in it")
    return api_key


def _keep_texts_out_of_logs() -> None:
    """At DEBUG both SDKs log request bodies, and httpcore2 logs headers; whoever turns DEBUG on does not mean that."""
    for name in ("anthropic", "openai", "httpx2", "httpcore2"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))
