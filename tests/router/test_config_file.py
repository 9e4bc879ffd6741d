"""The config, and how it complains."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.config_file import ConfigError, default_path, load

GOOD = '[tasks.banking]\nhead = "banking77"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "crossover.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text), environ)
    return caught.value.problems


def test_five_mistakes_are_named_at_once_with_line_and_key(tmp_path: Path) -> None:
    """An unknown key, a wrong type, a number out of range, a bad choice, a bad name: one line each."""
    found = problems(
        tmp_path,
        """[server]
prot = 8080
deadline_ms = "soon"
[cache]
lookup_ms = 0
[model]
engine = "tensorrt"
[tasks."my task"]
head = "banking77"
""",
    )
    assert len(found) == 5
    for line, key, word in [
        (2, "server.prot", "`port`"),
        (3, "server.deadline_ms", "'soon'"),
        (5, "cache.lookup_ms", ">= 1"),
        (7, "model.engine", "tensorrt"),
        (8, "tasks.my task", "the name"),
    ]:
        assert any(f"crossover.toml:{line}: {key}" in problem and word in problem for problem in found), (line, found)


def test_what_no_single_key_shows_is_found_too(tmp_path: Path) -> None:
    """A head that is not there, a key that is not set, a price nobody knows, an open door without keys."""
    found = problems(
        tmp_path,
        """[server]
host = "0.0.0.0"
[tasks.a]
head = "heads/missing"
[tasks.b]
[providers.x]
kind = "openai"
model = "gpt-9-nonsense"
""",
    )
    text = "\n".join(found)
    assert len(found) == 5
    for word in ("crossover learn --task a", "either `head`", "OPENAI_API_KEY", "gpt-9-nonsense", "[[auth.keys]]"):
        assert word in text


def test_the_environment_overrides_the_file_and_is_named_when_it_is_wrong(tmp_path: Path) -> None:
    """Values are read as TOML; what is not TOML is a string."""
    path = write(tmp_path, GOOD)
    config = load(
        path, {"CROSSOVER_CACHE__URL": "redis://h:1", "CROSSOVER_TASKS__BANKING__POLICY__THRESHOLD": "0.5"}
    ).config
    assert config.cache.url == "redis://h:1"
    assert config.tasks["banking"].policy.threshold == 0.5
    (problem,) = problems(tmp_path, GOOD, CROSSOVER_SERVER__PORT="70000")
    assert problem.startswith("environment variable CROSSOVER_SERVER__PORT")


def test_a_misplaced_secret_is_not_printed(tmp_path: Path) -> None:
    """Who puts a key where its hash belongs does not find it in a log."""
    (problem,) = problems(tmp_path, GOOD + '[[auth.keys]]\ntenant = "t"\nsha256 = "sk-CANARY"\n')
    assert "CANARY" not in problem
    assert "auth.keys.0.sha256" in problem


@pytest.mark.parametrize("text", ["[", "a = ", "\ufeff[tasks", "[tasks.banking]\nhead = 1\n", "tasks = 3\n"])
def test_a_broken_file_is_one_clear_line_not_a_traceback(tmp_path: Path, text: str) -> None:
    """Whatever stands in it."""
    assert all("crossover.toml" in problem for problem in problems(tmp_path, text))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(["server", "auth", "cache", "model", "tasks", "providers", "budget", "hardware", "zzz"]),
)
def test_no_value_anywhere_makes_a_traceback(tmp_path: Path, value: object, section: str) -> None:
    """A ConfigError or a config."""
    path = tmp_path / "crossover.toml"
    path.write_bytes(b"")
    from router import config_file

    tree = {"tasks": {"banking": {"head": "banking77"}}, section: value}
    found: list[str] = []
    config_file._check(config_file.Config, tree, (), config_file._Places(path, "", {}), found)
    try:
        msgspec.convert(tree, config_file.Config)
        valid = True
    except msgspec.ValidationError:
        valid = False
    assert valid == (not found)


def test_the_shipped_config_is_valid_and_explains_every_key() -> None:
    """Each key of each section stands in crossover.toml, if only commented out."""
    path = default_path()
    config = load(path, {}).config
    text = path.read_text(encoding="utf-8")
    for section in msgspec.structs.fields(type(config)):
        kind = section.type
        arguments = getattr(kind, "__args__", ())
        struct = arguments[-1] if arguments else kind
        for field in msgspec.structs.fields(struct):
            assert field.name in text, f"{section.name}.{field.name} is not explained"
