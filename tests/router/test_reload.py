"""What of a changed config is taken over, and when the file is read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from local_model.model import LocalModel
from router.config_file import ConfigError, Loaded, load
from router.reload import Adopted, ConfigFile, follow, taken_over
from router.service import Service

CONFIG = '[tasks.banking]\nhead = "banking77"\n[cache]\nurl = "off"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "crossover.toml"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def file(path: Path) -> ConfigFile:
    return ConfigFile(path, lambda: load(path, {}))


def test_what_needs_a_restart_is_named_and_served_as_it_was(path: Path) -> None:
    old = load(path, {}).config
    path.write_text(
        """
[server]
port = 9090
deadline_ms = 2_000
[cache]
url = "redis://localhost:6379/0"
ttl_s = 60
[budget]
usd_per_day = 5.0
[tasks.banking]
head = "banking77"
[tasks.banking.policy]
threshold = 0.9
[providers.a]
kind = "openai"
model = "gpt-6-luna"
base_url = "http://127.0.0.1:1/v1"
"""
    )
    served, waiting = taken_over(old, load(path, {}).config)
    assert waiting == ["server.port", "cache.url", "cache.ttl_s", "providers.a"]
    assert (served.server.port, served.cache, served.providers) == (old.server.port, old.cache, {})
    assert (served.server.deadline_ms, served.budget_usd) == (2_000, 5.0)
    assert served.tasks["banking"].policy.threshold == 0.9


def test_a_file_is_not_read_while_it_is_being_written(file: ConfigFile) -> None:
    """Only once it has lain still between two looks."""
    assert not file.changed()
    file.path.write_text(CONFIG[:20])
    assert not file.changed()
    file.path.write_text(CONFIG + "# more")
    assert not file.changed()
    assert file.changed()
    file.read()
    assert not file.changed()


def test_a_file_that_was_replaced_by_another_of_its_size_and_time_is_a_changed_one(file: ConfigFile) -> None:
    """As Kubernetes does it, and many editors: another file under the name."""
    import os

    before = file.path.stat()
    other = file.path.with_suffix(".new")
    other.write_text(CONFIG)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file.path)
    assert [file.changed(), file.changed()] == [False, True]


def test_the_same_mistake_is_told_once_for_the_same_content(file: ConfigFile) -> None:
    file.path.write_text("nonsense")
    assert file.is_news("why")
    file.path.touch()
    assert not file.is_news("why")
    file.path.write_text("other nonsense")
    assert file.is_news("why")


def test_what_is_refused_is_told_and_what_came_before_and_after_is_served(
    file: ConfigFile, capsys: pytest.CaptureFixture[str]
) -> None:
    """One loop follows the file and the signal; no mistake ends it."""
    served: list[Loaded] = []
    refusals: list[int] = []
    turn = asyncio.Event()

    async def adopt(loaded: Loaded) -> Adopted:
        if loaded.config.budget_usd == 13:
            raise ZeroDivisionError("a bug")
        served.append(loaded)
        turn.set()
        return Adopted(list(loaded.config.tasks), 0.0, [], [])

    def refused() -> None:
        refusals.append(1)
        turn.set()

    async def main() -> None:
        hangup = asyncio.Event()
        following = asyncio.create_task(follow(file, hangup, adopt, refused))
        for text, asked in (
            ("[tasks", True),
            (CONFIG + "[budget]\nusd_per_day = 13\n", True),
            (CONFIG + "[budget]\nusd_per_day = 7\n", False),
        ):
            turn.clear()
            file.path.write_text(text)
            if asked:
                hangup.set()
            async with asyncio.timeout(10):
                await turn.wait()
        following.cancel()

    asyncio.run(main())
    assert [loaded.config.budget_usd for loaded in served] == [7]
    assert len(refusals) == 2


def test_a_new_policy_key_or_budget_opens_no_engine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is served from the next request on. A head whose files were changed is another head."""

    def written(text: str) -> Loaded:
        path.write_text(text)
        return load(path, {})

    async def main() -> None:
        service = Service(written(CONFIG))
        await service.open()
        try:
            await service.wait_until_ready()
            model, digest = service.model, service.config_digest
            opened: list[Any] = []
            loads = LocalModel.load
            monkeypatch.setattr(LocalModel, "load", lambda *a, **k: (opened.append(a), loads(*a, **k))[1])
            changed = (
                CONFIG
                + """[tasks.banking.policy]
threshold = 0.25
[budget]
usd_per_day = 3.0
[server]
max_body_bytes = 2_048
[[auth.keys]]
tenant = "one"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
[[auth.keys]]
tenant = "two"
sha256 = "1111111111111111111111111111111111111111111111111111111111111111"
"""
            )
            adopted = await service.reload(written(changed))
            assert adopted.needs_restart == []
            assert opened == []
            assert service.model is model
            assert service.config_digest != digest
            assert service.config.tasks["banking"].policy.threshold == 0.25
            assert service.chain.terms.budget.day == 3_000_000_000
            assert service.telemetry.registry.get_sample_value("crossover_budget_usd") == 3.0
            await service.reload(written(CONFIG + "[model]\nmax_tokens = 64\n"))
            assert len(opened) == 1
            assert service.model is not model
        finally:
            await service.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = 1\n[tasks\n", ":2: not valid TOML"),
        ("a = 1\n[tasks.x", ":2: not valid TOML"),
        (CONFIG + '[server]\nport = "x"\n', ":6: server.port"),
        (CONFIG + "[server]\nworkers = 0\n", ":6: server.workers"),
        (CONFIG + "[[auth.keys]]\n[[auth.keys]]\ntenant = 1\n", ":7: auth.keys.1.tenant"),
        (CONFIG + "[[auth.keys]]\n[[auth.keys]]\ntenant = 1\n", ":5: auth.keys.0: `tenant` is missing"),
        (CONFIG + "[budget]\nusd_per_dya = 1\n", ":6: budget.usd_per_dya: unknown key; did you mean"),
    ],
)
def test_a_mistake_is_told_with_file_line_key_and_what_to_do(path: Path, text: str, said: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert any(problem.startswith(f"{path}{said}") for problem in caught.value.problems), caught.value.problems
