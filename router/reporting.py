"""What the config says about money, in the terms of `cost`: prices and hardware. Needs no model library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cost.comparison import Comparison, all_kept
from cost.hardware import Hardware
from cost.prices import Price, PriceTable
from cost.types import NANO_PER_USD, Budget, Spent
from router import paths
from router.config import Config, Rates
from router.config import Hardware as ConfiguredHardware


def price_table(config: Config) -> PriceTable:
    """The shipped table, with the config's own prices on top."""
    return PriceTable.load(
        {
            p.priced_as: [own_price(rates) for rates in (*p.price.earlier, p.price)]
            for p in config.providers.values()
            if p.price is not None
        }
    )


def budget(config: Config) -> Budget:
    def nano(usd: float) -> int:
        return round(usd * NANO_PER_USD)

    given = config.budget
    return Budget(
        nano(config.budget_usd),
        {task: nano(usd) for task, usd in given.tasks.items()},
        {tenant: nano(usd) for tenant, usd in given.tenants.items()},
    )


def budgets(config: Config, spent: Spent) -> dict[str, Any]:
    """For /v1/status: what may be spent in this UTC day, and what is, set aside included. Dollars; None: no limit."""
    given = config.budget

    def each(names: Iterable[str], limits: Mapping[str, float], by: Mapping[str, int]) -> dict[str, Any]:
        return {
            name: {"usd_per_day": limits.get(name), "spent_today_usd": by.get(name, 0) / NANO_PER_USD} for name in names
        }

    return {
        "usd_per_day": config.budget_usd,
        "is_default": given.usd_per_day is None,
        "spent_today_usd": spent.day / NANO_PER_USD,
        "when_out": given.when_out,
        "tasks": each(config.tasks, given.tasks, spent.tasks),
        "tenants": each(config.tenants, given.tenants, spent.tenants),
    }


def budgets_used(config: Config, spent: Spent) -> dict[tuple[str, str], float]:
    """(scope, task) -> the share that is used. Of the tenants only the one nearest its limit counts: metrics are open
    to all, and name none. A limit of 0 can't be used up: nothing is to be paid."""

    def shares(limits: Mapping[str, float], by: Mapping[str, int]) -> dict[str, float]:
        return {name: by.get(name, 0) / NANO_PER_USD / usd for name, usd in limits.items() if usd}

    given = config.budget
    found = {("day", name): share for name, share in shares({"": config.budget_usd}, {"": spent.day}).items()}
    found |= {("task", name): share for name, share in shares(given.tasks, spent.tasks).items()}
    if tenants := shares(given.tenants, spent.tenants):
        found["tenant", ""] = max(tenants.values())
    return found


def hardware(config: Config) -> list[Hardware] | None:
    """The machines to compute a crossover for; None: the defaults."""
    found = [_machine(name, machine) for name, machine in config.hardware.items()]
    return found or None


def report_page(config: Config, ledger: Path, volume_per_month: int | None) -> str:
    """The crossover report as a self-contained page. Raises `cost.types.LedgerError`."""
    from cost.page import page
    from cost.report import build

    made = build(
        [ledger],
        volume_per_month=volume_per_month,
        hardware=hardware(config),
        prices=price_table(config),
        comparisons=comparisons(),
    )
    return page(made, price_table(config))


def comparisons() -> dict[str, Comparison]:
    """What `crossover compare` kept on this machine, by task."""
    return all_kept(paths.state_dir() / "compare")


def _machine(name: str, machine: ConfiguredHardware) -> Hardware:
    found = Hardware(
        name,
        machine.usd_per_hour,
        machine.requests_per_second or 0,
        machine.source,
        machine.billing,
        min_replicas=machine.min_replicas,
    )
    if machine.cold_start_s is not None:
        found = msgspec.structs.replace(found, cold_start_s=machine.cold_start_s)
    return found if machine.idle_s is None else msgspec.structs.replace(found, idle_s=machine.idle_s)


def own_price(configured: Rates) -> Price:
    """Dollars a million tokens are nano-dollars a million tokens, times 10^9."""

    def nano(usd: float) -> int:
        return round(usd * NANO_PER_USD)

    write = configured.input if configured.cache_write is None else configured.cache_write
    return Price(
        input=nano(configured.input),
        output=nano(configured.output),
        cache_read=nano(configured.input if configured.cache_read is None else configured.cache_read),
        cache_write_5m=nano(write),
        cache_write_1h=nano(write),
        batch_input=None if configured.batch_input is None else nano(configured.batch_input),
        batch_output=None if configured.batch_output is None else nano(configured.batch_output),
        source=configured.source,
        since=configured.since,
    )
