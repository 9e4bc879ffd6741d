"""`crossover learn`: from a CSV of labelled texts to a task that can be served."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from router.cli import labelled
from router.cli.options import config_or_exit, load_or_exit, this_command
from router.config_file import Loaded, load_tree
from router.paths import cache_dir, relative_to

if TYPE_CHECKING:
    from local_model.engines import EngineName
    from local_model.learning import Learned
    from local_model.learning import Progress as Step
    from local_model.training import Fitted

WORST = 8  # labels and confusions shown


@click.command()
@click.option("--task", required=True, help="Name of the task: letters, digits, - and _.")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path, dir_okay=False), help="CSV with a text and a label column."
)
@click.option("--text-col", help="Column with the texts, if it can't be told from its name.")
@click.option("--label-col", help="Column with the labels, if it can't be told from its name.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the head. [heads/TASK]")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("crossover.toml"),
    show_default=True,
    help="The task is added to it; it is made if absent.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "onnx", "torch", "all"]),
    help="Engine to fit the head on; auto is the one that serves here. [the config's]",
)
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def learn(
    task: str,
    data: Path,
    text_col: str | None,
    label_col: str | None,
    out: Path | None,
    config: Path,
    engine: EngineName | Literal["all"] | None,
    as_json: bool,
) -> None:
    """Train a task's head from your own labels.

    Writes the head folder, adds the task to the config, and prints accuracy on held-out rows, the worst labels and
    what is confused with what.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", task):
        raise click.UsageError(f"--task {task!r}: use letters, digits, - and _ (64 at most)")
    # click's usage errors, because wrong data or config is exit code 2
    loaded = load_or_exit(config, serving=False) if config.exists() else config_or_exit(lambda: _empty(config))
    known = loaded.config.tasks.get(task)
    served = relative_to(config, known.head) if known and known.head else None
    folder = out or served or config.parent / "heads" / task  # learning again replaces the head that is served
    try:
        rows = labelled.read(data, text_col, label_col)
    except labelled.BadData as error:
        raise click.UsageError(str(error)) from error
    for place in (folder, config):
        _check_writable(place)

    from local_model.types import LoadError

    err = Console(stderr=True)
    try:
        with _progress(err) as show:
            learned = _learn(task, data, rows, folder, loaded, engine, show)
        added = known is None
        if added:
            _add_task(config, task, folder)
    except (LoadError, ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error
    notes = [*rows.notes, *learned.notes, *next(iter(learned.fitted.values())).warnings]
    if known and served != folder.resolve():
        other = "another head" if known.head else "a model" if known.model else "no head"
        notes.append(f"{config} has [tasks.{task}] already, with {other}: set head = {_relative(config, folder)}")
    if as_json:
        click.echo(msgspec.json.encode(_report(task, rows, learned, config, added, notes)).decode())
    else:
        _print(task, rows, learned, config, added, notes)


def _learn(
    task: str,
    data: Path,
    rows: labelled.Labelled,
    folder: Path,
    loaded: Loaded,
    engine: EngineName | Literal["all"] | None,
    show: Callable[[Step], None],
) -> Learned:
    """On the encoder and the engine that will serve. Raises LoadError, ValueError."""
    from local_model import encoder
    from local_model.learning import learn as fit
    from router.wiring import model_settings

    model = model_settings(loaded)
    found = encoder.find(model.source, revision=model.revision, max_tokens=model.max_tokens)
    if found.labels is not None:
        raise ValueError(f"{found.source} is a classifier with labels of its own: [model] source must be an encoder")
    return fit(
        task,
        rows.texts,
        rows.labels,
        encoder=found,
        folder=folder,
        cache_dir=cache_dir(),
        engine=engine or model.engine,
        device=model.device,
        threads=model.threads,
        precision=model.precision,
        provenance={"data": data.name},
        progress=show,
    )


def _empty(config: Path) -> Loaded:
    """What the defaults and the environment say where there is no file yet."""
    return load_tree({}, config, serving=False)


def _check_writable(path: Path) -> None:
    """Before minutes of work, and leaving no trace. Raises UsageError."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if there != path.absolute() and not there.is_dir():
        raise click.UsageError(f"{path} can't be written: {there} is a file")
    if not os.access(there, os.W_OK):
        raise click.UsageError(f"{path} can't be written: no permission to write to {there}")


def _add_task(config: Path, task: str, folder: Path) -> None:
    """Append the task's block: what is in the file, comments too, stays as it is."""
    before = config.read_text(encoding="utf-8") if config.exists() else ""
    gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
    config.parent.mkdir(parents=True, exist_ok=True)
    with config.open("a", encoding="utf-8") as file:
        file.write(f"{gap}[tasks.{task}]\nhead = {_relative(config, folder)}\n")


def _relative(config: Path, folder: Path) -> str:
    """The folder as a TOML string: relative to the config where it is below it."""
    here, there = config.parent.resolve(), folder.resolve()
    path = there.relative_to(here) if there.is_relative_to(here) else there
    return msgspec.json.encode(path.as_posix()).decode()  # a JSON string is a TOML string


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Callable[[Step], None]]:
    """A bar on a terminal, nothing in a pipe."""
    if not console.is_terminal:
        yield lambda _step: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        line = bar.add_task("starting", total=None)
        yield lambda step: bar.update(line, description=step.stage, completed=step.done or 0, total=step.total)


def _per_label(fitted: Fitted) -> list[tuple[str, int, int]]:
    """(label, held-out rows, of these right), worst first."""
    held = fitted.predicted >= 0
    total = Counter(fitted.targets[held].tolist())
    right = Counter(fitted.targets[held & (fitted.predicted == fitted.targets)].tolist())
    found = [(fitted.labels[i], total[i], right[i]) for i in total]
    return sorted(found, key=lambda row: (row[2] / row[1], -row[1], row[0]))


def _confusions(fitted: Fitted) -> list[tuple[str, str, int]]:
    """(label meant, label given, rows), most first."""
    pairs = Counter(
        (fitted.labels[meant], fitted.labels[given])
        for meant, given in zip(fitted.targets.tolist(), fitted.predicted.tolist(), strict=True)
        if given >= 0 and meant != given
    )
    return [(meant, given, count) for (meant, given), count in pairs.most_common()]


def _report(
    task: str, rows: labelled.Labelled, learned: Learned, config: Path, added: bool, notes: list[str]
) -> dict[str, Any]:
    kind, fitted = next(iter(learned.fitted.items()))
    return {
        "task": task,
        "columns": {"text": rows.text_column, "label": rows.label_column},
        "head": str(learned.folder),
        "config": str(config),
        "config_block_added": added,
        "engine": kind,
        "engines": {name: {"temperature": f.temperature, **f.metrics} for name, f in learned.fitted.items()},
        "labels": [{"label": name, "held_out": n, "right": right} for name, n, right in _per_label(fitted)],
        "confusions": [{"meant": a, "given": b, "rows": n} for a, b, n in _confusions(fitted)],
        "warnings": notes,
        "next": _next(config),
    }


def _print(task: str, rows: labelled.Labelled, learned: Learned, config: Path, added: bool, notes: list[str]) -> None:
    console = Console()
    fitted = next(iter(learned.fitted.values()))
    metrics = fitted.metrics
    console.print(f"[bold]{task}[/]: {len(fitted.targets):,} rows, {len(fitted.labels)} labels", highlight=False)
    columns = f"  texts from column {rows.text_column!r}, labels from column {rows.label_column!r}"
    console.print(columns, highlight=False, markup=False, soft_wrap=True)
    for kind, each in learned.fitted.items():
        console.print(f"  {kind:<11} {_accuracy(each.metrics)}", highlight=False, soft_wrap=True)
    if metrics["held_out"]:
        console.print("  measured on rows held out in turn; the head itself is fitted on all of them", style="dim")
        if worst := [row for row in _per_label(fitted) if row[2] < row[1]][:WORST]:
            table = Table("worst labels", "rows", "right", box=None, header_style="bold", pad_edge=False)
            for name, total, right in worst:
                table.add_row(escape(name), str(total), f"{right / total:.0%}")
            console.print(table)
        if pairs := _confusions(fitted)[:WORST]:
            table = Table("meant", "given", "rows", box=None, header_style="bold", pad_edge=False)
            for meant, given, count in pairs:
                table.add_row(escape(meant), escape(given), str(count))
            console.print(table)
    for note in notes:
        console.print(f"[yellow]warning:[/] {escape(note)}", highlight=False, soft_wrap=True)
    console.print(f"head:   {learned.folder}", highlight=False, markup=False, soft_wrap=True)
    what = f"[tasks.{task}] added" if added else f"has [tasks.{task}] already; nothing was changed"
    console.print(f"config: {config}: {what}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"next:   {_next(config)}", highlight=False, markup=False, soft_wrap=True)


def _accuracy(metrics: dict[str, float]) -> str:
    if not metrics["held_out"]:
        return "accuracy unknown: no rows could be held out"
    return (
        f"accuracy {metrics['accuracy']:.1%} (95 % interval {metrics['accuracy_low']:.1%} to "
        f"{metrics['accuracy_high']:.1%}), calibration error {metrics['calibration_error']:.3f}"
    )


def _next(config: Path) -> str:
    default = config == Path("crossover.toml")
    return f"{this_command()} serve" + ("" if default else f" --config {shlex.quote(str(config))}")
