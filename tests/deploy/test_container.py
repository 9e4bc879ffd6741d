"""What can be said of image and compose file without a Docker engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from router.config_file import ConfigError, load

HASH = "ab" * 32


def has_compose() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0


def dockerfile(root: Path) -> list[tuple[str, str]]:
    """(instruction, the rest), continuation lines joined, comments gone."""
    text = (root / "deploy/Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def published(service: dict[str, Any]) -> list[str]:
    return service.get("ports", [])


def test_the_proxy_is_the_only_way_in_and_nothing_leaves_this_machine_unasked(compose: dict[str, Any]) -> None:
    ports = {name: published(service) for name, service in compose["services"].items() if published(service)}
    assert set(ports) == {"proxy", "prometheus", "grafana"}
    assert ports["proxy"] == ["${CROSSOVER_LISTEN:-127.0.0.1:8080}:8080"]
    for name in ("prometheus", "grafana"):
        assert all(port.startswith("127.0.0.1:") for port in ports[name])


def test_redis_is_reached_by_the_router_alone(compose: dict[str, Any]) -> None:
    members = {name for name, service in compose["services"].items() if "cache" in service["networks"]}
    assert members == {"redis", "router", "router-gpu"}
    assert compose["networks"]["cache"]["internal"] is True
    assert list(compose["services"]["redis"]["networks"]) == ["cache"]


def test_redis_is_a_bounded_cache_that_writes_nothing_to_disk(compose: dict[str, Any]) -> None:
    command = compose["services"]["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--maxmemory-policy"] == "allkeys-lfu"
    assert options["--maxmemory"] != "0"
    assert options["--save"] == ""
    assert options["--appendonly"] == "no"


def test_every_container_is_hardened_restarted_and_watched(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["restart"] == "unless-stopped", name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "healthcheck" in service or "build" in service, name  # the router's is in its image


def test_images_are_of_a_stated_version(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+", service["image"]), name


def test_what_compose_mounts_is_in_the_repository(root: Path, compose: dict[str, Any]) -> None:
    volumes = [volume for service in compose["services"].values() for volume in service.get("volumes", [])]
    binds = [volume.split(":")[0] for volume in volumes if volume.startswith("./")]
    assert binds
    assert [path for path in binds if not (root / path).exists()] == []
    assert {volume.split(":")[0] for volume in volumes} - set(binds) == set(compose["volumes"])


def test_one_of_the_two_routers_answers_to_the_name_the_proxy_and_prometheus_use(
    root: Path, compose: dict[str, Any]
) -> None:
    services = compose["services"]
    assert services["router"]["profiles"] == ["cpu"]
    assert services["router-gpu"]["profiles"] == ["gpu"]
    for network in ("serve", "watch"):
        assert services["router-gpu"]["networks"][network]["aliases"] == ["router"]
    assert "server router:8080" in (root / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    assert "router:8080" in (root / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8")


def test_every_variable_of_the_compose_file_is_explained(root: Path) -> None:
    used = set(re.findall(r"\$\{(\w+)", (root / "docker-compose.yml").read_text(encoding="utf-8")))
    named = set(re.findall(r"^(\w+)=", (root / "deploy/env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert used <= named
    assert named - used == {"COMPOSE_PROFILES"}


def test_the_containers_config_is_valid_with_the_environment_compose_gives(root: Path, compose: dict[str, Any]) -> None:
    environment = {
        name: re.sub(r"\$\{CROSSOVER_KEY_SHA256:[^}]*\}", HASH, re.sub(r"\$\{REDIS_PASSWORD:[^}]*\}", "word", value))
        for name, value in compose["x-router"]["environment"].items()
        if name.startswith("CROSSOVER_")
    }
    config = load(root / "deploy/config/crossover.toml", environment).config
    assert [(key.tenant, key.sha256) for key in config.auth.keys] == [("default", HASH)]
    assert config.cache.url == "redis://:word@redis:6379/0"


def test_the_containers_config_is_refused_without_an_api_key(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"auth\.keys"):
        load(root / "deploy/config/crossover.toml", {})


def test_the_proxy_outwaits_the_router_and_lets_its_errors_through(root: Path) -> None:
    server = load(root / "deploy/config/crossover.toml", {"CROSSOVER_AUTH__KEYS": _one_key()}).config.server
    text = (root / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")

    def value(name: str) -> int:
        found = re.search(rf"^\s*{name} (\d+)[sm];", text, re.MULTILINE)
        assert found, name
        return int(found[1])

    assert value("proxy_read_timeout") * 1000 > server.deadline_ms
    assert value("client_max_body_size") * 1024 * 1024 > server.max_body_bytes
    assert value("client_header_timeout") <= 5


def test_the_grace_period_outlasts_the_drain(root: Path, compose: dict[str, Any]) -> None:
    server = load(root / "deploy/config/crossover.toml", {"CROSSOVER_AUTH__KEYS": _one_key()}).config.server
    assert int(compose["x-router"]["stop_grace_period"].removesuffix("s")) > server.drain_s


def test_the_image_runs_as_nobody_special_and_takes_signals_itself(root: Path) -> None:
    steps = dockerfile(root)
    last_stage = steps[max(number for number, (name, _) in enumerate(steps) if name == "FROM") :]
    given = dict(last_stage)
    assert int(given["USER"].split(":")[0]) > 0
    entrypoint = json.loads(given["ENTRYPOINT"])  # exec form: no shell between the supervisor's SIGTERM and us
    assert entrypoint[:2] == ["crossover", "serve"]
    assert "/ready" in given["HEALTHCHECK"]


def test_no_library_in_the_image_reports_home(root: Path) -> None:
    given = " ".join(rest for name, rest in dockerfile(root) if name == "ENV")
    for variable in ("ORT_DISABLE_TELEMETRY=1", "HF_HUB_DISABLE_TELEMETRY=1"):
        assert variable in given


def test_the_image_is_told_nothing_the_command_does_not_know(root: Path) -> None:
    from router.cli.serve import serve

    entrypoint = json.loads(dict(dockerfile(root))["ENTRYPOINT"])
    with serve.make_context("serve", entrypoint[2:]) as context:
        assert str(context.params["host"]) == "0.0.0.0"


def test_everything_the_image_copies_or_packs_gets_past_dockerignore(root: Path) -> None:
    lines = (root / ".dockerignore").read_text(encoding="utf-8").split("\n")
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert "*" in lines  # an allow-list: keys and ledgers lying about stay out
    copied = [
        source
        for name, rest in dockerfile(root)
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
        if source != "."
    ]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    for path in [*copied, *wheel["packages"], *wheel["force-include"]]:
        assert any(path == entry or path.startswith(f"{entry}/") for entry in allowed), path
    assert [entry for entry in allowed if not (root / entry).exists()] == []


def test_every_package_the_image_installs_is_pinned(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def name(line: str) -> str:
        return re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower().replace("_", "-")

    pins = {name(line) for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line}
    assert {name(line) for line in project["dependencies"]} <= pins


@pytest.mark.skipif(not has_compose(), reason="docker has no compose plugin here")
@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_accepts_its_file(root: Path, tmp_path: Path, profile: str) -> None:
    env = tmp_path / "env"
    text = (root / "deploy/env.example").read_text(encoding="utf-8")
    env.write_text(re.sub(r"^(\w+)=$", r"\1=x", text, flags=re.MULTILINE), encoding="utf-8")
    command = ["docker", "compose", "--env-file", str(env), "--profile", profile, "config", "--quiet"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def _one_key() -> str:
    return f'[{{tenant = "default", sha256 = "{HASH}"}}]'
