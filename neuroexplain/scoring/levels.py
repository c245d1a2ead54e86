"""Raw activations -> the levels that LLMs read (pure)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST_SHARE = 1e-3  # an expected level in 0..1 below which two are alike: 0, as where a word was cut off
NOISE = 0.2  # of log odds: by so much two prompts differ that say the same of a token


def to_levels(activations: ArrayLike, maximum: float, scale: int = 10) -> NDArray[np.int64]:
    """Levels 0..scale: `min(scale, floor(10 * relu(a) / max))`, all 0 where max <= 0; same shape.

    `maximum` is over all the records shown. Multiplied before dividing, in float64, so that the peak is `scale` exactly.
    Scale is 10, or 9 where the model's tokenizer has no token for 10 (Bills et al. 2023).
    """
    values = np.maximum(np.asarray(activations, np.float64), 0.0)
    if maximum <= 0:
        return np.zeros(values.shape, np.int64)
    return np.minimum(scale, np.floor(10 * values / float(maximum))).astype(np.int64)


def expected_level(probabilities: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(expected level, digit mass) of each row of level probabilities [rows, n_levels]; NaN-free: mass 0 raises ValueError."""
    mass = probabilities.sum(axis=-1)
    if np.any(mass <= 0):
        raise ValueError("a distribution has no mass on any level")
    return probabilities @ np.arange(probabilities.shape[-1]) / mass, mass


def raised_level(expected: NDArray[np.float64], neutral: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much an explanation raises the odds of the highest level over a neutral one; same shape.

    `r = max(0, log(odds / neutral odds))` of expected levels in 0..1, less where it is no more than noise: `r^2 / (r + NOISE)`.
    What the neutral one gives is what the simulator says of the token whatever is looked for; NaN stays NaN.
    """
    raised = np.maximum(0.0, _log_odds(expected) - _log_odds(neutral))
    beyond_noise: NDArray[np.float64] = raised**2 / (raised + NOISE)
    return beyond_noise


def _log_odds(share: NDArray[np.float64]) -> NDArray[np.float64]:
    odds: NDArray[np.float64] = np.log((share + LEAST_SHARE) / (1 - share + LEAST_SHARE))
    return odds
