"""A confidence of 0.8 means: right four times in five."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_model.calibration import accuracy_interval, calibration_error, fit_temperature
from local_model.heads import softmax


@settings(max_examples=15, deadline=None)
@given(st.floats(0.3, 4.0), st.integers(2, 8), st.integers(0, 2**31))
def test_the_temperature_that_was_put_in_is_found_again(temperature: float, labels: int, seed: int) -> None:
    """Labels drawn from softmax(logits): scaled by T, the logits need T to be true again."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (4_000, labels))
    targets = np.array([rng.choice(labels, p=row) for row in softmax(logits)])
    assert fit_temperature(logits * temperature, targets) == pytest.approx(temperature, rel=0.15)


def test_scaling_the_logits_scales_the_temperature_and_leaves_the_probabilities() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (2_000, 4))
    targets = np.array([rng.choice(4, p=row) for row in softmax(logits)])
    one, ten = fit_temperature(logits, targets), fit_temperature(logits * 3, targets)
    assert np.allclose(softmax(logits / one), softmax(logits * 3 / ten), atol=1e-3)


def test_a_few_texts_all_answered_right_do_not_make_the_model_certain() -> None:
    logits = np.array([[3.0, 0.0], [0.0, 3.0]] * 5)
    targets = np.array([0, 1] * 5)
    confidence = softmax(logits / fit_temperature(logits, targets)).max()
    assert confidence == pytest.approx(11 / 12, abs=0.01), "Platt: (n + 1) / (n + 2)"


def test_the_calibration_error_of_truth_is_small_and_of_overconfidence_is_its_gap() -> None:
    rng = np.random.default_rng(2)
    confidences = rng.uniform(0.2, 1, 50_000)
    assert calibration_error(confidences, rng.uniform(size=50_000) < confidences) < 0.01
    right = np.arange(1_000) % 2 == 0
    assert calibration_error(np.full(1_000, 0.9), right) == pytest.approx(0.4)
    assert calibration_error(np.ones(4), np.ones(4, bool)) == 0
    assert calibration_error(np.array([]), np.array([], bool)) == 0


def test_the_interval_is_that_of_the_textbook() -> None:
    """Clopper and Pearson 1934: 0 of 10 right gives 1 - 0.025^(1/10) above."""
    assert accuracy_interval(0, 10) == pytest.approx((0, 1 - 0.025**0.1))
    low, high = accuracy_interval(95, 100)
    assert (low, high) == pytest.approx((0.8872, 0.9836), abs=1e-4)
    assert accuracy_interval(0, 0) == (0.0, 1.0)
