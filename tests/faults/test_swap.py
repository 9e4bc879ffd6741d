"""A head or model is replaced while requests run: none fails, none mixes versions, and the cache follows."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

SHIPPED = Path(__file__).resolve().parents[2] / "local_model" / "heads" / "banking77"
TEXTS = ["I lost my card", "how do I change my PIN", "has my card arrived", "why was I charged twice"]


def head(folder: Path, *, reverse: bool) -> Path:
    """The shipped head; or one that names its outputs the other way round, so that each answer tells its version."""
    shutil.copytree(SHIPPED, folder)
    if reverse:
        file = folder / "manifest.json"
        manifest = json.loads(file.read_text())
        manifest["labels"].reverse()
        file.write_text(json.dumps(manifest))
    return folder


def config(path: Path, more: str = "") -> str:
    return f'[tasks.t]\nhead = "{path}"\n[tasks.t.policy]\nescalate = "never"\n{more}'


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("heads")
    return head(folder / "a", reverse=False), head(folder / "b", reverse=True)


def test_a_swap_under_load_fails_no_request_and_mixes_no_versions(
    serve: Callable[..., Any], heads: tuple[Path, Path]
) -> None:
    """Cached and computed answers alike: a label of the version that the answer names, and the new one's after it."""
    service = serve(config(heads[0]))
    old = {text: service.answer(text) for text in TEXTS}
    seen: list[tuple[str, dict[str, Any]]] = []

    async def load(client: httpx.AsyncClient, over: asyncio.Event, number: int) -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            texts = [*TEXTS, f"{TEXTS[turn % 4]} {number} {turn}"]  # hits, and one that must be computed
            reply = await client.post("/v1/classify", json={"input": texts})
            assert reply.status_code == 200, reply.text
            seen.extend(zip(texts, reply.json()["results"], strict=True))

    async def main() -> None:
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as client, asyncio.timeout(120):
            over = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for number in range(6):
                    group.create_task(load(client, over, number))
                for path in (heads[1], heads[0], heads[1]):
                    before = service.output.count('"event":"reloaded"')
                    service.config.write_text(config(path))
                    service.process.send_signal(signal.SIGHUP)
                    while service.output.count('"event":"reloaded"') == before:
                        await asyncio.sleep(0.02)
                    turns = len(seen)
                    while len(seen) < turns + 60:
                        await asyncio.sleep(0.01)
                over.set()

    asyncio.run(main())
    new = {text: service.answer(text) for text in TEXTS}
    versions = {old[TEXTS[0]]["model"]: old, new[TEXTS[0]]["model"]: new}
    assert len(versions) == 2
    assert {answer["model"] for _, answer in seen} == set(versions)
    assert {answer["source"] for _, answer in seen} == {"local", "cache"}
    for text, answer in seen:
        if text in TEXTS:
            assert answer["label"] == versions[answer["model"]][text]["label"]
    assert all(new[text]["label"] != old[text]["label"] for text in TEXTS)
    encoders = service.client.get("/v1/status").json()["model"]["encoders"]
    assert len(encoders) == 1, "the swapped head rides on the encoder that ran"


@pytest.mark.parametrize(
    ("broken", "said"), [("nonsense = 1", "nonsense"), ('[tasks.u]\nhead = "/nowhere/at/all"\n', "/nowhere/at/all")]
)
def test_a_config_that_can_not_be_served_is_told_and_changes_nothing(
    serve: Callable[..., Any], heads: tuple[Path, Path], broken: str, said: str
) -> None:
    service = serve(config(heads[0]))
    before = service.answer(TEXTS[0])
    service.config.write_text(config(heads[1], broken))
    service.process.send_signal(signal.SIGHUP)
    service.wait_for(lambda: '"event":"reload_failed"' in service.output)
    assert said in service.output
    after = service.answer(TEXTS[0])
    assert (after["label"], after["model"]) == (before["label"], before["model"])


def test_another_encoder_is_warmed_beside_the_old_one_which_then_leaves(
    serve: Callable[..., Any], heads: tuple[Path, Path]
) -> None:
    """Other settings are another engine: two for a moment, one in the end."""
    service = serve(config(heads[0]))
    before = service.answer(TEXTS[0])
    service.config.write_text(config(heads[0], "[model]\nmax_tokens = 64\n"))
    service.process.send_signal(signal.SIGHUP)
    service.wait_for(lambda: "the old model is closed" in service.output)
    after = service.answer(TEXTS[0])
    assert after["label"] == before["label"]
    assert after["model"] != before["model"], "the longest text it reads is part of what an answer depends on"
    (encoder,) = service.client.get("/v1/status").json()["model"]["encoders"]
    assert encoder["max_tokens"] == 64
