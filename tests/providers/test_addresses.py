"""Which addresses are this machine's: the config's check and the client that is built say the same."""

from __future__ import annotations

import asyncio

import pytest

from providers.build import build
from providers.settings import Settings
from router import provider_checks
from router.config import Provider

HERE = ["127.0.0.1", "127.8.8.8", "localhost", "LOCALHOST", "localhost.", "[::1]", "[::ffff:127.0.0.1]"]
ELSEWHERE = ["10.0.0.1", "0.0.0.0", "localhost.example.com", "127.0.0.1.example.com", "[::ffff:10.0.0.1]", "[fe80::1]"]


@pytest.mark.parametrize(("host", "here"), [*((host, True) for host in HERE), *((host, False) for host in ELSEWHERE)])
def test_plain_http_is_for_this_machine_only(host: str, here: bool) -> None:
    url = f"http://{host}:8000/v1"
    provider = Provider("openai-chat", "m", base_url=url, usd_per_hour=1.0)
    refused = [key for key, _ in provider_checks.check((), provider, {"OPENAI_API_KEY": "k"})]
    assert refused == ([] if here else [("base_url",)])
    if here:
        asyncio.run(build("openai-chat", name="p", model="m", api_key="k", settings=Settings(url)).close())
    else:
        with pytest.raises(ValueError, match="is not https"):
            build("openai-chat", name="p", model="m", api_key="k", settings=Settings(url))
