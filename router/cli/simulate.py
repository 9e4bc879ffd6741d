"""`crossover simulate-frontier`: run the simulator until interrupted."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Literal

import click


@click.command("simulate-frontier")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, show_default=True, help="Port to listen on; 0 lets the system choose.")
@click.option("--answers", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="CSV: text,label.")
@click.option("--script", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Replies, one a line.")
@click.option("--accuracy", default=1.0, show_default=True, type=click.FloatRange(0, 1), help="Share of right answers.")
@click.option("--gullible", default=0.0, type=click.FloatRange(0, 1), help="Share of orders in texts that it obeys.")
@click.option("--latency-ms", default=300.0, show_default=True, type=click.FloatRange(0), help="Median latency.")
@click.option("--latency", metavar="SPEC", help="Instead: fixed:MS, lognormal:MEDIAN,SIGMA or file:PATH (ms a line).")
@click.option(
    "--structured",
    type=click.Choice(["schema", "json", "none"]),
    default="schema",
    show_default=True,
    help="What a chat request may ask for.",
)
@click.option("--fault", "faults", multiple=True, metavar="NAME:SHARE", help="Say 529:0.1, reset:0.01; repeatable.")
@click.option("--seed", default=0, show_default=True, help="Of latencies, faults and wrong answers.")
def simulate_frontier(
    host: str,
    port: int,
    answers: Path | None,
    script: Path | None,
    accuracy: float,
    gullible: float,
    latency_ms: float,
    latency: str | None,
    structured: Literal["schema", "json", "none"],
    faults: tuple[str, ...],
    seed: int,
) -> None:
    """A stand-in that speaks the Anthropic and OpenAI wire formats. It is no model and says so in every answer.

    Prints one line of JSON with its URL once it listens. Faults for single calls: POST /_sim/faults {"next": ["429"]},
    for those about a text: {"for": {"TEXT": ["429"]}}; what it would charge: GET /_sim/bill.
    """
    from providers.simulator import Simulator, read_answers

    try:
        simulator = Simulator(
            read_answers(answers) if answers else None,
            script=script.read_text(encoding="utf-8").splitlines() if script else (),
            host=host,
            port=port,
            latency_ms=latency_ms,
            latency=latency,
            accuracy=accuracy,
            gullible=gullible,
            structured=structured,
            faults=[_fault(text) for text in faults],
            seed=seed,
        )
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from None

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        async with simulator:
            rule = f"{len(simulator.model.answers)} answers from a file" if answers else "answers by shared words"
            line = {"url": simulator.url, "simulated": True, "what": f"simulated frontier, no model: {rule}"}
            print(json.dumps(line), flush=True)  # noqa: T201 - whoever starts it reads this line
            await stop.wait()

    try:
        asyncio.run(run())
    except OSError as error:
        raise click.ClickException(f"can't listen on {host}:{port}: {error.strerror}; try --port 0") from None


def _fault(text: str) -> tuple[str, float]:
    """ "529:0.1" -> ("529", 0.1). Raises `ValueError`."""
    name, _, share = text.rpartition(":")
    try:
        probability = float(share)
    except ValueError:
        probability = -1.0
    if not name or not 0 <= probability <= 1:
        raise ValueError(f"--fault {text}: write NAME:SHARE with a share from 0 to 1, as in 529:0.1")
    return name, probability
