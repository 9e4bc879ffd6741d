"""`crossover classify --escalate batch`, killed at every stage and begun again: the same file, nothing paid twice."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from cost.prices import PriceTable
from cost.verify import verify
from providers.simulator import Simulator

PATIENCE_S = 180
#: The command, small groups and short waits; it says "here" and stays where it is told to stop.
DRIVER = """
import signal, sys, time
from router.cli import main
from router.cli.batch import output, books, patience, submission, job_file

submission.GRACE_S, patience.FIRST_S = 1.0, 0.05
books.GROUP, output.SIZE = 2, 4
point = sys.argv.pop(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it


def stop(passed=0):
    stop.left = getattr(stop, "left", passed) - 1
    if stop.left < 0:
        print("here", flush=True)
        time.sleep(600)


append, ended = job_file.JobFile.append, output._ended


def appending(self, line, **more):
    if point == "local" and isinstance(line, job_file.Rows):
        stop(1)
    if point == "reserved" and isinstance(line, job_file.Ordered):
        stop()
    if point == "collecting" and isinstance(line, job_file.Answers):
        stop(1)
    append(self, line, **more)


def ending(*given):
    if point == "writing":
        stop(6)
    return ended(*given)


job_file.JobFile.append, output._ended = appending, ending
main()
"""
TEXTS = [
    "I lost my card",
    "how do I change my PIN",
    "hmm",
    "something odd happened with it",
    "what is your exchange rate",
    "hmm",  # again: asked and paid once
    "my card still has not arrived",
    " ",
    "how old must I be to open an account",
    "blah blah",
    "why was I charged a fee",
    "too long for the local model " * 60,
]
#: Where the process is killed: in it, or while the simulator holds its request ("unsent": it never arrives).
POINTS = {
    "anthropic": ["local", "reserved", "unheard", "polling", "collecting", "writing"],
    "openai": ["unsent", "unheard"],
}
MODELS = {"anthropic": "claude-haiku-5-5", "openai": "gpt-6-luna"}


class Bench:
    """A file of texts, a config, and a simulated frontier that keeps its bill."""

    def __init__(self, folder: Path, sim: Simulator, kind: str, cache: str = "off", escalate: str = "auto") -> None:
        folder.mkdir()
        self.folder, self.sim = folder, sim
        self.out = folder / "out.csv"
        self.ledger = folder / "state" / "ledger.db"
        rows = "".join(f'{i},"{text}"\n' for i, text in enumerate(TEXTS))
        (folder / "in.csv").write_text(f"id,text\n{rows}")
        (folder / "driver.py").write_text(DRIVER)
        url = sim.url + ("/v1" if kind == "openai" else "")
        (folder / "crossover.toml").write_text(
            f'[cache]\nurl = "{cache}"\n[tasks.banking]\nhead = "banking77"\n'
            f'[tasks.banking.policy]\nthreshold = 0.97\nescalate = "{escalate}"\n'
            f'[providers.p]\nkind = "{kind}"\nmodel = "{MODELS[kind]}"\nbase_url = "{url}"\n'
        )

    async def start(self, point: str = "", out: str = "out.csv") -> asyncio.subprocess.Process:
        environment = {
            **os.environ,
            "CROSSOVER_STATE_DIR": str(self.folder / "state"),
            "ANTHROPIC_API_KEY": "sk-canary-0123",
            "OPENAI_API_KEY": "sk-canary-0123",
        }
        command = ["classify", "-f", "in.csv", "-o", out, "--escalate", "batch", "--config", "crossover.toml"]
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "driver.py",
            point,
            *command,
            cwd=self.folder,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, out: str = "out.csv") -> str:
        """To its end; gives what it said."""
        process = await self.start(out=out)
        async with asyncio.timeout(PATIENCE_S):
            said, errors = await process.communicate()
        assert said == b""  # nothing but answers is for standard output
        assert process.returncode == 1, errors.decode()  # one text is empty
        return errors.decode()

    async def killed(self, point: str) -> None:
        """Run until it is at `point`, then kill it."""
        reached, over = asyncio.Event(), asyncio.Event()
        held = {"unsent": ("create", "upload"), "unheard": ("created",), "polling": ("status",)}.get(point, ())

        async def hold(at: str) -> None:
            if at in held and not over.is_set():
                reached.set()
                await over.wait()
                if point == "unsent":
                    raise ConnectionResetError

        self.sim.batches.at = hold
        process = await self.start(point)
        assert process.stdout is not None
        waiting = {asyncio.create_task(process.stdout.readline()), asyncio.create_task(reached.wait())}
        async with asyncio.timeout(PATIENCE_S):
            done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] in ([b"here\n"], [True]), await process.communicate()
        process.kill()
        for task in rest:
            task.cancel()
        await process.communicate()
        over.set()

    def attempts(self) -> list[tuple[str, int, str]]:
        """(state, cost in nano-USD, the provider's id of the reply)"""
        with closing(sqlite3.connect(self.ledger)) as db:
            return db.execute("SELECT state, cost_nano, reply_id FROM attempts WHERE batch = 1").fetchall()

    def inputs(self) -> list[tuple[str, int]]:
        with closing(sqlite3.connect(self.ledger)) as db:
            return db.execute("SELECT source, count(*) FROM inputs GROUP BY 1 ORDER BY 1").fetchall()


def settled(bench: Bench) -> None:
    """The ledger holds what the simulator charges at batch price, reply by reply, and adds up."""
    prices = PriceTable.load()
    bill = {item.reply_id: prices.cost_nano(item.model, item.usage, batch=True) for item in bench.sim.items}
    assert {item.batch for item in bench.sim.items} == {True}
    assert {reply_id: cost for state, cost, reply_id in bench.attempts() if state == "settled"} == bill
    assert verify(bench.ledger) == []


@pytest.mark.parametrize("kind", list(MODELS))
def test_killed_anywhere_and_begun_again_it_ends_with_the_same_file_and_an_exact_bill(
    kind: str, tmp_path: Path
) -> None:
    async def main() -> None:
        async with Simulator(record=True) as sim:
            undisturbed = Bench(tmp_path / "undisturbed", sim, kind)
            await undisturbed.run()
            expected, rows = undisturbed.out.read_bytes(), undisturbed.inputs()
            assert b"frontier" in expected and b"local" in expected
            settled(undisturbed)
            asked = Counter(item.text for item in sim.items)
            assert max(asked.values()) == 1
        for point in POINTS[kind]:
            async with Simulator(record=True) as sim:
                bench = Bench(tmp_path / point, sim, kind)
                await bench.killed(point)
                job = bench.folder / "out.csv.batch"
                assert job.stat().st_mode & 0o777 == 0o600
                assert not any(text.encode() in job.read_bytes() for text in TEXTS if len(text) > 5)
                await bench.run()
                assert bench.out.read_bytes() == expected, point
                assert not job.exists()
                assert Counter(item.text for item in sim.items) == asked, point
                assert {state for state, _, _ in bench.attempts()} == {"settled"}, point
                assert bench.inputs() == rows, point
                settled(bench)

    asyncio.run(main())


def test_what_a_batch_answered_is_in_the_cache_for_whoever_asks_next(tmp_path: Path) -> None:
    async def main() -> None:
        async with Simulator() as sim:
            bench = Bench(tmp_path / "bench", sim, "openai", cache="embedded")
            await bench.run()
            paid = len(sim.items)
            assert paid > 0
            await bench.run("again.csv")
            assert len(sim.items) == paid
            again = (bench.folder / "again.csv").read_text()
            assert again == bench.out.read_text().replace(",frontier,", ",cache,").replace(",local,", ",cache,")
            settled(bench)

    asyncio.run(main())


def test_what_may_not_leave_the_house_is_in_no_batch(tmp_path: Path) -> None:
    async def main() -> None:
        async with Simulator() as sim:
            bench = Bench(tmp_path / "bench", sim, "anthropic", escalate="never")
            await bench.run()
            assert sim.connections == 0
            assert b"frontier" not in bench.out.read_bytes()
            assert not (bench.folder / "out.csv.batch").exists()

    asyncio.run(main())


def test_an_interrupted_wait_says_how_to_go_on_and_a_second_run_is_refused_meanwhile(tmp_path: Path) -> None:
    async def main() -> None:
        async with Simulator() as sim:
            sim.batches.delay_s = None
            polled = asyncio.Event()

            async def at(point: str) -> None:
                if point == "status":
                    polled.set()

            sim.batches.at = at
            bench = Bench(tmp_path / "bench", sim, "openai")
            waiting = await bench.start()
            async with asyncio.timeout(PATIENCE_S):
                await polled.wait()
            second = await bench.start()
            _, said = await second.communicate()
            assert second.returncode == 2
            assert b"another run is writing to out.csv" in said
            waiting.send_signal(signal.SIGINT)
            async with asyncio.timeout(PATIENCE_S):
                _, said = await waiting.communicate()
            assert waiting.returncode == 1
            assert b"what was submitted goes on at p. Run the same command again" in said
            sim.batches.finish()
            await bench.run()
            settled(bench)

    asyncio.run(main())


def test_what_has_changed_since_the_job_began_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    async def main() -> None:
        async with Simulator() as sim:
            sim.batches.delay_s = None
            bench = Bench(tmp_path / "bench", sim, "anthropic")
            await bench.killed("polling")
            for file, old, new, what in (
                ("in.csv", "hmm", "hum", "input"),
                ("crossover.toml", "0.97", "0.96", "policy"),
                ("crossover.toml", "claude-haiku-5-5", "claude-haiku-4-5", "provider"),
            ):
                kept = (bench.folder / file).read_text()
                (bench.folder / file).write_text(kept.replace(old, new))
                process = await bench.start()
                _, said = await process.communicate()
                assert process.returncode == 2, said
                assert f"was begun with another {what}".encode() in said
                assert re.search(rb"give it up: remove that file.*msgbatch_sim_\d+", said)
                (bench.folder / file).write_text(kept)
            sim.batches.finish()
            await bench.run()
            settled(bench)

    asyncio.run(main())
