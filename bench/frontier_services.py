"""The services and simulated frontiers that bench/frontier.py measures."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import harness
from harness import Server
from rounds import AUTH

DEADLINE_MS = 3000
KEYS = {"ANTHROPIC_API_KEY": "simulated", "OPENAI_API_KEY": "simulated"}
SERVICE = f"""\
[server]
deadline_ms = {DEADLINE_MS}

[cache]
url = "off"

[budget]
usd_per_day = 100000.0

[tasks.banking]
head = "banking77"

[tasks.banking.policy]
threshold = {{threshold}}

{AUTH}
"""
FIRST = """\
[providers.first]
kind = "anthropic"
model = "claude-haiku-5-5"
base_url = "{url}"

"""
SECOND = """\
[providers.second]
kind = "openai"
model = "gpt-6-luna"
base_url = "{url}/v1"
"""


@contextmanager
def simulator(folder: Path, name: str, *arguments: str) -> Iterator[Server]:
    log = folder / f"simulator-{name}.log"
    with harness.child([sys.executable, "-m", "router", "simulate-frontier", *arguments], log) as process:
        yield harness.wait_for(process, log, r'"url": "(http://[^"]+)"', "/_sim/calls")


def calls(url: str) -> int:
    """That have reached a simulator; 0 where there is none."""
    if not url:
        return 0
    with urllib.request.urlopen(f"{url}/_sim/calls", timeout=10) as response:
        return int(json.load(response)["calls"])
