"""What README and docs point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from router.config_file import load

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(path for path in ROOT.rglob("*.md") if not {".venv", ".bench-venvs", ".git"} & set(path.parts))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_and_every_named_file_exists(document: Path) -> None:
    """Relative links, and files named in backticks with their folder."""
    text = document.read_text(encoding="utf-8")
    links = {link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    missing = [link for link in links if link and not (document.parent / link).exists()]
    folders = "router|local_model|providers|cost|tests|deploy|bench|docs|examples"
    plain = re.sub(r"\[[^\]]*\]\([^)]*\)", "", text)  # a link's own words may be short
    named = re.findall(rf"`((?:{folders})/[A-Za-z0-9_./-]+\.(?:py|md|toml|csv|yml|json))`", plain)
    generated = ("bench/out/", "heads/")
    missing += [name for name in named if not name.startswith(generated) and not (ROOT / name).exists()]
    assert not missing


def test_the_makefile_has_the_commands_that_readme_names() -> None:
    """Every `make x` of the README is a target."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", (ROOT / "README.md").read_text(), re.M))
    assert {"demo", "serve", "test"} <= {one or other for one, other in named} <= targets


OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_every_promise_of_the_operations_page_names_tests_that_exist_or_says_why_there_is_none() -> None:
    """Its rows are all there, each once."""
    rows = re.findall(r"^\| ([RPMLOIS]\d+) \| ([^|]+) \| ([^|]+) \|$", OPERATIONS, re.M)
    wanted = {"R": 10, "P": 13, "M": 10, "L": 10, "O": 12, "I": 6, "S": 13}
    assert [row for row, _, _ in rows] == [f"{kind}{n}" for kind, last in wanted.items() for n in range(1, last + 1)]
    for row, _, shown in rows:
        named = re.findall(r"`(tests/[a-z_0-9/]+\.py)::(test_[a-z0-9_]+)`", shown)
        assert named or shown.startswith("No test"), row
        for path, test in named:
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), (row, path, test)


def test_the_operations_page_explains_every_alert() -> None:
    """By its name."""
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    assert alerts
    assert [alert for alert in alerts if alert not in OPERATIONS] == []


FRONTIER = (ROOT / "docs" / "frontier.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```toml\n(.*?)^```", FRONTIER, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.split("]")[0].strip("["))
def test_every_config_of_the_frontier_page_can_be_served(example: str, tmp_path: Path) -> None:
    """As it stands there, with the keys it names in the environment."""
    task = "" if "[tasks." in example else '[tasks.banking]\nhead = "banking77"\n'
    path = tmp_path / "crossover.toml"
    path.write_text(task + example)
    variables = ["ANTHROPIC_API_KEY", "OPENAI_API_KEY", "AWS_BEARER_TOKEN_BEDROCK", "AZURE_OPENAI_API_KEY"]
    assert load(path, dict.fromkeys([*variables, *re.findall(r'api_key_env = "(\w+)"', example)], "key")).config.tasks


def test_the_frontier_page_shows_every_kind_and_every_cloud() -> None:
    assert len(EXAMPLES) >= 8
    for name in ("anthropic", "openai", "openai-decisions", "openai-chat", "bedrock", "vertex", "azure"):
        assert any(f'"{name}"' in example for example in EXAMPLES), name
