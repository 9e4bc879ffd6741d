"""Every classifier keeps the same promises: the model and the one that finds keywords."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from local_model.fake import KeywordClassifier
from local_model.model import LocalModel, ModelSettings, TaskSpec
from local_model.types import Expired, OverLength, QueueFull
from router.paths import cache_dir

HEAD = Path(__file__).resolve().parents[2] / "local_model" / "heads" / "banking77"
TEXTS = ["I lost my card", "how do I change my PIN", "has my card arrived"]


@pytest.fixture(params=["model", "keywords"])
def classifier(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Not started: the test's loop does that."""
    if request.param == "keywords":
        yield KeywordClassifier({"banking": {"lost": ["lost"], "pin": ["pin"], "arrival": ["arrive"]}}, queue_items=8)
        return
    settings = ModelSettings(queue_tokens=64)
    model = LocalModel.load(settings, [TaskSpec("banking", head=HEAD)], cache_dir=cache_dir())
    yield model
    model.close()


def started(classifier: Any) -> None:
    if isinstance(classifier, LocalModel):
        classifier.start(asyncio.get_running_loop())


def test_each_text_gets_a_prediction_in_order(classifier: Any) -> None:
    """Probabilities over the task's labels, a unit embedding, its tokens and its times."""

    async def main() -> None:
        started(classifier)
        info = classifier.task("banking")
        predictions = await asyncio.gather(*classifier.submit("banking", TEXTS, truncate=False, deadline=None))
        alone = [(await classifier.submit("banking", [t], truncate=False, deadline=None)[0]) for t in TEXTS]
        for one, other in zip(predictions, alone, strict=True):
            assert one.probabilities.shape == (len(info.labels),)
            assert one.probabilities.sum() == pytest.approx(1.0, abs=1e-5)
            assert np.linalg.norm(one.embedding) == pytest.approx(1.0, abs=1e-4)
            np.testing.assert_array_equal(one.probabilities, other.probabilities)
            order = np.argsort(-one.probabilities, kind="stable")[: len(one.top)]
            assert one.top == tuple((int(i), float(one.probabilities[i])) for i in order)
            assert len(one.top) == min(10, len(info.labels))
            assert one.tokens > 2
            assert not one.truncated
            assert one.queue_us >= 0
            assert one.run_us >= 0
        assert len({int(p.probabilities.argmax()) for p in predictions}) == len(TEXTS)

    asyncio.run(main())


def test_what_is_too_long_is_said_or_cut_as_asked(classifier: Any) -> None:
    """By its own future; the neighbours are answered."""

    async def main() -> None:
        started(classifier)
        long = "lost " * 400
        whole, fine = classifier.submit("banking", [long, TEXTS[0]], truncate=False, deadline=None)
        with pytest.raises(OverLength):
            await whole
        assert not (await fine).truncated
        (cut,) = classifier.submit("banking", [long], truncate=True, deadline=None)
        assert (await cut).truncated
        assert (await cut).tokens > classifier.task("banking").max_tokens, "of the whole text"

    asyncio.run(main())


def test_a_deadline_in_the_past_is_not_computed(classifier: Any) -> None:
    """Expired, by its own future."""

    async def main() -> None:
        started(classifier)
        (future,) = classifier.submit(
            "banking", TEXTS[:1], truncate=False, deadline=asyncio.get_running_loop().time() - 1
        )
        with pytest.raises(Expired):
            await future

    asyncio.run(main())


def test_whoever_asks_gets_the_same_answer_and_who_leaves_takes_nobodys(classifier: Any) -> None:
    """In use by several at once, for two tenants; one caller goes away."""

    async def main() -> None:
        started(classifier)
        with classifier, classifier:
            (mine,) = classifier.submit("banking", TEXTS[:1], truncate=False, deadline=None, tenant="a")
            gone, theirs = classifier.submit("banking", TEXTS[:1] * 2, truncate=False, deadline=None, tenant="b")
            gone.cancel()
            assert (await mine).top == (await theirs).top
            assert gone.cancelled()

    asyncio.run(main())


def test_the_figures_have_the_same_names(classifier: Any) -> None:
    """What the metrics read."""
    names = (
        "waiting waiting_tokens running batches texts expired failed out_of_memory cancelled batch_tokens queue_tokens"
    )
    assert set(classifier.stats()) == set(names.split())
    assert set(names.split()) | {"healthy", "notes", "encoders", "tasks"} == set(classifier.status())


def test_admission_takes_all_or_none(classifier: Any) -> None:
    """An empty queue takes any request; what does not fit behind it is QueueFull, with a time to come back."""

    async def main() -> None:
        started(classifier)
        if isinstance(classifier, KeywordClassifier):
            classifier.hold()
        admitted = classifier.submit("banking", TEXTS * 30, truncate=False, deadline=None)
        with pytest.raises(QueueFull) as caught:
            classifier.submit("banking", TEXTS, truncate=False, deadline=None)
        assert caught.value.retry_after > 0
        if isinstance(classifier, KeywordClassifier):
            classifier.release()
        assert len(await asyncio.gather(*admitted)) == 90

    asyncio.run(main())
