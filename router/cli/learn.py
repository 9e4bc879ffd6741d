"""`crossover learn`: from a CSV of labelled texts to a task that can be served."""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from router.cli import labelled
from router.paths import cache_dir

if TYPE_CHECKING:
    from local_model.learning import Learned
    from local_model.learning import Progress as Step
    from local_model.training import Fitted

WORST = 8  # labels and confusions shown


class ModelSection(msgspec.Struct):
    """What this command reads of the config's [model]."""

    source: str | None = None
    revision: str | None = None
    engine: str = "auto"
    device: str = "auto"
    threads: int = 0
    max_tokens: int | None = None


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
    engine: str | None,
    as_json: bool,
) -> None:
    """Train a task's head from your own labels.

    Writes the head folder, adds the task to the config, and prints accuracy on held-out rows, the worst labels and
    what is confused with what.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", task):
        raise click.UsageError(f"--task {task!r}: use letters, digits, - and _ (64 at most)")
    # click's usage errors, because wrong data or config is exit code 2
    model, known = _config(config, task)
    folder = out or config.parent / "heads" / task
    if out is None and isinstance(known.get("head"), str):
        folder = config.parent / known["head"]  # learning again replaces the head that is served
    try:
        rows = labelled.read(data, text_col, label_col)
    except labelled.BadData as error:
        raise click.UsageError(str(error)) from error

    from local_model.types import LoadError

    err = Console(stderr=True)
    try:
        with _progress(err) as show:
            learned = _learn(task, data, rows, folder, model, engine or model.engine, show)
    except (LoadError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    added = not known
    if added:
        _add_task(config, task, folder)
    notes = [*rows.notes, *learned.notes, *next(iter(learned.fitted.values())).warnings]
    if known and (config.parent / str(known.get("head", ""))).resolve() != folder.resolve():
        notes.append(f"{config} has [tasks.{task}] already, with another head: set head = {_relative(config, folder)}")
    if as_json:
        click.echo(msgspec.json.encode(_report(task, learned, config, added, notes)).decode())
    else:
        _print(task, learned, config, added, notes)


def _config(config: Path, task: str) -> tuple[ModelSection, dict[str, Any]]:
    """([model], [tasks.TASK] or {}) of the config; both empty if there is no file."""
    if not config.exists():
        return ModelSection(), {}
    try:
        content = tomllib.loads(config.read_text(encoding="utf-8"))
        model = msgspec.convert(content.get("model", {}), ModelSection)
        tasks = content.get("tasks", {})
        return model, dict(tasks.get(task, {}))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, AttributeError, TypeError) as error:
        raise click.UsageError(f"{config} can't be read: {error}") from error


def _learn(
    task: str,
    data: Path,
    rows: labelled.Labelled,
    folder: Path,
    model: ModelSection,
    engine: str,
    show: Callable[[Step], None],
) -> Learned:
    from local_model import encoder
    from local_model.learning import learn as fit

    found = encoder.find(model.source or encoder.DEFAULT, revision=model.revision, max_tokens=model.max_tokens)
    if found.labels is not None:
        raise ValueError(f"{found.source} is a classifier with labels of its own: [model] source must be an encoder")
    return fit(
        task,
        rows.texts,
        rows.labels,
        encoder=found,
        folder=folder,
        cache_dir=cache_dir(),
        engine=engine,  # type: ignore[arg-type]  # click and the config's check know the choices
        device=model.device,
        threads=model.threads,
        provenance={"data": data.name},
        progress=show,
    )


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


def _report(task: str, learned: Learned, config: Path, added: bool, notes: list[str]) -> dict[str, Any]:
    kind, fitted = next(iter(learned.fitted.items()))
    return {
        "task": task,
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


def _print(task: str, learned: Learned, config: Path, added: bool, notes: list[str]) -> None:
    console = Console()
    fitted = next(iter(learned.fitted.values()))
    metrics = fitted.metrics
    console.print(f"[bold]{task}[/]: {len(fitted.targets):,} rows, {len(fitted.labels)} labels", highlight=False)
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
    return "crossover serve" + ("" if config == Path("crossover.toml") else f" --config {config}")
