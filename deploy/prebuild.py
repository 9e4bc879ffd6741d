"""Builds, while the image is built, what the config's models need: downloads, ONNX graphs, a warm-up that proves them.

    python deploy/prebuild.py deploy/config/crossover.toml

Everything lands where the service will look for it: CROSSOVER_CACHE_DIR and, for models from a hub, HF_HOME.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from local_model.model import LocalModel
from router import config_file, paths
from router.wiring import model_settings, task_specs


def main() -> None:
    """Raises what the service would raise at start: a broken model stops the build."""
    # Keys are for the container, not for its image: without them only a loopback host is a valid config.
    environment = {"CROSSOVER_SERVER__HOST": "127.0.0.1", **os.environ}
    loaded = config_file.load(Path(sys.argv[1]), environment)
    model = LocalModel.load(model_settings(loaded), task_specs(loaded), cache_dir=paths.cache_dir(), progress=_say)
    model.warm()


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201 - the build's log


if __name__ == "__main__":
    main()
