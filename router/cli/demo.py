"""`crossover demo`: everything at once on this machine. Only the frontier is simulated, and it says so."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from router import paths, runfile
from router.cli.options import this_command

VOLUME = "2M/month"
IN_FLIGHT = 4
#: Seconds the service may take to be ready: the first start exports and quantizes the encoder.
PATIENCE = 300

CONFIG = """\
# Written by `crossover demo`. The providers lead to a simulated frontier on this machine: nothing is paid.
[tasks.banking]
head = "banking77"
instructions = "Messages that customers of an online bank send to its support."

[tasks.banking.policy]
threshold = 0.8

[cache]
store_preview = true  # the demo's texts are made up: `crossover cache ls` may show them

[providers.claude-simulated]
kind = "anthropic"
model = "claude-haiku-5-5"
base_url = "{frontier}"

[providers.gpt-simulated]
kind = "openai"
model = "gpt-6-luna"
base_url = "{frontier}/v1"

[budget]
usd_per_day = 5.0
"""


class Row(NamedTuple):
    text: str
    meant: str
    note: str


@click.command()
@click.option("--keep", is_flag=True, help="Stay up afterwards, until Ctrl-C.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("crossover-demo"), show_default=True
)
def demo(keep: bool, out: Path) -> None:
    """Start Redis, a simulated frontier and the service; send sample traffic; print answers and the report."""
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the `finally` clauses
    with tempfile.TemporaryDirectory(prefix="crossover-demo-", ignore_cleanup_errors=True) as folder:
        state = Path(folder)
        with contextlib.ExitStack() as stack:
            started = time.monotonic()
            console.rule("1 · starting")
            frontier = stack.enter_context(simulated_frontier())
            console.print(f"simulated frontier  {frontier}   (no model: answers from a file, and says so)")
            url = stack.enter_context(service(state, frontier, console))
            console.print(f"service             {url}   ready after {time.monotonic() - started:.1f} s")

            console.rule("2 · traffic")
            rows = read_traffic()
            console.print(f"{len(rows)} bank-support messages, one HTTP request each, {IN_FLIGHT} at a time")
            answers = asyncio.run(send(url, rows))
            show_answers(console, rows, answers)

            console.rule("3 · report")
            out.mkdir(parents=True, exist_ok=True)
            page, chart = out / "report.html", out / "report.png"
            report_command = ["report", "--ledger", str(state / "ledger.db"), "--volume", VOLUME]
            subprocess.run(
                [*this_program(), *report_command, "--html", str(page), "--png", str(chart)],
                check=True,
                env={**os.environ, "COLUMNS": str(console.width)},
            )
            console.print(f"\npage   {page}\nchart  {chart}")
            if keep:
                console.rule("the service stays up until Ctrl-C")
                stay(console, url)


def this_program() -> list[str]:
    return [sys.executable, "-m", "router"]


@contextlib.contextmanager
def child(command: list[str], log: Path | None = None, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process of ours, ended with the block; its output is thrown away, kept in `log`, or (stdout) read by us."""
    with contextlib.ExitStack() as stack:
        errors: Any = stack.enter_context(log.open("w")) if log else subprocess.DEVNULL
        process = subprocess.Popen(
            [*this_program(), *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches only us: we end the children in order
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()


@contextlib.contextmanager
def simulated_frontier() -> Iterator[str]:
    """Gives its URL."""
    answers = paths.shipped("bank_support.csv", "examples/bank_support.csv")
    command = ["simulate-frontier", "--port", "0", "--latency-ms", "350", "--answers", str(answers)]
    with child(command) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise click.ClickException("the simulated frontier did not start; try `crossover simulate-frontier`")
        yield json.loads(line)["url"]


@contextlib.contextmanager
def service(state: Path, frontier: str, console: Console) -> Iterator[str]:
    """`crossover serve`, with its Redis; gives its URL once it is ready."""
    import httpx

    config, log = state / "crossover.toml", state / "service.log"
    config.write_text(CONFIG.format(frontier=frontier))
    run_folder = runfile.folder()  # the usual one, so that `crossover cache` and `report` find this service unaided
    environment = {"CROSSOVER_STATE_DIR": str(state), "CROSSOVER_RUN_DIR": str(run_folder)}
    with child(["serve", "--config", str(config), "--port", "0"], log, **environment) as process:
        begun = time.monotonic()
        with console.status("loading the model (the first time, its int8 graph is built: about 20 s)") as status:
            while True:
                if process.poll() is not None or time.monotonic() - begun > PATIENCE:
                    tail = log.read_text(errors="replace")[-2000:]
                    raise click.ClickException(f"the service did not start; its last words:\n{tail}")
                note = next((n for n in runfile.running() if n.pid == process.pid), None)
                with contextlib.suppress(httpx.HTTPError):
                    if note and httpx.get(f"{note.url}/ready").status_code == 200:
                        break
                status.update(f"loading the model, {time.monotonic() - begun:.0f} s: {last_step(log)}")
                time.sleep(0.2)
        yield note.url


def last_step(log: Path) -> str:
    """What the service's log says it is doing."""
    for line in reversed(log.read_text(errors="replace").splitlines()):
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") == "loading":
                return str(event.get("step"))
    return "starting"


def read_traffic() -> list[Row]:
    with paths.shipped("bank_support.csv", "examples/bank_support.csv").open(encoding="utf-8", newline="") as file:
        return [Row(row["text"], row["label"], row.get("note") or "") for row in csv.DictReader(file)]


async def send(url: str, rows: list[Row]) -> list[dict[str, Any]]:
    """One request a row, `IN_FLIGHT` at a time; answers in order."""
    import httpx

    answers: list[dict[str, Any]] = [{}] * len(rows)
    queue = iter(enumerate(rows))
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:

        async def worker() -> None:
            for index, row in queue:
                response = await client.post("/v1/classify", json={"task": "banking", "input": row.text})
                response.raise_for_status()
                answers[index] = response.json()["results"][0]

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return answers


def show_answers(console: Console, rows: list[Row], answers: list[dict[str, Any]]) -> None:
    table = Table("source", "label", box=None, pad_edge=False)
    for column in ("sure", "ms", "dollars"):
        table.add_column(column, justify="right")
    table.add_column("text")
    room = console.width - 58  # what the other columns leave
    for source in ("local", "frontier", "cache"):
        shown = [(row, answer) for row, answer in zip(rows, answers, strict=True) if answer["source"] == source][:3]
        for row, answer in shown:
            table.add_row(
                source,
                shortened(answer["label"], 24),
                "-" if answer["confidence"] is None else f"{answer['confidence']:.2f}",
                f"{answer['latency_ms']['total']:.1f}",
                f"{answer['cost_usd']:.6f}",
                shortened(row.text, room),
            )
        table.add_section()
    console.print(table)
    sources = {s: sum(a["source"] == s for a in answers) for s in ("cache", "local", "frontier")}
    in_scope = [(row, a) for row, a in zip(rows, answers, strict=True) if row.note != "out of scope"]
    right = sum(row.meant == answer["label"] for row, answer in in_scope)
    degraded = sum(answer["degraded"] is not None for answer in answers)
    counts = ", ".join(f"{count} from {source}" for source, count in sources.items())
    console.print(f"{len(answers)} answers: {counts}; {degraded} degraded")
    console.print(
        f"{right} of {len(in_scope)} in-scope messages got the label that was meant "
        "(the simulated frontier reads it from the file, so only the local share is a measurement)"
    )


def shortened(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(1, room - 1)] + "…"


def stay(console: Console, url: str) -> None:
    crossover = this_command()
    console.print(
        f"""\
curl -s {url}/v1/classify -H 'content-type: application/json' -d '{{"input": "my card still has not arrived"}}'
{crossover} report --volume {VOLUME}
{crossover} cache ls
{crossover} cache get "my card still has not arrived"
curl -s {url}/v1/status""",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
