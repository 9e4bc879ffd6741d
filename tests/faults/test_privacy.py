"""Nothing about texts or machines goes where it should not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from router.paths import cache_dir


def test_onnxruntime_keeps_no_telemetry(tmp_path: Path) -> None:
    """Since 1.31 it writes a device id and events under the home folder unless it is told not to."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-m", "router", "classify", "I lost my card"],
        capture_output=True,
        text=True,
        env={**environment, "HOME": str(home), "CROSSOVER_CACHE_DIR": str(cache_dir())},
    )
    assert done.returncode == 0, done.stderr
    assert [path for path in home.rglob("*") if path.is_file()] == []
