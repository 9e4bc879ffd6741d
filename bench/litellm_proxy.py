"""LiteLLM's proxy as a child process: somebody else's server for the wire formats. It has an environment of its own."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import harness
from harness import ROOT, Server

HOME = Path(os.environ.get("CROSSOVER_BENCH_LITELLM", ROOT / ".bench-venvs" / "litellm"))


class Proxy(NamedTuple):
    """It answers at `server.url` to who has the key."""

    server: Server
    key: str
    log: Path


def version() -> str:
    """Of the one that is installed; empty if none is."""
    found = sorted(HOME.glob("lib/python*/site-packages/litellm-*.dist-info"))
    return found[-1].name.removeprefix("litellm-").removesuffix(".dist-info") if found else ""


@contextmanager
def running(folder: Path, config: str, **environment: str) -> Iterator[Proxy]:
    """With a config of its own (YAML). Raises `OSError` or `SystemExit`: not installed, or it does not start."""
    command = HOME / "bin" / "litellm"
    if not command.exists():
        raise FileNotFoundError(f"{command} is missing; pip.log beside it may say why")
    key = f"sk-{secrets.token_hex(32)}"
    file, log = folder / "litellm.yaml", folder / "litellm.log"
    file.write_text(config)
    with socket.socket() as found:  # LiteLLM wants a number, and opens the port itself
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    settings = {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True", **environment}
    arguments = ["--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with harness.child([str(command), *arguments], log, **settings) as process:
        server = harness.wait_for(process, log, rf"running on (http://127\.0\.0\.1:{port})", "/health/liveliness")
        yield Proxy(server, key, log)
