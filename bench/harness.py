"""What the benches share: the machine's description, the service as a child process, the table of bars."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench" / "out"
DATA_VARIABLE = "CROSSOVER_BENCH_DATA"
#: Seconds a server may take to answer: the router's first start builds the int8 graph.
PATIENCE = 300


class Bar(NamedTuple):
    """A value that was promised. `holds` None: it was not measured."""

    name: str
    value: float | None
    target: str  # ">= 10"
    unit: str
    holds: bool | None


class Server(NamedTuple):
    """A running child."""

    url: str
    pid: int

    def cpu_seconds(self, named: str = "") -> float:
        """User and system time that the process and its children have used; only those `named` so, if given."""
        total = 0.0
        for member in _family(self.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                if named in member.name():
                    times = member.cpu_times()
                    total += times.user + times.system
        return total

    def resident_bytes(self, *, without: str | None = None) -> int:
        """Memory of the process and its children, those named `without` aside; pages that they share count for each."""
        total = 0
        for member in _family(self.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                if without is None or without not in member.name():
                    total += member.memory_info().rss
        return total

    def stop(self) -> None:
        """Let it and its children stand still until `go_on`."""
        for member in _family(self.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.suspend()

    def go_on(self) -> None:
        for member in _family(self.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.resume()


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def console() -> Console:
    """As wide as a terminal, or wide enough for the tables in a pipe."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def data_folder(*needed: str) -> tuple[Path | None, str]:
    """The data sets' folder, or None and why: the variable is not set, or a file in it is missing."""
    named = os.environ.get(DATA_VARIABLE)
    if not named:
        return None, f"{DATA_VARIABLE} is not set; it names the folder with the data sets"
    folder = Path(named)
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        return None, f"{DATA_VARIABLE} has no {', '.join(missing)}"
    return folder, ""


def finish(
    name: str,
    *,
    bars: Sequence[Bar],
    rows: Sequence[Mapping[str, Any]] = (),
    not_run: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> int:
    """Print notes and bars, write bench/out/NAME.json; gives the exit code: 1 if a bar does not hold."""
    out = console()
    for note in notes:
        out.print(f"- {note}")
    table = Table("bar", "value", "target", "holds", title=f"{name}: bars", title_justify="left")
    for bar in bars:
        value = "not measured" if bar.value is None else f"{bar.value:,.4g} {bar.unit}".strip()
        table.add_row(
            bar.name, value, f"{bar.target} {bar.unit}".strip(), {True: "yes", False: "NO", None: "-"}[bar.holds]
        )
    out.print(table)
    for what, why in (not_run or {}).items():
        out.print(f"not run: {what}: {why}")
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.json"
    result = {
        "machine": machine(),
        "bars": [bar._asdict() for bar in bars],
        "rows": list(rows),
        "not_run": [{"name": what, "reason": why} for what, why in (not_run or {}).items()],
        "notes": list(notes),
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    out.print(f"written: {os.path.relpath(path)}")
    return int(any(bar.holds is False for bar in bars))


def machine() -> dict[str, Any]:
    """Hardware, versions, date and commit: what a kept result needs."""
    versions = {}
    for package in ("torch", "onnxruntime", "transformers", "uvicorn", "litestar", "fastapi", "litserve"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "cpu": cpu_name(),
        "cores": len(psutil.Process().cpu_affinity()) if sys.platform == "linux" else psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "gpu": _said_by("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _said_by("git", "describe", "--always", "--dirty"),
    }


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _said_by(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


@contextlib.contextmanager
def child(command: Sequence[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, both outputs in `log`, ended with the block."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # who is told to end takes its children along
    # Settings of whoever runs the bench would change what is measured.
    inherited = {k: v for k, v in os.environ.items() if not (k.startswith("CROSSOVER_") and "__" in k)}
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env={**inherited, "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,
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
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # workers that outlived their parent: the group is ours alone


def wait_for(process: subprocess.Popen[bytes], log: Path, said: str, ready: str) -> Server:
    """Until the log matches `said` (a pattern with the URL as its group) and GET `ready` gives 200."""
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < PATIENCE:
        found = re.search(said, log.read_text(errors="replace"))
        if found and get_status(found[1] + ready) == 200:
            return Server(found[1], process.pid)
        time.sleep(0.1)
    raise SystemExit(f"{log.stem} did not start; its last words:\n{log.read_text(errors='replace')[-2000:]}")


def get_status(url: str) -> int:
    """0: nobody there."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@contextlib.contextmanager
def router(
    folder: Path, config: str, *, program: Sequence[str] = ("-m", "router"), **environment: str
) -> Iterator[Server]:
    """`crossover serve` (or Python on `program`) with `config` (TOML), warm; its state in `folder`, which is made."""
    folder.mkdir(parents=True)
    (folder / "crossover.toml").write_text(config)
    command = [sys.executable, *program, "serve", "--config", str(folder / "crossover.toml"), "--port", "0"]
    log = folder / "router.log"
    with child(command, log, CROSSOVER_STATE_DIR=str(folder), **environment) as process:
        yield wait_for(process, log, r"listening on (http://\S+)", "/ready")
