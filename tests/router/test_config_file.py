"""The config, and how it complains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cost.types import Usage
from router.config import Config
from router.config_file import ConfigError, default_path, load, load_tree
from router.paths import model_source
from router.reporting import price_table

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


def test_one_run_names_what_is_wrong_with_a_key_and_what_is_wrong_between_keys(tmp_path: Path) -> None:
    """An unknown key and a bad threshold do not hide the missing head, the open door, the key and the price."""
    found = problems(
        tmp_path,
        """[server]
host = "0.0.0.0"
prot = 8080
[tasks.a]
head = "heads/missing"
[tasks.a.policy]
threshold = 7
[providers.x]
kind = "openai"
model = "gpt-9-nonsense"
""",
    )
    assert len(found) == 6
    for word in ("server.prot", "threshold", "no head at", "[[auth.keys]]", "OPENAI_API_KEY", "gpt-9-nonsense"):
        assert sum(word in problem for problem in found) == 1, word


@pytest.mark.parametrize(
    "text",
    [
        '[tasks.a]\nhead = 1\n[server]\nhost = "127.0.0.1"\n',
        '[server]\nhost = "0.0.0.0"\n[tasks.a]\nhead = "banking77"\n[[auth.keys]]\ntenant = "t"\nsha256 = "x"\n',
        '[tasks.a]\nhead = "banking77"\nover_length = "escalate"\n[providers.x]\nkind = "cohere"\nmodel = "m"\n',
        "[tasks]\na = 3\n",
    ],
)
def test_what_was_given_with_a_mistake_is_not_called_absent(tmp_path: Path, text: str) -> None:
    """One mistake, one problem."""
    assert len(problems(tmp_path, text)) == 1


@pytest.mark.parametrize("value", ["models/m", "./m", "../m", "~/no-such-m", "/no/such/m"])
def test_a_model_that_is_meant_to_be_a_folder_and_is_none_is_a_problem(tmp_path: Path, value: str) -> None:
    """A hub id is two names and one slash; `models/m` is one, until there is such a folder."""
    text = f'[tasks.s]\nmodel = "{value}"\n'
    if value == "models/m":
        (note, *_) = [note for note in load(write(tmp_path, text), {}).notes if "hub" in note]
        assert "[tasks.s] models/m" in note
        (tmp_path / "models" / "m").mkdir(parents=True)
        loaded = load(tmp_path / "crossover.toml", {})
        assert not [note for note in loaded.notes if "hub" in note]
        assert model_source(loaded.path, value) == str((tmp_path / "models" / "m").resolve())
        return
    (problem,) = problems(tmp_path, text)
    assert "tasks.s.model: there is no folder" in problem
    (problem,) = problems(tmp_path, f'{GOOD}[model]\nsource = "{value}"\n')
    assert "model.source: there is no folder" in problem


def test_a_relative_model_folder_is_what_the_local_model_is_told_to_load(tmp_path: Path) -> None:
    """Seen from the config's folder, not from where the command was started; a revision is for the hub only."""
    from router.wiring import model_settings, task_specs

    for name in ("encoder", "sst2"):
        (tmp_path / name).mkdir()
    text = f"""{GOOD}[model]\nsource = "encoder"\n[tasks.s]\nmodel = "sst2"\n
[tasks.h]\nmodel = "owner/name"\nrevision = "abc"\n"""
    loaded = load(write(tmp_path, text), {})
    assert model_settings(loaded).source == str(tmp_path / "encoder")
    assert [spec.model for spec in task_specs(loaded)] == [None, str(tmp_path / "sst2"), "owner/name@abc"]
    (problem,) = problems(tmp_path, '[tasks.s]\nmodel = "sst2"\nrevision = "abc"\n')
    assert "tasks.s.revision" in problem
    (problem,) = problems(tmp_path, GOOD + 'revision = "abc"\n')
    assert "tasks.banking.revision" in problem


@pytest.mark.parametrize(
    "section", ["[tasks.banking.policy.labels]\n{} = 0.9", '[tasks.banking.descriptions]\n{} = "x"']
)
def test_a_label_that_the_head_does_not_have_is_a_problem(tmp_path: Path, section: str) -> None:
    """With those that look like it."""
    load(write(tmp_path, GOOD + section.format("card_arrival")), {})
    (problem,) = problems(tmp_path, GOOD + section.format("card_arival"))
    assert "card_arival" in problem
    assert "card_arrival" in problem.split("it has")[1]


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


def test_a_misspelt_variable_is_named(tmp_path: Path) -> None:
    """A section that nobody knows is a problem; one underscore too few, which others may set too, a note."""
    (problem,) = problems(tmp_path, GOOD, CROSSOVER_SEVER__PORT="80")
    assert problem.startswith("environment variable CROSSOVER_SEVER__PORT (sever): unknown key; did you mean `server`")
    notes = load(write(tmp_path, GOOD), {"CROSSOVER_SERVER_PORT": "80", "CROSSOVER_STATE_DIR": "x"}).notes
    (note,) = [note for note in notes if "variable" in note]
    assert "CROSSOVER_SERVER_PORT is not read; did you mean CROSSOVER_SERVER__PORT" in note


def test_a_bad_choice_is_answered_with_the_good_ones(tmp_path: Path) -> None:
    """And a pattern with what fits it, not with the expression."""
    text = GOOD + 'over_length = "cut"\n[providers.x]\nkind = "antropic"\nmodel = "m"\n[cache]\nurl = "localhost"\n'
    found = {problem.split(": ")[1]: problem for problem in problems(tmp_path, text)}
    assert found["providers.x.kind"].endswith(
        "is 'antropic'; permitted: anthropic, openai, openai-decisions, openai-chat"
    )
    assert found["tasks.banking.over_length"].endswith("is 'cut'; permitted: escalate, truncate, reject")
    assert "redis://localhost:6379/0" in found["cache.url"]
    assert "regex" not in found["cache.url"]


def test_the_environment_finds_a_name_whatever_its_case(tmp_path: Path) -> None:
    """[tasks.Banking] is not made a second time in lower case."""
    path = write(tmp_path, '[tasks.Banking]\nhead = "banking77"\n')
    config = load(path, {"CROSSOVER_TASKS__BANKING__POLICY__THRESHOLD": "0.5"}).config
    assert list(config.tasks) == ["Banking"]
    assert config.tasks["Banking"].policy.threshold == 0.5


def test_the_environment_gives_text_as_it_is_where_text_is_wanted(tmp_path: Path) -> None:
    """A secret of digits is no number, a path named `true` no truth."""
    path = write(tmp_path, GOOD)
    environ = {"CROSSOVER_CACHE__SECRET": "123456", "CROSSOVER_LEDGER__PATH": "true", "CROSSOVER_SERVER__PORT": "99"}
    config = load(path, environ).config
    assert (config.cache.secret, config.ledger.path, config.server.port) == ("123456", "true", 99)


def test_an_override_that_can_not_be_applied_is_a_problem(tmp_path: Path) -> None:
    """A list has no names in it; a section that nobody knows is one."""
    key = f'[[auth.keys]]\ntenant = "t"\nsha256 = "{"0" * 64}"\n'
    (problem,) = problems(tmp_path, GOOD + key, CROSSOVER_AUTH__KEYS__0__TENANT="u")
    assert "CROSSOVER_AUTH__KEYS__0__TENANT: auth.keys is not a section" in problem
    (problem,) = problems(tmp_path, GOOD, CROSSOVER_CASH__URL="off")
    assert "CROSSOVER_CASH__URL" in problem or "cash" in problem


@pytest.mark.parametrize(
    "text",
    [
        '[[auth.keys]]\ntenant = "sk CANARY"\nsha256 = "sk-CANARY"\nescalate = "sk-CANARY"\n',
        '[auth]\nadmin = ["sk-CANARY"]\n',
        'auth = "sk-CANARY"\n',
        '[providers.x]\nkind = "openai"\nmodel = "gpt-6-luna"\napi_key_env = "sk-CANARY"\n',
        '[providers.x]\nkind = "openai"\nmodel = "gpt-6-luna"\napi_key_env = "sk_CANARY"\n',
        '[providers.x]\nkind = "openai"\nmodel = "gpt-6-luna"\napi_key_env = "CANARYCANARYCANARYCANARY"\n',
        '[providers.x]\nkind = "openai"\nmodel = "gpt-6-luna"\nbase_url = "CANARY"\n',
        '[providers.x]\nkind = "openai"\nmodel = "gpt-6-luna"\nbase_url = "http://me:CANARY@example.org"\n',
        '[providers.x]\nkind = "openai"\nmodel = "gpt-6-luna"\nbase_url = "https://h:CANARY/"\n',
        '[providers]\nx = "sk-CANARY"\n',
        'providers = "sk-CANARY"\n',
        '[cache]\nurl = "rediss:CANARY"\n',
        '[cache]\nurl = "redis://user:pa/CANARY@host"\n',
        '[cache]\nsecret = ["CANARY"]\n',
    ],
)
def test_a_value_that_may_be_a_secret_is_not_printed(tmp_path: Path, text: str) -> None:
    """Wherever somebody may put one, and whatever is wrong with it."""
    found = problems(tmp_path, text if text.startswith(("auth", "providers =")) else GOOD + text)
    assert found
    assert not [problem for problem in found if "CANARY" in problem]


def test_readers_need_no_keys_no_heads_and_no_tasks(tmp_path: Path) -> None:
    """`crossover report` works on the machine of whoever pays."""
    path = write(tmp_path, '[providers.x]\nkind = "openai"\nmodel = "gpt-9-nonsense"\n[tasks.a]\nhead = "gone"\n')
    assert load(path, {}, serving=False).config.providers["x"].model == "gpt-9-nonsense"
    assert load_tree({}, path, {}, serving=False).config.tasks == {}


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
    left = config_file._check(config_file.Config, tree, (), config_file._Places(path, "", {}), found)
    msgspec.convert(left, config_file.Config)  # what is left can be used, whatever was wrong
    try:
        msgspec.convert(tree, config_file.Config)
        valid = True
    except msgspec.ValidationError:
        valid = False
    assert valid == (not found)


def unexplained(struct: type[msgspec.Struct], text: str) -> Iterator[str]:
    """What of its keys, and of those of the structs in it, does not stand in the text of a config with its bounds."""
    for name, hint in get_type_hints(struct, include_extras=True).items():
        kinds = parts(hint)
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
        for kind in inner:
            yield from unexplained(kind, text)
        if inner:
            continue
        lines = [found.group() for found in re.finditer(rf"^(# )?{name} = .*(\n +#.*)*", text, re.MULTILINE)]
        bounds = [
            f"{bound:,.12g}"
            for meta in kinds
            if isinstance(meta, msgspec.Meta)
            for bound in (meta.ge, meta.gt, meta.le, meta.lt, meta.max_length)
            if bound is not None
        ]
        if not any(all(re.search(rf"(?<![\d,.]){bound}(?![\d,.]*\d)", line) for bound in bounds) for line in lines):
            yield f"{struct.__name__}.{name}: {' and '.join(bounds) or 'nothing'}"


def parts(hint: Any) -> list[Any]:
    """A type and all that it is made of, annotations too; but not the keys of a mapping."""
    if get_origin(hint) is dict:
        return parts(get_args(hint)[1])
    inner = () if get_origin(hint) is Literal else get_args(hint)
    return [hint, *(part for each in inner for part in parts(each))]


def test_the_shipped_config_is_valid_and_explains_every_key() -> None:
    """Each key of each section stands in crossover.toml with its bounds, if only commented out."""
    path = default_path()
    text = path.read_text(encoding="utf-8")
    load(path, {})
    assert list(unexplained(Config, text)) == []


@pytest.mark.parametrize(
    ("line", "missed"),
    [
        (r"# port = .*", "Server.port: 0 and 65,535"),
        (r"(?<=# port = 8080).*", "Server.port: 0 and 65,535"),
        (r"(?<=to )65,536; default", "Model.max_tokens: 8 and 65,536"),
        (r"# burst = .*", "Limit.burst: 1 and 1,000,000"),
        (r"# cache_read = .*", "Price.cache_read: 0 and 1,000,000"),
        (r"# escalate = .*", "Policy.escalate: nothing"),
    ],
)
def test_a_key_without_its_line_or_bounds_is_missed(line: str, missed: str) -> None:
    """The search above, shown to find what it looks for."""
    text = default_path().read_text(encoding="utf-8")
    assert missed in list(unexplained(Config, re.sub(line, "", text)))


KEYS = {"ANTHROPIC_API_KEY": "k", "OPENAI_API_KEY": "k"}


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ('kind = "openai"\nmodel = "gpt-6-luna"\nregion = "us-east-1"', "region", 'via = "bedrock" and "vertex"'),
        ('kind = "openai"\nmodel = "gpt-6-luna"\nproject = "p"', "project", 'via = "vertex"'),
        ('kind = "openai"\nmodel = "gpt-6-luna"\napi_version = "1"', "api_version", 'via = "azure"'),
        ('kind = "openai"\nmodel = "gpt-6-luna"\nstructured = "json"', "structured", 'kind = "openai-chat"'),
        ('kind = "anthropic"\nmodel = "claude-haiku-5-5"\neffort = "minimal"', "effort", '"low" or more'),
        ('kind = "openai-decisions"\nmodel = "gpt-6-luna"\neffort = "low"', "effort", "take it out"),
        ('kind = "openai-decisions"\nmodel = "gpt-6-luna"\nthinking_tokens = 5', "thinking_tokens", "take it out"),
        ('kind = "openai-decisions"\nmodel = "gpt-6-sol"', "model", "'gpt-6-sol/decisions'"),
        (
            'kind = "openai-chat"\nmodel = "m"\nbase_url = "http://localhost:8000/v1"',
            "model",
            "usd_per_hour for a server",
        ),
        ('kind = "openai-chat"\nmodel = "m"\nusd_per_hour = 1.2', "usd_per_hour", "base_url"),
        (
            'kind = "openai-chat"\nmodel = "m"\nbase_url = "http://localhost:8000/v1"\nusd_per_hour = 1.2\n'
            "price = { input = 1.0, output = 1.0 }",
            "usd_per_hour",
            "by the hour or by the token",
        ),
        ('kind = "anthropic"\nmodel = "claude-haiku-5-5"\nvia = "bedrock"', "region", "AWS_REGION"),
        ('kind = "openai"\nmodel = "gpt-6-luna"\nvia = "vertex"\nregion = "global"', "project", "GOOGLE_CLOUD_PROJECT"),
        ('kind = "openai"\nmodel = "gpt-6-luna"\nvia = "azure"', "base_url", "https://RESOURCE.openai.azure.com"),
        (
            'kind = "openai-decisions"\nmodel = "gpt-6-luna"\nvia = "azure"\nbase_url = "https://r.openai.azure.com"',
            "via",
            "only to be had from OpenAI",
        ),
    ],
)
def test_a_providers_setting_that_means_nothing_there_is_named_with_what_to_do(
    tmp_path: Path, section: str, key: str, words: str
) -> None:
    environ = KEYS | {"AWS_BEARER_TOKEN_BEDROCK": "k", "AZURE_OPENAI_API_KEY": "k", "TOKEN": "k"}
    if "vertex" in section:
        section += '\napi_key_env = "TOKEN"'
    (problem,) = problems(tmp_path, f"{GOOD}[providers.x]\n{section}\n", **environ)
    assert f"providers.x.{key}: " in problem
    assert words in problem


@pytest.mark.parametrize(
    "section",
    [
        'kind = "openai-decisions"\nmodel = "gpt-6-luna"',
        'kind = "openai-decisions"\nmodel = "gpt-6-luna/decisions"',
        'kind = "openai-chat"\nmodel = "m"\nbase_url = "http://127.0.0.1:8000/v1"\nusd_per_hour = 1.2',
        'kind = "openai-chat"\nmodel = "gemini-3.8-flash"\nbase_url = "https://g.example.com/v1beta/openai/"',
        'kind = "anthropic"\nmodel = "claude-sonnet-5-5"\neffort = "low"\nthinking_tokens = 8_000',
        'kind = "anthropic"\nmodel = "claude-haiku-5-5"\nvia = "bedrock"\nregion = "eu-west-1"',
        'kind = "openai"\nmodel = "gpt-6-luna"\nvia = "azure"\nbase_url = "https://r.openai.azure.com"',
    ],
)
def test_every_kind_of_provider_can_be_configured_and_made(tmp_path: Path, section: str) -> None:
    from router.wiring import make_provider

    environ = KEYS | {"AWS_BEARER_TOKEN_BEDROCK": "k", "AZURE_OPENAI_API_KEY": "k"}
    config = load(write(tmp_path, f"{GOOD}[providers.x]\n{section}\n"), environ).config
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        made = make_provider("x", config)
    assert made.model == config.providers["x"].priced_as


def test_an_example_with_a_label_that_the_head_does_not_have_is_a_problem(tmp_path: Path) -> None:
    examples = '[[tasks.banking.examples]]\ntext = "where is it?"\nlabel = "{}"\n'
    load(write(tmp_path, GOOD + examples.format("card_arrival")), {})
    (problem,) = problems(tmp_path, GOOD + examples.format("card_arrival") + examples.format("card_arival"))
    assert "crossover.toml:6: tasks.banking.examples.1" in problem
    assert "'card_arival'" in problem
    assert "card_arrival" in problem
    assert "where is it?" not in problem


def test_a_head_with_more_labels_than_a_decision_takes_is_found_before_the_first_call(tmp_path: Path) -> None:
    head = tmp_path / "many"
    head.mkdir()
    labels = [{"name": f"label {number}"} for number in range(256)]
    (head / "manifest.json").write_text(msgspec.json.encode({"labels": labels}).decode())
    section = '[providers.x]\nkind = "openai-decisions"\nmodel = "gpt-6-luna"\n'
    (problem,) = problems(tmp_path, f'[tasks.many]\nhead = "many"\n{section}', **KEYS)
    assert "providers.x.kind" in problem
    assert "255 labels at most and the head of task many has 256" in problem
    never = '[tasks.many]\nhead = "many"\n[tasks.many.policy]\nescalate = "never"\n'
    load(write(tmp_path, never + section), KEYS)


@pytest.mark.parametrize(
    ("more", "cost"), [("", None), (", batch_input = 1.0, batch_output = 2.0", 1_000_000_000 + 2_000_000_000)]
)
def test_a_price_of_the_config_is_for_batches_only_if_it_says_so(tmp_path: Path, more: str, cost: int | None) -> None:
    price = "input = 2.0, output = 4.0" + more
    written = f'[providers.x]\nkind = "openai"\nmodel = "mine"\nprice = {{ {price} }}\n'
    path = tmp_path / "c.toml"
    path.write_text(written)
    table = price_table(load(path, {}, serving=False).config)
    used = Usage(input=1_000_000, output=1_000_000)
    assert table.cost_nano("mine", used) == 6_000_000_000
    assert table.cost_nano("mine", used, batch=True) == cost
