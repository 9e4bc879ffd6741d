"""`crossover classify`: a few texts, or a file of them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import click
import msgspec

from router.cli.asking import Ask, Route, Stopped, Unanswered, in_process, through_service
from router.cli.classify_file import STANDARD, answer_file
from router.cli.options import config_option, json_option, load_or_exit, stop
from router.cli.rows import BadFile
from router.problems import ProblemError

BATCH = 64  # texts a request
#: The same where the frontier may be asked, so that a provider sees few calls at once.
PAID_BATCH = 8
#: Milliseconds for a request of a file's rows: it matters that they are answered, not when.
PATIENCE_MS = 60_000


class _Command(click.Command):
    """`--escalate` may stand alone, also before a TEXT: only these words are its value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        given = [
            "--escalate=now" if arg == "--escalate" and args[i + 1 : i + 2] not in (["now"], ["batch"]) else arg
            for i, arg in enumerate(args[:end])
        ]
        return super().parse_args(ctx, given + args[end:])


@click.command(cls=_Command)
@click.argument("texts", nargs=-1, metavar="[TEXT...]")
@click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True, allow_dash=True),
    help="CSV (with a header line) or JSONL (an object a line); - is standard input.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Answers to --file, in its format. What an interrupted run wrote stays, and is gone on with. [default: -]",
)
@click.option("--text-col", default="text", show_default=True, help="Column or field of --file with the texts.")
@click.option("--task", help="May be left out where one task is configured.")
@click.option("--url", help="Ask this service. [default: in process, without a server]")
@click.option("--key", envvar="CROSSOVER_API_KEY", help="API key for --url. [env: CROSSOVER_API_KEY]")
@click.option(
    "--escalate",
    type=click.Choice(["now", "batch"]),
    metavar="[now|batch]",
    help="May ask the frontier, which costs money; without it, local only. Alone, or now: at once. batch: for a --file "
    "with -o, through a provider's batch API, within a day at about half the price; run the same command to go on.",
)
@config_option
@json_option
def classify(
    texts: Sequence[str],
    file: Path | None,
    out: Path | None,
    text_col: str,
    task: str | None,
    url: str | None,
    key: str | None,
    escalate: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Classify TEXTs or the rows of a file, in process or through a service. Spends nothing without --escalate.

    Answers to a file are its rows, in order, with the columns label, confidence, source, degraded and error added
    (answer_label and so on where the file has such a column). Exits with 1 if a row has an error.
    """
    if bool(texts) == (file is not None):
        raise click.UsageError("give either TEXTs or a file with -f")
    if file is None and out is not None:
        raise click.UsageError("-o is for the answers to a file; give the file with -f")
    if file is not None and as_json:
        raise click.UsageError("--json is for TEXTs; the answers to a file have its format")
    if len(texts) > BATCH:
        raise click.UsageError(f"{BATCH} TEXTs at most; put more into a file and give it with -f")
    if escalate == "batch":
        if url:
            raise click.UsageError("--escalate batch works in process; leave --url out, or use --escalate alone")
        if file in (None, STANDARD) or out in (None, STANDARD):
            raise click.UsageError("--escalate batch is for a file: give it with -f FILE and the answers' with -o FILE")
    loaded = None if url else load_or_exit(config)
    if loaded and file is not None:
        server = msgspec.structs.replace(loaded.config.server, deadline_ms=PATIENCE_MS, local_deadline_ms=PATIENCE_MS)
        loaded = msgspec.structs.replace(loaded, config=msgspec.structs.replace(loaded.config, server=server))
    route: Route = "auto" if escalate else "local"

    def start() -> AbstractAsyncContextManager[Ask]:
        return in_process(loaded, task, route) if loaded else through_service(url or "", key, task, route)

    try:
        if file is not None and out is not None and escalate == "batch":
            from router.cli.batch.run import answer_in_batch

            assert loaded is not None
            sys.exit(1 if answer_in_batch(loaded, file, out, text_col, task) else 0)
        if file is None:
            asyncio.run(answer_texts(texts, start(), as_json))
        else:
            errors = answer_file(file, out or Path("-"), text_col, start, PAID_BATCH if escalate else BATCH)
            sys.exit(1 if errors else 0)
    except BadFile as error:
        stop(str(error))
    except (Unanswered, Stopped, ProblemError) as error:
        stop(str(error), 1)


async def answer_texts(texts: Sequence[str], asking: AbstractAsyncContextManager[Ask], as_json: bool) -> None:
    """One request, a line a text."""
    async with asking as ask:
        answer = await ask(texts)
    if as_json:
        click.echo(msgspec.json.encode(answer))
        return
    for text, result in zip(texts, answer["results"], strict=True):
        if "error" in result:
            click.echo(f"error\t{result['error']['detail']}\t{text}")
            continue
        sure = "" if result["confidence"] is None else f"{result['confidence']:.3f}"
        mark = f"\tdegraded: {result['degraded']}" if result["degraded"] else ""
        click.echo(f"{result['label']}\t{sure}\t{result['source']}\t{text}{mark}")
