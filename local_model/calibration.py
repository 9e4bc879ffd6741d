"""How much a confidence is worth: temperature scaling, its error, and the interval around an accuracy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binomtest


def fit_temperature(logits: NDArray[np.floating], targets: NDArray[np.integer]) -> float:
    """The T > 0 that minimizes the negative log likelihood of softmax(logits / T).

    `logits` (n, labels), of texts the head was not fitted on; `targets` (n,), indices. Source: Guo et al. 2017, "On
    calibration of modern neural networks", section 4.2. Targets are smoothed to (n + 1) / (n + 2) as in Platt 1999,
    "Probabilistic outputs for support vector machines": few texts, all answered right, would else drive T to 0.
    """
    count, labels = logits.shape
    wide = logits.astype(np.float64)
    miss = 1.0 / (count + 2.0)
    rows = np.arange(count)

    def loss(log_t: float) -> float:
        log_p = log_softmax(wide / math.exp(log_t), axis=1)
        hit = log_p[rows, targets]
        rest = (log_p.sum(axis=1) - hit) / (labels - 1)
        return float(-((1.0 - miss) * hit + miss * rest).mean())

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20.0)), method="bounded")
    return math.exp(float(found.x))


def calibration_error(confidences: NDArray[np.floating], right: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy over equal-width bins, weighted by size.

    Source: Guo et al. 2017, equation 3. `confidences` and `right`: (n,).
    """
    if not len(confidences):
        return 0.0
    which = np.minimum((confidences * bins).astype(int), bins - 1)
    sizes = np.bincount(which, minlength=bins)
    gaps = np.abs(
        np.bincount(which, weights=confidences, minlength=bins)
        - np.bincount(which, weights=right.astype(np.float64), minlength=bins)
    )
    return float(gaps[sizes > 0].sum() / len(confidences))


def accuracy_interval(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's exact interval for a proportion. (0, 1) when nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    interval = binomtest(right, total).proportion_ci(confidence_level=confidence, method="exact")
    return float(interval.low), float(interval.high)
