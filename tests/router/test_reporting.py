"""Prices and machines of the config, in the terms of the crossover report."""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path

import pytest

from cost.hardware import Hardware
from cost.prices import PriceTable
from cost.types import Usage
from router.config_file import ConfigError, load
from router.reporting import hardware, price_table

ROOT = Path(__file__).resolve().parents[2]
TASK = '[tasks.banking]\nhead = "banking77"\n'
PROVIDER = '[providers.x]\nkind = "openai-chat"\nmodel = "mine"\nbase_url = "http://localhost:1"\n[providers.x.price]\n'


def problems(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.toml"
    path.write_text(TASK + text)
    with pytest.raises(ConfigError) as error:
        load(path, {})
    return "\n".join(error.value.problems)


def test_the_example_machines_are_those_that_the_page_speaks_of() -> None:
    found = {m.name: m for m in hardware(load(ROOT / "examples/hardware.toml", {}, serving=False).config) or ()}
    assert list(found) == ["cpu-box", "t4", "l4", "a10g", "h100", "endpoint"]
    assert found["cpu-box"].requests_per_second == 0, "it is measured"
    assert found["endpoint"] == Hardware(
        "endpoint",
        0.684,
        2000,
        "list price of a serverless GPU worker; capacity, cold start and idle window assumed",
        "autoscaled",
        15.0,
        60.0,
    )
    assert all("list price" in machine.basis for machine in found.values())


def test_a_machine_of_the_config_has_the_model_s_defaults_for_what_it_does_not_say(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[hardware.box]\nusd_per_hour = 0.1\nmin_replicas = 3\n")
    assert hardware(load(path, {}, serving=False).config) == [Hardware("box", 0.1, 0, min_replicas=3)]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("cold_start_s = 5", 'hardware.m.cold_start_s: this belongs to billing = "autoscaled"'),
        ("idle_s = 5", 'hardware.m.idle_s: this belongs to billing = "autoscaled"'),
        ("min_replicas = 0", "hardware.m.min_replicas: always on means at least 1"),
        ('billing = "autoscaled"\nthis_machine = true', "hardware.m.this_machine: the machine that serves is on"),
        ('billing = "spot"', "always_on, autoscaled"),
    ],
)
def test_what_does_not_fit_how_a_machine_is_paid_is_a_problem(tmp_path: Path, written: str, told: str) -> None:
    assert told in problems(tmp_path, f"[hardware.m]\nusd_per_hour = 1.0\n{written}\n")


def test_a_price_of_the_config_that_has_changed_holds_from_its_day_on(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    rows = "input = 1.0\noutput = 4.0\nsince = 2026-10-07\nsource = 'our contract'\n"
    path.write_text(TASK + PROVIDER + rows + "earlier = [{ input = 2.0, output = 4.0 }]\n")
    table = price_table(load(path, {}).config)
    used = Usage(input=1_000_000)
    assert table.cost_nano("mine", used) == 1_000_000_000
    assert table.cost_nano("mine", used, on=date(2026, 10, 6)) == 2_000_000_000
    assert table.models["mine"].source == "our contract"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("earlier = [{ input = 2.0, output = 4.0 }]", "price.since: each price after the first"),
        (
            "since = 2026-01-02\nearlier = [{ input = 2.0, output = 4.0, since = 2026-01-03 }]",
            "price.earlier: the oldest price comes first",
        ),
        ("since = 9999-01-02", "price.since: 9999-01-02 is not yet"),
    ],
)
def test_prices_without_an_order_in_time_are_a_problem(tmp_path: Path, rows: str, told: str) -> None:
    assert told in problems(tmp_path, f"{PROVIDER}input = 1.0\noutput = 4.0\n{rows}\n")


def test_an_old_price_list_is_said_at_start_where_there_is_something_to_pay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """61 days after the list was made."""
    made = PriceTable.load().as_of.toordinal() - date(1970, 1, 1).toordinal()
    path = tmp_path / "c.toml"
    path.write_text(TASK + PROVIDER + "input = 1.0\noutput = 4.0\n")

    def told(days: int) -> list[str]:
        monkeypatch.setattr(time, "time", lambda: (made + days) * 86_400.0)
        return [note for note in load(path, {}).notes if "price list" in note]

    assert told(60) == []
    assert len(told(61)) == 1
    path.write_text(TASK)
    assert told(61) == []
