"""What the benches share: results are written in one form, and nothing unmeasured passes for a bar that holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def test_results_name_the_machine_the_bars_and_what_did_not_run(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "OUT", tmp_path)
    bars = [harness.Bar("faster", 12.0, ">= 10", "x", True), harness.Bar("on a GPU", None, ">= 5000", "1/s", None)]
    code = harness.finish("sample", bars=bars, rows=[{"a": 1}], not_run={"on a GPU": "no GPU here"})
    written = json.loads((tmp_path / "sample.json").read_text())
    assert code == 0
    assert written["bars"][0] == {"name": "faster", "value": 12.0, "target": ">= 10", "unit": "x", "holds": True}
    assert written["rows"] == [{"a": 1}]
    assert written["not_run"] == [{"name": "on a GPU", "reason": "no GPU here"}]
    assert written["machine"]["cores"] >= 1
    assert written["machine"]["cpu"]
    shown = capsys.readouterr().out
    assert "not measured" in shown
    assert "no GPU here" in shown


def test_a_bar_that_does_not_hold_is_the_exit_code(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "OUT", tmp_path)
    assert harness.finish("sample", bars=[harness.Bar("faster", 9.0, ">= 10", "x", False)]) == 1


def test_missing_data_is_a_reason_and_no_crash(harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(harness.DATA_VARIABLE, raising=False)
    assert harness.data_folder() == (
        None,
        f"{harness.DATA_VARIABLE} is not set; it names the folder with the data sets",
    )
    monkeypatch.setenv(harness.DATA_VARIABLE, str(tmp_path))
    assert harness.data_folder("a.csv")[1] == f"{harness.DATA_VARIABLE} has no a.csv"
    (tmp_path / "a.csv").touch()
    assert harness.data_folder("a.csv") == (tmp_path, "")


def test_a_server_that_does_not_start_gives_its_last_words(harness: Any, tmp_path: Path) -> None:
    log = tmp_path / "broken.log"
    with harness.child([sys.executable, "-c", "raise SystemExit('no such model')"], log) as process:
        process.wait()
        with pytest.raises(SystemExit, match="no such model"):
            harness.wait_for(process, log, r"listening on (\S+)", "/")


def test_settings_of_whoever_runs_a_bench_do_not_reach_what_is_measured(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSOVER_CACHE__URL", "redis://elsewhere")
    log = tmp_path / "child.log"
    with harness.child([sys.executable, "-c", "import os; print(dict(os.environ))"], log, SAID="yes") as process:
        process.wait()
    assert "CROSSOVER_CACHE__URL" not in log.read_text()
    assert "'SAID': 'yes'" in log.read_text()


def test_cpu_time_is_that_of_the_process_and_its_children(harness: Any) -> None:
    spin = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert harness.Server("", process.pid).cpu_seconds() > 0.15
        assert harness.Server("", os.getpid()).cpu_seconds() > 0
    finally:
        process.communicate(b"\n")


def test_a_bench_that_is_told_to_end_takes_its_children_along(harness: Any, tmp_path: Path) -> None:
    script = f"""
import pathlib, sys, time
sys.path.insert(0, {str(Path(harness.__file__).parent)!r})
import harness
sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
with harness.child(sleeper, pathlib.Path({str(tmp_path / "log")!r})) as process:
    print(process.pid, flush=True)
    time.sleep(60)
"""
    bench = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert bench.stdout is not None
    child = harness.psutil.Process(int(bench.stdout.readline()))
    bench.terminate()
    bench.communicate(timeout=30)
    assert not child.is_running()
