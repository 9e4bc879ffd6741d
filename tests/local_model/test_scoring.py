"""What is told of each text, from what the engine gave for the batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_model.engines import Output
from local_model.heads import Head
from local_model.scoring import Scored, Text, best, score
from local_model.types import TOP, NotFinite


def head(labels: int) -> Head:
    return Head(tuple(map(str, range(labels))), False, 1.0, "", {}, np.eye(labels, 4, dtype=np.float32), np.zeros(1))


def text(of: Head) -> Text:
    return Text([1, 2, 3], 3, False, of)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=40))
def test_the_best_labels_come_first_and_ties_in_the_order_of_the_labels(values: list[int]) -> None:
    """So the first is the one that argmax gives."""
    row = np.array(values, np.float32)
    top = best(row)
    assert len(top) == min(TOP, len(values))
    assert [p for _, p in top] == sorted(values, reverse=True)[:TOP]
    assert top[0][0] == row.argmax()
    assert list(top) == sorted(top, key=lambda pair: (-pair[1], pair[0]))


def test_each_task_of_a_batch_scores_its_own_rows() -> None:
    two, three = head(2), head(3)
    embeddings = np.eye(4, dtype=np.float32)
    found = score(Output(embeddings, None), [text(two), text(three), text(two), text(three)])
    assert [len(one.probabilities) for one in found if isinstance(one, Scored)] == [2, 3, 2, 3]
    for row, one in enumerate(found):
        assert isinstance(one, Scored)
        assert np.array_equal(one.embedding, embeddings[row])
        assert one.top[0] == (one.probabilities.argmax(), pytest.approx(one.probabilities.max()))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_text_that_is_not_finite_fails_alone(bad: float) -> None:
    """Also where the logits are the model's own and fine, and only the embedding is not."""
    embeddings = np.ones((3, 4), np.float32)
    embeddings[1, 2] = bad
    own = Head(("a", "b"), False, 1.0, "")
    for of, logits in ((head(2), None), (own, np.zeros((3, 2), np.float32))):
        found = score(Output(embeddings, logits), [text(of)] * 3)
        assert [type(one) for one in found] == [Scored, NotFinite, Scored]
