"""`crossover check`."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import click

from router.cli.options import config_option, load_or_exit, starting
from router.config_file import Loaded


@click.command()
@config_option
@click.option("--live", is_flag=True, help="Make one cheap call per provider: are key, model, schema and price right?")
def check(config: Path | None, live: bool) -> None:
    """Name every problem of the config at once (exit code 2), or say what will be served."""
    from cost.headline import usd
    from cost.types import NANO_PER_USD

    loaded = load_or_exit(config)
    cfg = loaded.config
    click.echo(f"{loaded.path}: fine")
    for name, task in cfg.tasks.items():
        source = f"head {task.head} on {cfg.model.source}" if task.head else f"model {task.model}"
        way_out = "never escalates" if task.policy.escalate == "never" else f"escalates below {task.policy.threshold:g}"
        click.echo(f"  task {name}: {source}; {way_out}")
    for name, provider in cfg.providers.items():
        via = f" via {provider.via}" if provider.via else ""
        click.echo(f"  provider {name}: {provider.kind}{via}, {provider.model}")
    for what, limit in (
        ("all", cfg.budget_usd),
        *((f"task {name}", limit) for name, limit in cfg.budget.tasks.items()),
        *((f"tenant {name}", limit) for name, limit in cfg.budget.tenants.items()),
    ):
        click.echo(f"  budget, {what}: {usd(round(limit * NANO_PER_USD))} a day")
    out = "are refused" if cfg.budget.when_out == "refuse" else "get the local label, marked degraded"
    click.echo(f"  when it is out: uncertain texts {out}")
    for note in loaded.notes:
        click.echo(f"  note: {note}")
    if live:
        raise SystemExit(asyncio.run(ask_providers(loaded)))


async def ask_providers(loaded: Loaded) -> int:
    """One call each; 1 if any finding is an error."""
    from cost.comparison import REQUESTS
    from cost.ledger import Ledger
    from cost.prices import PriceTable
    from providers.live_check import check as live_check
    from providers.tariffs import tariff_of
    from providers.types import Caller
    from router.config import LOCAL_TENANT
    from router.config_file import ledger_path
    from router.logs import configure_logging
    from router.reporting import budget
    from router.wiring import lane_settings, make_provider

    if not loaded.config.providers:
        click.echo("live: no provider is configured")
        return 0
    configure_logging("critical")  # the findings say it
    failed = False
    with starting():
        ledger = Ledger.open(ledger_path(loaded))
    try:
        for index, (name, lane) in enumerate(lane_settings(loaded.config).items()):
            with starting():
                provider = make_provider(name, loaded.config)
            findings = await live_check(
                provider,
                tariff_of(PriceTable.load(), provider.model, lane, time.monotonic),
                ledger=ledger,
                budget=budget(loaded.config),
                caller=Caller(f"{REQUESTS}check_{time.time_ns():x}", index, LOCAL_TENANT),
            )
            await provider.close()
            for finding in findings:
                click.echo(f"live: {finding.provider}: {finding.level}: {finding.what}: {finding.detail}")
                failed |= finding.level == "error"
    finally:
        await asyncio.to_thread(ledger.close)
    return int(failed)
