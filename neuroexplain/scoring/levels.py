"""Activations -> the levels that LLMs read, and the levels that they answer -> predictions (pure)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

HIGHEST_LEVEL = 10  # as in Bills et al. (2023)
LEAST_SHARE = 1e-3  # added to expected levels in 0..1 before log odds: below it two of them are alike
NOISE = 0.2  # of log odds: two prompts that say the same of a token differ by a tenth or two


def to_levels(activations: ArrayLike, maximum: float) -> NDArray[np.int64]:
    """Levels 0..10: `min(10, floor(10 * relu(activation) / maximum))`; all 0 if maximum <= 0; same shape.

    `maximum` is over all records of one prompt. The product comes before the quotient, in float64, so the
    peak's level is exactly 10. The scale is that of Bills et al. (2023).
    """
    values = np.maximum(np.asarray(activations, np.float64), 0.0)
    if maximum <= 0:
        return np.zeros(values.shape, np.int64)
    return np.minimum(HIGHEST_LEVEL, np.floor(HIGHEST_LEVEL * values / float(maximum))).astype(np.int64)


def expected_level(probabilities: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The expected level of each row of level probabilities [rows, n_levels], and the row's sum.

    Expected levels are in 0..n_levels - 1. Raises ValueError for a sum of 0.
    """
    mass = probabilities.sum(axis=-1)
    if np.any(mass <= 0):
        raise ValueError("a distribution has no mass on any level")
    return probabilities @ np.arange(probabilities.shape[-1]) / mass, mass


def raised_level(expected: NDArray[np.float64], neutral: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much an explanation raises the odds of the highest level over a neutral one; same shape.

    Both are expected levels in 0..1. With `r = max(0, log(odds / neutral odds))` it is `r^2 / (r + NOISE)`,
    which takes r down where it is no more than noise. The neutral level is what the simulator says of the
    token whatever it looks for. NaN stays NaN.
    """
    raised = np.maximum(0.0, _log_odds(expected) - _log_odds(neutral))
    beyond_noise: NDArray[np.float64] = raised**2 / (raised + NOISE)
    return beyond_noise


def _log_odds(share: NDArray[np.float64]) -> NDArray[np.float64]:
    log_odds: NDArray[np.float64] = np.log((share + LEAST_SHARE) / (1 - share + LEAST_SHARE))
    return log_odds
