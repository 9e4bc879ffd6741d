"""Hosts and URLs as a config gives them."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def is_url(url: str) -> bool:
    """Whether clients can take it apart: their own messages would quote it, password and all."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    has_place = bool(parts.hostname) if parts.scheme in ("http", "https", "redis", "rediss") else True
    return has_place and url.isprintable() and " " not in url
