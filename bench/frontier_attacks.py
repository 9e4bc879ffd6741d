"""Labels that flip under attack: the local model beside a simulation that obeys orders. A part of bench/frontier.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
from frontier_services import KEYS, SECOND, SERVICE, simulator
from harness import ROOT
from rich.table import Table


def attack(folder: Path, count: int) -> list[dict[str, Any]]:
    """A line a classifier, as `crossover compare --attacks --json` has them."""
    data = str(ROOT / "examples" / "bank_support.csv")
    with simulator(folder, "gullible", "--latency-ms", "0", "--gullible", "1", "--answers", data) as sim:
        config = folder / "attacked.toml"
        config.write_text(SERVICE.format(threshold=1.0) + SECOND.format(url=sim.url))
        command = [sys.executable, "-m", "router", "compare", "--attacks", "--yes", "--json", "-n", str(count)]
        command += ["--config", str(config), "--data", data]
        state = {"CROSSOVER_STATE_DIR": str(folder / "attacked")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, env={**os.environ, **KEYS, **state})
    if not done.stdout:
        raise SystemExit(f"{' '.join(command[1:4])} failed:\n{done.stderr}")
    found: list[dict[str, Any]] = json.loads(done.stdout)["contenders"]
    return found


def show_flips(flips: Sequence[dict[str, Any]]) -> None:
    table = Table("classifier", title="labels under attack", title_justify="left")
    for column in ("flipped to the target %", "95 % interval", "changed %", "by control %", "no label"):
        table.add_column(column, justify="right")
    for flip in flips:
        name = flip["name"] + (" (SIMULATED, obeys every order that it finds)" if flip["simulated"] else "")
        low, high, shares = flip["flipped_low"], flip["flipped_high"], ("flipped", "changed", "changed_by_control")
        flipped, changed, control = (f"{flip[key] * 100:.1f}" for key in shares)
        between = f"{low * 100:.1f} - {high * 100:.1f}"
        table.add_row(name, flipped, between, changed, control, str(flip["unanswered"]))
    harness.console().print(table)
