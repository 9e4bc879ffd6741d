"""Budgets as they are configured, checked, told and measured. `tests/faults/test_budgets.py` spends them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cost.types import Budget, Intent, Outcome, Spent, Usage
from router.cli import cli
from router.config_file import ConfigError, Loaded, load
from router.http.ops import describe, update_gauges
from router.reporting import budget, budgets, budgets_used
from router.service import Service
from router.telemetry import MOST_MODELS, Telemetry

TASKS = '[tasks.banking]\nhead = "banking77"\n[tasks.cards]\nhead = "banking77"\n[cache]\nurl = "off"\n'
KEYS = "".join(
    f'[[auth.keys]]\ntenant = "{name}"\nsha256 = "{digit * 64}"\n' for name, digit in (("web", "0"), ("app", "1"))
)
PROVIDER = '[providers.a]\nkind = "openai"\nmodel = "gpt-6-luna"\nbase_url = "http://127.0.0.1:1/v1"\n'


def written(folder: Path, text: str) -> Loaded:
    path = folder / "crossover.toml"
    path.write_text(text)
    return load(path, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[budget.tasks]\nbankign = 1\n", "budget.tasks.bankign: there is no task bankign; did you mean `banking`?"),
        ("[budget.tasks]\nxyz = 1\n", "budget.tasks.xyz: there is no task xyz; known: banking, cards"),
        (
            f"{KEYS}[budget.tenants]\nwep = 1\n",
            "budget.tenants.wep: no key in [[auth.keys]] is for tenant wep; did you mean `web`?",
        ),
        ("[budget.tenants]\nweb = 1\n", "no key in [[auth.keys]] is for tenant web; known: local"),
        ("[budget.tenants]\nlocal = -1\n", "budget.tenants.local: is -1; expected float >= 0.0"),
        ('[budget]\nwhen_out = "stop"\n', "budget.when_out: is 'stop'; permitted: local, refuse"),
    ],
)
def test_a_limit_for_who_is_not_there_is_a_mistake_that_names_who_is(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        written(tmp_path, TASKS + text)
    (problem,) = caught.value.problems
    assert said in problem


def test_a_key_with_another_mistake_in_it_is_still_its_tenant_s(tmp_path: Path) -> None:
    keys = KEYS.replace("0" * 64, "0" * 63)
    with pytest.raises(ConfigError) as caught:
        written(tmp_path, f"{TASKS}{keys}[budget.tenants]\nweb = 1\n[auth.limits.web]\nrate = 1\n")
    (problem,) = caught.value.problems
    assert "sha256" in problem


def test_limits_are_of_the_command_line_too(tmp_path: Path) -> None:
    """It has no key, and is tenant local."""
    loaded = written(tmp_path, f"{TASKS}{KEYS}[budget.tenants]\nlocal = 0.25\n")
    assert budget(loaded.config) == Budget(10**9, {}, {"local": 250_000_000})
    assert loaded.config.tenants == ["web", "app", "local"]


def test_what_is_not_set_or_never_reached_is_said_at_start(tmp_path: Path) -> None:
    def notes(text: str) -> list[str]:
        return [note for note in written(tmp_path, TASKS + text).notes if "budget" in note]

    (note,) = notes(PROVIDER)
    assert "$1.00 a day" in note and "the local label" in note
    (note,) = notes(f'[budget]\nwhen_out = "refuse"\n{PROVIDER}')
    assert "refused (503)" in note
    assert notes(f"[budget]\nusd_per_day = 5\ntasks = {{ banking = 5 }}\n{PROVIDER}") == []
    (note,) = notes(f"[budget]\nusd_per_day = 5\ntasks = {{ banking = 6 }}\n{PROVIDER}")
    assert note.startswith("budget.tasks.banking is $6 a day, but budget.usd_per_day ($5)")


def test_check_prints_every_limit_and_what_comes_after_it(tmp_path: Path) -> None:
    text = (
        '[budget]\nusd_per_day = 2\nwhen_out = "refuse"\n[budget.tasks]\ncards = 0.5\n[budget.tenants]\nweb = 0.005\n'
    )
    loaded = written(tmp_path, TASKS + KEYS + text)
    told = CliRunner().invoke(cli, ["check", "--config", str(loaded.path)]).output
    for line in ("all: $2.00 a day", "task cards: $0.50 a day", "tenant web: $0.005 a day", "texts are refused"):
        assert line in told
    assert "the local label" in CliRunner().invoke(cli, ["check"]).output


def test_status_has_a_line_for_the_day_each_task_and_each_tenant(tmp_path: Path) -> None:
    config = written(tmp_path, f"{TASKS}{KEYS}[budget]\nusd_per_day = 2\ntasks = {{ cards = 0.5 }}\n").config
    spent = Spent(3 * 10**8, {"cards": 10**8, "gone": 5}, {"web": 2 * 10**8})
    assert budgets(config, spent) == {
        "usd_per_day": 2.0,
        "is_default": False,
        "spent_today_usd": 0.3,
        "when_out": "local",
        "tasks": {
            "banking": {"usd_per_day": None, "spent_today_usd": 0.0},
            "cards": {"usd_per_day": 0.5, "spent_today_usd": 0.1},
        },
        "tenants": {
            "web": {"usd_per_day": None, "spent_today_usd": 0.2},
            "app": {"usd_per_day": None, "spent_today_usd": 0.0},
        },
    }


def test_metrics_have_a_share_for_the_day_each_limited_task_and_the_tenant_nearest_its_limit(tmp_path: Path) -> None:
    """A limit of nothing is none that could be used up."""
    text = "[budget]\ntasks = { cards = 0.5, banking = 0 }\ntenants = { web = 0.4, app = 4 }\n"
    config = written(tmp_path, TASKS + KEYS + text).config
    spent = Spent(3 * 10**8, {"cards": 10**8}, {"web": 2 * 10**8, "app": 10**9})
    shares = {("day", ""): 0.3, ("task", "cards"): 0.2, ("tenant", ""): 0.5}
    assert budgets_used(config, spent) == pytest.approx(shares)


def test_a_reload_takes_budgets_over_from_the_next_call_on(tmp_path: Path) -> None:
    """Limits, what comes after them, what is told of them; a limit that is gone is in no metric any more."""

    async def main() -> None:
        limits = '[budget]\nwhen_out = "refuse"\ntasks = { cards = 0.5 }\ntenants = { web = 0.001 }\n'
        service = Service(written(tmp_path, TASKS + KEYS + limits))
        await service.open()
        try:
            await service.wait_until_ready()
            at_us = int(service.started * 1e6)
            await service.ledger.reserve(Intent("r", 0, at_us, "web", "cards", "p", "m", 250_000_000))
            update_gauges(service)
            value = service.telemetry.registry.get_sample_value
            used = "crossover_budget_used_ratio"
            assert value(used, {"scope": "task", "task": "cards"}) == 0.5
            assert value(used, {"scope": "tenant", "task": ""}) == 250.0
            assert describe(service)["budget"]["tenants"]["web"] == {"usd_per_day": 0.001, "spent_today_usd": 0.25}
            assert service._refuses == {"budget"}
            limits = "[budget]\nusd_per_day = 0.5\ntasks = { banking = 0.125 }\n"
            adopted = await service.reload(written(tmp_path, TASKS + KEYS + limits))
            assert adopted.needs_restart == []
            assert service._refuses == set()
            assert service.chain.terms.budget == Budget(500_000_000, {"banking": 125_000_000}, {})
            update_gauges(service)
            assert value(used, {"scope": "day", "task": ""}) == 0.5
            assert value(used, {"scope": "task", "task": "cards"}) is None
            assert value(used, {"scope": "tenant", "task": ""}) is None
            told = describe(service)["budget"]["tasks"]
            assert told["cards"] == {"usd_per_day": None, "spent_today_usd": 0.25}
        finally:
            await service.close()

    asyncio.run(main())


def attempts(telemetry: Telemetry) -> dict[tuple[Any, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in telemetry.registry.collect()
        for sample in family.samples
        if sample.name in ("crossover_spend_usd_total", "crossover_provider_attempts_total")
    }


def test_a_paid_call_is_counted_by_how_it_ended_and_how_its_price_is_known() -> None:
    telemetry = Telemetry()
    for outcome in (
        Outcome("settled", usage=Usage(input=1), cost_nano=10**9),
        Outcome("settled", usage=Usage(input=1, estimated=True), cost_nano=2 * 10**9),
        Outcome("uncertain", cost_nano=4 * 10**9, error="TimedOut"),
        Outcome("unbilled", error="AuthFailed"),
    ):
        telemetry.attempted("a", "m", outcome)
    assert attempts(telemetry) == {
        ("a", "answered"): 2,
        ("a", "TimedOut"): 1,
        ("a", "AuthFailed"): 1,
        ("a", "m", "settled"): 1,
        ("a", "m", "estimated"): 2,
        ("a", "m", "uncertain"): 4,
        ("a", "m", "unbilled"): 0,
    }


def test_a_server_that_makes_up_model_names_does_not_fill_the_metrics() -> None:
    telemetry = Telemetry()
    for number in range(3 * MOST_MODELS):
        telemetry.attempted("a", f"made-up-{number}", Outcome("settled", cost_nano=1))
    assert len(attempts(telemetry)) == MOST_MODELS + 2  # "other", and the calls
