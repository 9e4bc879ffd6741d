"""What a precision costs in answers, whether that is too much, and which engine is taken then."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_model.gate import Quality, choose, measure, verdict

GOOD = Quality(texts=9_000, label_agreement=0.99, largest_shift=0.3, accepts_flipped=0.02)
BAD = Quality(texts=9_000, label_agreement=0.90, largest_shift=0.9, accepts_flipped=0.02)


def two(*first: float) -> np.ndarray[Any, Any]:
    """Probabilities of two labels, by the first's."""
    return np.array([[p, 1 - p] for p in first], np.float32)


def test_the_figures_are_counted_as_they_are_defined() -> None:
    mine = two(0.9, 0.75, 0.4, 0.1)
    fp32 = two(0.9, 0.85, 0.6, 0.1)  # the second decision at 0.8 and the third label differ
    found = measure(mine, fp32, np.array([0, 0, 0, 1]), 0.8)
    assert found.texts == 4
    assert found.label_agreement == 0.75
    assert found.accepts_flipped == 0.25
    assert found.largest_shift == pytest.approx(0.1)
    assert found.accuracy == 0.75
    assert found.accuracy_lost == pytest.approx(25)
    assert found.calibration_error is not None


def test_without_labels_nothing_is_said_about_accuracy() -> None:
    found = measure(two(0.9), two(0.8))
    assert found.accuracy is found.accuracy_lost is found.calibration_error is found.calibration_lost is None
    assert verdict(found) == []


def test_scores_that_are_not_finite_count_as_wrong() -> None:
    fp32 = two(*[0.9] * 50)
    mine = fp32.copy()
    mine[:25] = np.nan
    found = measure(mine, fp32, np.zeros(50, np.int64))
    assert found.label_agreement == found.accuracy == 0.5
    assert found.accepts_flipped == 0.5
    assert np.isfinite(found.largest_shift)
    assert verdict(found)


@given(st.integers(1, 300), st.integers(2, 9), st.integers(0, 99))
def test_what_equals_fp32_always_passes(rows: int, labels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    fp32 = rng.dirichlet(np.ones(labels), rows)
    found = measure(fp32, fp32, rng.integers(0, labels, rows))
    assert (found.label_agreement, found.accepts_flipped, found.accuracy_lost) == (1, 0, 0)
    assert verdict(found) == []


def test_the_shipped_int8_head_as_measured_on_3080_texts_passes() -> None:
    assert verdict(Quality(3_080, 0.987, 0.5, 0.025, 0.009, 0.003, 0.92, 0.36)) == []


def test_a_quantization_known_to_be_too_coarse_fails() -> None:
    """4.7 % other labels were measured with torch's quantize_dynamic."""
    (reason,) = verdict(Quality(3_080, 0.953, 0.52, 0.04, 0.016, 0.002, 0.913, 1.1))
    assert "4.7% of 3,080 texts get another label" in reason


@pytest.mark.parametrize("texts", [32, 1_000])
def test_answers_that_have_nothing_to_do_with_the_text_fail_even_on_the_probes_alone(texts: int) -> None:
    rng = np.random.default_rng(1)
    fp32, mine = rng.dirichlet(np.ones(5) / 5, texts), rng.dirichlet(np.ones(5) / 5, texts)
    assert any("another label" in reason for reason in verdict(measure(mine, fp32)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label_agreement": 0.95}, "5.0% of 9,000 texts get another label"),
        ({"accepts_flipped": 0.07}, "7.0% of 9,000 decisions"),
        ({"accuracy_lost": 1.0}, "1.00 points of accuracy"),
        ({"calibration_lost": 0.05}, "calibration error grows by 0.050"),
    ],
)
def test_each_limit_fails_alone_and_is_named(change: dict[str, float], said: str) -> None:
    good = {"texts": 9_000, "label_agreement": 0.99, "largest_shift": 0.3, "accepts_flipped": 0.02}
    (reason,) = verdict(Quality(**{**good, **change}))  # type: ignore[arg-type]
    assert said in reason


def test_one_text_of_twenty_proves_nothing() -> None:
    assert verdict(Quality(20, 0.95, 0.3, 0.1, 0.2, 0.05, 0.9, 5.0)) == []


# --- the choice


def test_the_known_order_counts_where_nothing_was_timed() -> None:
    assert choose(["onnx-int8", "torch-fp32"], {}).kind == "onnx-int8"


def test_measured_speeds_count_where_each_candidate_has_one() -> None:
    def timed(speed: float) -> list[Quality]:
        return [Quality(9_000, 0.99, 0.3, 0.02, texts_per_second=speed)]

    order = ["torch-fp8", "torch-int8", "torch-bf16"]
    assert choose(order, {"torch-fp8": timed(1), "torch-int8": timed(2), "torch-bf16": timed(3)}).kind == "torch-bf16"
    assert choose(order, {"torch-int8": timed(2), "torch-bf16": timed(3)}).kind == "torch-fp8"


def test_a_candidate_that_fails_is_passed_over_and_why_says_which_figure() -> None:
    found = choose(["onnx-int8", "torch-fp32"], {"onnx-int8": [BAD]})
    assert found.kind == "torch-fp32"
    assert "onnx-int8 fails the quality gate: 10.0% of 9,000 texts" in found.why
    assert list(found.failed) == ["onnx-int8"]


def test_one_head_that_fails_is_enough() -> None:
    assert choose(["onnx-int8", "torch-fp32"], {"onnx-int8": [GOOD, BAD]}).kind == "torch-fp32"


def test_where_all_fail_the_last_serves_and_says_so() -> None:
    found = choose(["onnx-int8"], {"onnx-int8": [BAD]})
    assert found.kind == "onnx-int8"
    assert "no engine passes" in found.why
    assert found.failed


def test_why_tells_the_figures_of_what_passed() -> None:
    why = choose(["onnx-int8", "torch-fp32"], {"onnx-int8": [GOOD]}).why
    assert why.startswith("onnx-int8, first of those that pass the quality gate (99.0% of 9,000 texts")
    assert "never held against fp32" in choose(["onnx-int8", "torch-fp32"], {}).why
