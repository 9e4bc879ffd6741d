"""`crossover compare`: the cheapest adequate classifier as a measurement, and who follows orders in texts."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from router.cli.options import config_option, json_option, load_or_exit, stop

if TYPE_CHECKING:
    from router.config import Config

ROWS, ATTACKED = 300, 5
SHIPPED = "shipped"


@click.command()
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="CSV or JSONL with texts; gold labels make accuracy.",
)
@click.option("--providers", metavar="A,B", help='Names in the config; "local" alone asks nobody. [default: all]')
@click.option("--task", help="May be left out where one task is configured.")
@click.option(
    "-n", "count", type=click.IntRange(1), help=f"Rows to ask. [default: {ROWS}; with --attacks {ATTACKED} texts]"
)
@click.option("--text-col", help="Column with the texts, if it can't be told from its name.")
@click.option("--label-col", help="Column with the gold labels, if it can't be told from its name.")
@click.option(
    "--within",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0, 100),
    help="Points of accuracy below the most accurate that are adequate.",
)
@click.option("--seed", default=0, show_default=True, help="Of the sample; a larger one contains a smaller one.")
@click.option("--yes", is_flag=True, help="Don't ask before spending.")
@click.option(
    "--attacks",
    is_flag=False,
    flag_value=SHIPPED,
    metavar="[FILE]",
    help="Prompt injections instead: how often do labels flip? [FILE: the corpus that comes along]",
)
@config_option
@json_option
def compare(
    data: Path,
    providers: str | None,
    task: str | None,
    count: int | None,
    text_col: str | None,
    label_col: str | None,
    within: float,
    seed: int,
    yes: bool,
    attacks: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Ask the local model and providers the same rows: accuracy, agreement, cost, latency; the cheapest adequate one.

    Says what it can cost and asks first. Calls are reserved in the ledger and fall under the budget of the day. Exits
    with 1 if somebody could not be asked all rows.
    """
    loaded = load_or_exit(config)
    task, names = _task(loaded.config, task), _names(loaded.config, providers)
    if names and loaded.config.tasks[task].policy.escalate == "never":
        stop(
            f"task {task} never escalates: its texts leave the house for nobody; --providers local asks the local model"
        )
    from router.cli import compare_rows
    from router.cli.compare_run import Run
    from router.cli.labelled import BadData
    from router.cli.rows import BadFile
    from router.compare.attacks import BadCorpus, corpus
    from router.compare.rows import sample

    try:
        rows, notes = compare_rows.read(data, text_col, label_col)
        tried = corpus(None if attacks == SHIPPED else Path(attacks)) if attacks else []
    except (BadFile, BadData, BadCorpus, OSError) as error:
        stop(str(error))
    for note in notes:
        click.echo(f"note: {note}", err=True)
    drawn = sample(rows, count or (ATTACKED if attacks else ROWS), seed)
    if not drawn:
        stop(f"{data} has no text")
    run = Run(loaded, task, names, drawn, len(rows), yes=yes, as_json=as_json, seed=seed, within=within / 100)
    sys.exit(asyncio.run(run.attack(tried) if attacks else run.compare()))


def _task(config: Config, name: str | None) -> str:
    if name is None and len(config.tasks) == 1:
        return next(iter(config.tasks))
    if name is None or name not in config.tasks:
        why = "several tasks are configured; choose one with --task" if name is None else f"no task {name!r}"
        stop(f"{why}: {', '.join(sorted(config.tasks))}")
    return name


def _names(config: Config, given: str | None) -> list[str]:
    """Of providers to ask, in the order given."""
    if given is None:
        names = list(config.providers)
    else:
        names = [name for name in dict.fromkeys(part.strip() for part in given.split(",")) if name]
        names = [name for name in names if name != "local" or name in config.providers]
    for name in names:
        if name not in config.providers:
            there = ", ".join(config.providers) or "none; crossover.toml shows how to add one"
            stop(f"no provider {name!r} in the config; there are: {there}")
    return names
