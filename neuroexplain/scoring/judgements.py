"""How well probabilities of yes tell windows where a unit fires from others: weighted metrics (pure).

A window is the scored half of a random or sampled record, and counts for as many windows of the corpus as it
stands for. So each metric estimates its value over the whole corpus, at the corpus' share of positives: F1
and average precision of balanced samples, as others publish them, are higher.

The interval is the jackknife over windows of population.py, on the metric's log odds. A metric that is
undefined without a window, since that is the only positive one, counts there as what guessing earns; nearer
than CUT to 0 or 1 it counts as CUT away, since its log odds would be infinite. Rejected: the jackknife on the
metric itself, which covers 62 to 75% where an AUROC is 0.98; docs/decisions.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuroexplain.scoring.population import KINDS_DRAWN, Array, half_width, weighted_auprc

THRESHOLD = 0.5  # probability of yes from which a window is called positive
CUT = 0.01  # from 0 and 1: figures nearer than that count as that far away, for the interval alone
ROUNDING = 1e-9  # log odds that differ by less are equal
LEAST_OF_KIND = 2  # windows of each kind that an interval needs
STRATA: tuple[str, ...] = KINDS_DRAWN
HARD_STRATA = ("positive", "hard")
AUROC, F1, BALANCED_ACCURACY, BRIER = "auroc", "f1", "balanced_accuracy", "brier"


@dataclass(frozen=True)
class Judgements:
    """What a judge says of some windows."""

    # [n], of STRATA: random or sampled; a record that was drawn as both is a sampled one. In the subset
    # `hard` of HARD_STRATA.
    kinds: Sequence[str]
    weights: Array  # [n], 1 / the probability with which each was drawn; 1 of a hard negative
    probabilities: Array  # [n], of yes; for metrics that only compare them, any values
    is_positive: NDArray[np.bool_]  # [n], whether the unit fires there


def weighted_auroc(probabilities: Array, is_positive: NDArray[np.bool_], weights: Array) -> float | None:
    """The probability that a positive window has a higher probability of yes than a negative one.

    Equal ones count as a half. None without a positive or without a negative one.
    """
    positive, negative = weights[is_positive], weights[~is_positive]
    if not positive.sum() or not negative.sum():
        return None
    difference = probabilities[is_positive][:, None] - probabilities[~is_positive][None, :]
    wins = (difference > 0) + 0.5 * (difference == 0)
    return min(1.0, float(positive @ wins @ negative / (positive.sum() * negative.sum())))


def weighted_f1(probabilities: Array, is_positive: NDArray[np.bool_], weights: Array) -> float | None:
    """2 TP / (2 TP + FP + FN) at the threshold; None without a positive."""
    if not weights[is_positive].sum():
        return None
    is_yes = probabilities >= THRESHOLD
    hits = float(weights[is_yes & is_positive].sum())
    return 2 * hits / float(weights[is_yes].sum() + weights[is_positive].sum())


def weighted_balanced_accuracy(
    probabilities: Array, is_positive: NDArray[np.bool_], weights: Array
) -> float | None:
    """The mean of the shares of positive and of negative windows that are told right at the threshold.

    None without a positive or without a negative one.
    """
    is_right = (probabilities >= THRESHOLD) == is_positive
    shares = []
    for members in (is_positive, ~is_positive):
        total = float(weights[members].sum())
        if not total:
            return None
        shares.append(float(weights[members & is_right].sum()) / total)
    return sum(shares) / 2


def weighted_brier(probabilities: Array, is_positive: NDArray[np.bool_], weights: Array) -> float | None:
    """The mean squared distance of the probability from 1 or 0; less is better. None without a window."""
    total = float(weights.sum())
    return float(weights @ (probabilities - is_positive) ** 2) / total if total else None


@dataclass(frozen=True)
class JudgeMetric:
    """A metric, and what it counts as where it is undefined."""

    value_of: Callable[[Array, NDArray[np.bool_], Array], float | None]
    guessing: float

    def value(self, judged: Judgements) -> float | None:
        return self.value_of(judged.probabilities, judged.is_positive, judged.weights)


JUDGE_METRICS: Mapping[str, JudgeMetric] = {
    AUROC: JudgeMetric(weighted_auroc, 0.5),
    "auprc": JudgeMetric(weighted_auprc, 0.0),
    F1: JudgeMetric(weighted_f1, 0.0),
    BALANCED_ACCURACY: JudgeMetric(weighted_balanced_accuracy, 0.5),
    BRIER: JudgeMetric(weighted_brier, 1.0),
}


def judged_interval(
    judged: Judgements, metric: JudgeMetric, strata: Sequence[str] = STRATA
) -> tuple[float, float] | str:
    """A 95% interval of a metric, which lies in it, or the reason why there is none.

    strata: the kinds of windows that were drawn each by itself.
    """
    value = metric.value(judged)
    if value is None:
        return "the metric is undefined"
    for kind in strata:
        count = sum(own == kind for own in judged.kinds)
        if count < LEAST_OF_KIND:
            return f"{count} {kind} windows, {LEAST_OF_KIND} are needed"
    left_out = []
    for place in range(len(judged.kinds)):
        without = metric.value_of(
            np.delete(judged.probabilities, place),
            np.delete(judged.is_positive, place),
            np.delete(judged.weights, place),
        )
        left_out.append(metric.guessing if without is None else without)
    odds = _log_odds(np.array(left_out))
    half = half_width(odds, judged.kinds, strata)
    if half is None or np.ptp(odds) < ROUNDING:
        return "the value is the same without any of the windows"
    middle = float(_log_odds(np.array(value)))
    low, high = (1 / (1 + math.exp(-bound)) for bound in (middle - half, middle + half))
    return min(low, value), max(high, value)


def _log_odds(values: Array) -> Array:
    cut: Array = np.clip(values, CUT, 1 - CUT)
    return np.log(cut / (1 - cut))
