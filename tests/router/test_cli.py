"""The command, as a person or a script uses it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LIGHT = ["torch", "transformers", "litestar", "onnxruntime", "anthropic", "openai", "sklearn"]


def crossover(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "router", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def imported(arguments: list[str], **environment: str) -> set[str]:
    """The top-level modules that a command has imported when it ends."""
    code = (
        "import sys\nfrom router.cli import cli\n"
        f"try: cli({arguments!r})\nexcept SystemExit: pass\n"
        "print('MODULES', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_help_imports_nothing_but_click() -> None:
    """So it is instant; every command stands in it."""
    assert not imported(["--help"]) & {*LIGHT, "rich", "msgspec", "redis", "numpy"}
    text = crossover("--help").stdout
    for name in ("serve", "demo", "check", "classify", "learn", "report", "cache", "ledger", "simulate-frontier"):
        assert name in text


@pytest.mark.parametrize("command", ["serve", "demo", "check", "classify", "learn", "report", "cache", "ledger"])
def test_every_command_explains_itself(command: str) -> None:
    """Exit 0, with its options."""
    done = crossover(command, "--help")
    assert done.returncode == 0
    assert "Usage: crossover" in done.stdout


@pytest.mark.parametrize(
    "command", [["report"], ["cache", "ls"], ["ledger", "verify"], ["check"], ["report", "--json"]], ids=" ".join
)
def test_reports_and_the_cache_are_looked_into_without_the_model(command: list[str]) -> None:
    """No torch, no transformers, no Litestar."""
    assert not imported(command) & set(LIGHT)


def test_check_names_all_mistakes_and_exits_with_2(tmp_path: Path) -> None:
    """Five keys, and that no task is left; nothing is started."""
    config = tmp_path / "crossover.toml"
    config.write_text('[server]\nprot = 1\nport = 99999\n[cache]\nttl_s = "x"\n[model]\nengine = "y"\n[taks.a]\n')
    done = crossover("check", "--config", str(config))
    assert done.returncode == 2
    for key in ("server.prot", "server.port", "cache.ttl_s", "model.engine", "taks"):
        assert key in done.stderr
    assert len(done.stderr.strip().splitlines()) == 7
    served = crossover("serve", "--config", str(config))
    assert (served.returncode, served.stderr) == (2, done.stderr)


def test_a_config_that_is_not_there_is_one_line() -> None:
    """With what to do."""
    done = crossover("check", "--config", "nowhere.toml")
    assert done.returncode == 2
    assert "nowhere.toml" in done.stderr
    assert "Traceback" not in done.stderr


def one_line(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """Exit code 2 and, but for notes, one line for a person."""
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    for text in said:
        assert text in line


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["classify", "hello"]], ids=["serve", "classify"])
def test_what_can_not_be_opened_at_start_is_one_line(command: list[str], tmp_path: Path, banking: str) -> None:
    """A ledger in a place that takes none, and one that is no ledger."""
    config, other = tmp_path / "crossover.toml", tmp_path / "other.db"
    config.write_text(banking)
    (tmp_path / "file").write_text("")
    other.write_text("these are no books, but they are long enough to look like some\n" * 100)
    start = [*command, "--config", str(config)]
    one_line(crossover(*start, CROSSOVER_LEDGER__PATH=str(tmp_path / "file" / "l.db")), "ledger", "opened for writing")
    one_line(crossover(*start, CROSSOVER_LEDGER__PATH=str(other)), str(other))


@pytest.mark.parametrize(
    "command",
    [["serve", "--port", "0"], ["classify", "hello"], ["check", "--live"]],
    ids=lambda command: command[0],
)
def test_a_key_that_no_header_can_hold_is_named_by_its_variable(
    command: list[str], tmp_path: Path, banking: str
) -> None:
    """As it is when a file with a line break in it was read into the environment."""
    config = tmp_path / "crossover.toml"
    config.write_text(banking + '[providers.p]\nkind = "openai"\nmodel = "gpt-6-luna"\n')
    done = crossover(*command, "--config", str(config), OPENAI_API_KEY="sk-CANARY\n")
    assert done.returncode == 2
    assert "providers.p: the environment variable OPENAI_API_KEY has blanks" in done.stderr
    assert "CANARY" not in done.stderr
    assert "Traceback" not in done.stderr


def test_classify_says_why_a_model_could_not_be_loaded(tmp_path: Path) -> None:
    """The reason, not that it was not ready."""
    (tmp_path / "empty").mkdir()
    config = tmp_path / "crossover.toml"
    config.write_text('[tasks.s]\nmodel = "empty"\n')
    one_line(crossover("classify", "hello", "--config", str(config)), str(tmp_path / "empty"))


def test_serve_model_is_checked_like_a_config_and_heeds_the_environment(tmp_path: Path) -> None:
    """A folder that is not there, an address open to all, a setting out of range: all at once."""
    done = crossover(
        *("serve", "--model", "./nowhere"), CROSSOVER_SERVER__HOST="0.0.0.0", CROSSOVER_CACHE__LOOKUP_MS="0"
    )
    assert done.returncode == 2
    for text in ("--model: tasks.nowhere.model", "[[auth.keys]] is empty", "CROSSOVER_CACHE__LOOKUP_MS"):
        assert text in done.stderr
    (tmp_path / "m").mkdir()
    pinned = crossover("serve", "--model", str(tmp_path / "m"), "--revision", "abc")
    assert "only a model from the hub has a revision" in pinned.stderr
    path = tmp_path / "file"
    path.write_text("")
    noted = crossover("serve", "--model", "owner/name", "--port", "0", CROSSOVER_LEDGER__PATH=str(path / "l.db"))
    assert "note: [tasks.name] owner/name is taken from the model hub as it is today" in noted.stderr
    assert str(path / "l.db") in noted.stderr


def test_serve_refuses_options_that_contradict_each_other(tmp_path: Path, banking: str) -> None:
    """A revision of nothing; a model, which needs no config, and a config."""
    done = crossover("serve", "--revision", "abc")
    assert (done.returncode, "--revision belongs to --model" in done.stderr) == (2, True)
    (tmp_path / "crossover.toml").write_text(banking)
    done = crossover("serve", "--model", "owner/name", "--config", str(tmp_path / "crossover.toml"))
    assert (done.returncode, "one of --model and --config" in done.stderr) == (2, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_impatience_ends_the_service_cleanly(serve: Callable[..., Any], banking: str, number: signal.Signals) -> None:
    """Ctrl-C again and again until it is gone: exit 0, no traceback, Redis stopped, a ledger that adds up."""
    service = serve(banking)
    redis = service.redis
    service.answer("I lost my card")
    process = service.process
    while process.poll() is None:
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.03)
    assert process.returncode == 0, service.output
    assert "Traceback" not in service.output
    assert "CancelledError" not in service.output
    assert not redis.is_running()
    environment = {"CROSSOVER_STATE_DIR": str(service.state)}
    assert not list((service.state / "run").iterdir())
    assert crossover("ledger", "verify", "--config", str(service.config), **environment).returncode == 0


def test_weights_that_are_cut_short_are_named(tmp_path: Path) -> None:
    """In one line, by file, before anything is loaded."""
    from local_model import encoder

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((encoder.find().path / name).read_bytes())
    whole = (encoder.find().path / "model.safetensors").read_bytes()
    for size in (3, 1_000, len(whole) - 1):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(encoder.LoadError, match=r"model\.safetensors is damaged or cut short"):
            encoder.find(str(tmp_path))


def test_commands_to_copy_are_as_this_one_was_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By its path, unless it is the one on PATH; with quotes where a shell wants them."""
    from router.cli.options import this_command

    script = tmp_path / "my bin" / "crossover"
    script.parent.mkdir()
    script.write_text("")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert this_command() == f"'{script}'"
    monkeypatch.setenv("PATH", str(script.parent))
    assert this_command() == "crossover"
    monkeypatch.setattr(sys, "argv", ["/somewhere/router/__main__.py"])
    assert this_command() == "crossover"


def test_check_live_asks_each_provider_once(
    simulate: Callable[..., Any], with_frontier: Callable[..., str], tmp_path: Path
) -> None:
    """Key, model, schema, price; it says that the answers are simulated. A provider that is gone is a finding."""
    frontier = simulate()
    config = tmp_path / "crossover.toml"
    config.write_text(with_frontier(frontier.url))
    done = crossover("check", "--live", "--config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("first", "second"):
        assert f"live: {name}: ok: provider" in done.stdout
        assert f"live: {name}: ok: price" in done.stdout
    assert "simulated" in done.stdout
    frontier.stop()
    gone = crossover("check", "--live", "--config", str(config))
    assert gone.returncode == 1
    assert "live: first: error" in gone.stdout


def test_classify_answers_in_process_and_spends_nothing(tmp_path: Path) -> None:
    """No service, no provider; one line a text."""
    done = crossover("classify", "I lost my card", "how do I change my PIN")
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(line[0], line[2]) for line in lines] == [("lost_or_stolen_card", "local"), ("change_pin", "local")]


def test_classify_in_process_needs_no_web_framework() -> None:
    """It is the pipeline that answers."""
    found = imported(["classify", "I lost my card"])
    assert "onnxruntime" in found
    assert "litestar" not in found


def test_a_running_service_is_found_unaided(serve: Callable[..., Any], banking: str) -> None:
    """By `cache`, `report` and `ledger`, through its run file; its own URL serves `classify --url`."""
    service = serve(banking)
    environment = {"CROSSOVER_STATE_DIR": str(service.state)}
    through = crossover("classify", "--url", service.url, "--json", "I lost my card")
    request = json.loads(through.stdout)
    assert request["results"][0]["label"] == "lost_or_stolen_card"

    hit = crossover("cache", "get", " I lost my card ", **environment)
    assert hit.returncode == 0, hit.stdout + hit.stderr
    assert "'I lost my card'  (from ' I lost my card ')" in hit.stdout
    assert "lost_or_stolen_card, by local" in hit.stdout
    miss = crossover("cache", "get", "never asked", **environment)
    assert miss.returncode == 1
    assert "miss" in miss.stdout

    service.answer("I lost my card")
    (entry,) = json.loads(crossover("cache", "ls", "--json", **environment).stdout)
    assert (entry["label"], entry["source"], entry["hits"], entry["preview"]) == (
        "lost_or_stolen_card",
        "local",
        1,
        None,
    )
    (group,) = json.loads(crossover("cache", "stats", "--json", **environment).stdout)["groups"]
    assert (group["task"], group["entries"]) == ("banking", 1)

    report = json.loads(crossover("report", "--json", **environment).stdout)
    assert report["inputs"] == 2
    shown = crossover("ledger", "show", request["id"], **environment)
    assert shown.returncode == 0
    assert "lost_or_stolen_card" in shown.stdout
    assert crossover("ledger", "verify", **environment).returncode == 0


def test_hits_belong_to_the_entry_that_gave_them(
    serve: Callable[..., Any], simulate: Callable[..., Any], with_frontier: Callable[..., str]
) -> None:
    """The same text answered by the local model and by a frontier are two entries, each with its own hits."""
    service = serve(with_frontier(simulate().url, threshold=1.0))
    environment = {"CROSSOVER_STATE_DIR": str(service.state)}

    def hits() -> dict[str, int]:
        entries = json.loads(crossover("cache", "ls", "--json", **environment).stdout)
        return {entry["source"]: entry["hits"] for entry in entries}

    for route in ("local", "auto"):
        service.answer("I lost my card", route=route)
        service.wait_for(lambda route=route: service.answer("I lost my card", route=route)["source"] == "cache")
    before = hits()
    assert before["local"] >= 1
    assert before["frontier"] >= 1
    service.answer("I lost my card", route="auto")
    assert hits() == {"local": before["local"], "frontier": before["frontier"] + 1}


def test_a_cache_that_goes_away_while_it_is_read_is_one_line(tmp_path: Path, banking: str) -> None:
    """It answers the first PING and closes on the SCAN."""
    import socket
    import threading

    last: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                while b"PING" not in (asked := connection.recv(65_536)):
                    connection.sendall(b"+OK\r\n" * max(1, asked.count(b"*")))
                connection.sendall(b"+PONG\r\n")
                last.append(connection.recv(65_536))
            listener.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}?protocol=2"
        config = tmp_path / "crossover.toml"
        config.write_text(f'{banking}[cache]\nurl = "{url}"\n')
        one_line(crossover("cache", "ls", "--config", str(config)), "the cache does not answer")
        thread.join(10)
    assert b"SCAN" in last[0]


def test_a_password_of_redis_stands_in_no_file_and_no_log(
    serve: Callable[..., Any], banking: str, tmp_path: Path
) -> None:
    """The run file names only an embedded Redis, and is its owner's alone."""
    service = serve(f'{banking}[cache]\nurl = "unix://{tmp_path}/nobody.sock?password=CANARYpass"\n')
    (note,) = (service.state / "run").glob("*.json")
    assert note.stat().st_mode & 0o777 == 0o600
    written = [path for path in service.state.rglob("*") if path.is_file()]
    assert not [path for path in written if b"CANARYpass" in path.read_bytes()]
    assert "CANARYpass" not in service.output
    looked = crossover("cache", "ls", "--config", str(service.config), CROSSOVER_STATE_DIR=str(service.state))
    assert looked.returncode == 2
    assert "CANARYpass" not in looked.stdout + looked.stderr


def test_purge_is_a_dry_run_unless_it_is_confirmed(serve: Callable[..., Any], banking: str) -> None:
    """Then the running service misses at once."""
    service = serve(banking)
    environment = {"CROSSOVER_STATE_DIR": str(service.state)}
    service.answer("I lost my card")
    service.wait_for(lambda: service.answer("I lost my card")["source"] == "cache")
    dry = crossover("cache", "purge", "--task", "banking", **environment)
    assert "would remove 1 entries" in dry.stdout
    assert service.answer("I lost my card")["source"] == "cache"
    done = crossover("cache", "purge", "--task", "banking", "--yes", **environment)
    assert "removed 1" in done.stdout
    assert "did not confirm" not in done.stdout
    assert service.answer("I lost my card")["source"] == "local"
    (line,) = (service.state / "audit.log").read_text().splitlines()
    assert json.loads(line)["who"].startswith("cli:")
    assert (json.loads(line)["task"], json.loads(line)["outcome"]["entries"]) == ("banking", 1)


@pytest.mark.parametrize(
    "arguments", [[], ["--all", "--task", "banking"], ["--all", "a text"], ["--yes"]], ids=["nothing", "a", "b", "c"]
)
def test_a_purge_says_what_it_is_about(arguments: list[str], tmp_path: Path, banking: str) -> None:
    """Everything only with --all, and --all only for everything."""
    config = tmp_path / "crossover.toml"
    config.write_text(banking)
    one_line(crossover("cache", "purge", *arguments, "--config", str(config)), "say what to purge")


def test_a_purge_of_a_cache_that_is_down_is_an_error(tmp_path: Path, banking: str) -> None:
    """Exit code 2: nobody may believe that something is gone."""
    config = tmp_path / "crossover.toml"
    config.write_text(f'{banking}[cache]\nurl = "redis://127.0.0.1:1"\n')
    done = crossover("cache", "purge", "--all", "--yes", "--config", str(config))
    one_line(done, "the cache does not answer (ConnectionError)")
    assert "removed" not in done.stdout


def test_the_tables_of_the_cache_are_for_people_and_its_json_for_programs(
    serve: Callable[..., Any], banking: str
) -> None:
    service = serve(banking)
    environment = {"CROSSOVER_STATE_DIR": str(service.state), "COLUMNS": "120"}
    service.answer("I lost my card")
    service.wait_for(lambda: service.answer("I lost my card")["source"] == "cache")
    shown = crossover("cache", "stats", "--by", "hour", **environment).stdout
    for said in ("1 entries", "ratio", "memory", "replica ", "banking"):
        assert said in shown
    use = json.loads(crossover("cache", "stats", "--json", **environment).stdout)["use"]
    assert sum(row["misses"] for row in use) == 1
    assert sum(row["hits"] for row in use) >= 1
    listed = crossover("cache", "ls", "--source", "frontier", "--json", **environment)
    assert json.loads(listed.stdout) == []


def test_learn_and_serve_are_enough_for_an_own_task(serve: Callable[..., Any], tmp_path: Path) -> None:
    """A CSV of two columns with 20 labels: two commands, and the service answers for it."""
    words = "apple bread chair desk engine flower garden hammer island jacket kettle ladder mirror needle onion pencil"
    names = [*words.split(), "quilt", "rocket", "saddle", "teapot"]
    rows = [
        f'"{start} {name} {end}",about_{name}'
        for name in names
        for start, end in (
            ("where can I buy a", "please"),
            ("my", "is broken"),
            ("I would like to return the", "I bought"),
        )
    ]
    (tmp_path / "own.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "router", "learn", "--task", "shop", "--data", "own.csv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    service = serve((tmp_path / "crossover.toml").read_text().replace('head = "heads', f'head = "{tmp_path}/heads'))
    answer = service.answer("the teapot is broken", route="local")
    assert (answer["label"], answer["source"]) == ("about_teapot", "local")
