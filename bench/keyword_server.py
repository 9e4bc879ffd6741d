"""`crossover serve` with a model that only looks for keywords, so that it starts at once: for benches that start it
hundreds of times and ask nothing of the model. Everything else is the service's own.

python bench/keyword_server.py serve --config FILE ...
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from local_model.fake import KeywordClassifier
from router import local_tier
from router.cli import main

LABELS = {"known": ["known", "card"], "other": ["zzz"]}


class KeywordModel(KeywordClassifier):
    """What the service asks of `local_model.model.LocalModel`. Texts without a keyword are uncertain."""

    healthy = True

    @classmethod
    def load(cls, _settings: Any, specs: Sequence[Any], **_: Any) -> KeywordModel:
        return cls({spec.name: LABELS for spec in specs})

    def warm(self) -> None: ...

    def limit(self, _settings: Any) -> None: ...

    def on_death(self, _told: Callable[[BaseException], None]) -> None: ...

    def on_batch(self, _told: Callable[[int], None]) -> None: ...

    def start(self, _loop: asyncio.AbstractEventLoop) -> None: ...

    async def idle(self) -> None: ...

    def close(self) -> None: ...

    def stats(self) -> dict[str, int]:
        return {"waiting": 0}

    def status(self) -> dict[str, Any]:
        return {"encoders": [{"device": "cpu", "kind": "keywords", "threads": 1, "sources": []}]}


if __name__ == "__main__":
    local_tier.LocalModel = KeywordModel  # type: ignore[misc, assignment]
    main()
