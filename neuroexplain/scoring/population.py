"""The population score: an estimate of the correlation over the whole corpus (pure).

Random and sampled records are drawn with known probabilities (sampling.py), so a token that was drawn with
probability p stands for 1 / p tokens of the corpus. The weighted correlation of truth and prediction over
them estimates the correlation over all tokens 64..127 of the split's visited segments. At equal records its
error is a third of that of Bills' score, which scores strongest records as if the corpus were made of them
(docs/scores.md).

The interval is a jackknife over records, since tokens of one record are not independent: arctanh r without
each record, random and sampled records apart, Student's t with Satterthwaite's degrees of freedom. Leaving a
record out takes its moments off those of all, so an interval costs one pass. Rejected: the smallest number of
records less one as degrees of freedom (covers 89 to 93%), the percentile bootstrap (81 to 87%).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuroexplain.units import Kind

Array = NDArray[np.float64]

LEAST_EFFECTIVE = 3.0  # records: with fewer, the score is that of one or two records
LEAST_VARIATION = 0.2  # of the truth's, on the tokens that are left, for a score of them to be defined
KINDS_DRAWN: tuple[Kind, ...] = ("random", "sampled")
POSITIVE_SHARE = 0.3  # of the side's strongest peak: truth above it is a positive of the AUPRC


@dataclass(frozen=True)
class WeightedRecord:
    """One record's scored tokens. A token without a prediction, or that does not count, is left out."""

    kind: Kind  # random or sampled; a record that was drawn as both is a sampled one
    weight: float  # 1 / the probability with which it was drawn
    predicted: Array  # [n]
    truth: Array  # [n]
    kept: NDArray[np.bool_] | None = None  # [n], tokens of words that are not named; None: all

    def beyond_words(self) -> WeightedRecord:
        """The record without the tokens of named words."""
        if self.kept is None:
            return self
        return WeightedRecord(self.kind, self.weight, self.predicted[self.kept], self.truth[self.kept])


def weighted_correlation(predicted: Array, truth: Array, weights: Array) -> float | None:
    """Pearson's correlation with a weight for each token, in [-1, 1]; None if either side is constant.

    Raises ValueError if lengths differ, a value is not finite or a weight is below 0.
    """
    if not predicted.shape == truth.shape == weights.shape:
        raise ValueError(f"{predicted.shape} predictions, {truth.shape} true values, {weights.shape} weights")
    if not all(np.isfinite(values).all() for values in (predicted, truth, weights)) or (weights < 0).any():
        raise ValueError("a value is not finite, or a weight is below 0")
    x, y, w = predicted[weights > 0], truth[weights > 0], weights[weights > 0]
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    r = float((w * x) @ y / math.sqrt(((w * x) @ x) * ((w * y) @ y)))
    return max(-1.0, min(1.0, r))


def correlate_records(records: Sequence[WeightedRecord]) -> float | None:
    """The weighted correlation over the records' tokens."""
    return weighted_correlation(*join_tokens(records))


def join_tokens(records: Sequence[WeightedRecord]) -> tuple[Array, Array, Array]:
    """Predictions, true values and weights of all tokens, record after record."""
    if not records:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    weights = [np.full(len(record.truth), record.weight) for record in records]
    return (
        np.concatenate([record.predicted for record in records]),
        np.concatenate([record.truth for record in records]),
        np.concatenate(weights),
    )


def effective_records(records: Sequence[WeightedRecord]) -> float:
    """The number of equally likely records that would tell as much: (sum of weights)^2 / sum of squares."""
    weights = np.array([record.weight for record in records])
    return float(weights.sum() ** 2 / (weights**2).sum()) if len(weights) else 0.0


def share_of_variation(records: Sequence[WeightedRecord]) -> float:
    """The share of the truth's weighted sum of squares that lies on tokens of words that are not named.

    Distances are from the mean of all tokens. 0 if the truth is constant.
    """
    _, truth, weights = join_tokens(records)
    if not weights.sum():
        return 0.0
    kept = np.concatenate([np.ones(len(r.truth), np.bool_) if r.kept is None else r.kept for r in records])
    squares = weights * (truth - np.average(truth, weights=weights)) ** 2
    return float(squares[kept].sum() / squares.sum()) if squares.sum() > 0 else 0.0


def jackknife_interval(records: Sequence[WeightedRecord]) -> tuple[float, float] | str:
    """A 95% interval of the weighted correlation, or the reason why it is undefined.

    With z = arctanh r, z_i without record i (0 where it is undefined) and d_i its distance from the mean of
    its kind: the variance is the sum over kinds of `(k - 1) / k * sum(d^2)` for the kind's k records, and
    Student's t has `(sum d^2)^2 / sum d^4` degrees of freedom, at least 1.
    """
    r = correlate_records(records)
    if r is None or abs(r) == 1:
        return "the correlation is undefined" if r is None else "the correlation is 1 or -1"
    for kind in KINDS_DRAWN:
        count = sum(record.kind == kind for record in records)
        if count < 2:
            return f"{count} {kind} records, 2 are needed"
    left_out = _leave_one_out(records)
    if (np.abs(left_out) == 1).any():
        return "without one of the records the correlation is 1 or -1"
    half = half_width(np.arctanh(left_out), [record.kind for record in records])
    if half is None:
        return "the correlation is the same without any of the records"
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def half_width(left_out: Array, strata: Sequence[str], names: Sequence[str] = KINDS_DRAWN) -> float | None:
    """Half the width of a 95% interval of a figure, from its values without each record, [n].

    strata: which of `names` each record was drawn as. There must be records of each of them. None if the
    figure is the same without any of them.
    """
    from scipy.special import stdtrit

    variance, squares, fourths = 0.0, 0.0, 0.0
    for name in names:
        of_stratum = left_out[[own == name for own in strata]]
        count = len(of_stratum)
        distances = of_stratum - of_stratum.mean()
        variance += (count - 1) / count * float((distances**2).sum())
        squares += float((distances**2).sum())
        fourths += float((distances**4).sum())
    if fourths == 0:
        return None
    return float(stdtrit(max(1.0, squares**2 / fourths), 0.975)) * math.sqrt(variance)


def lower_with_three(low: float, records: Sequence[WeightedRecord], fired: Sequence[WeightedRecord]) -> float:
    """An interval's lower end, at most the score with three more random records (the rule of three).

    Of records in which nothing was seen, up to three in their number may have it in the corpus. The three
    are silent, of the weight of a random record, and predicted like the sampled ones in `fired`.
    """
    weight = max((record.weight for record in records if record.kind == "random"), default=0.0)
    if not fired or not weight:
        return low
    silent = [
        WeightedRecord("random", weight, own.predicted, np.zeros_like(own.truth), own.kept)
        for own in (fired[place % len(fired)] for place in range(3))
    ]
    value = correlate_records([*records, *silent])
    return low if value is None else min(low, value)


def _leave_one_out(records: Sequence[WeightedRecord]) -> Array:
    """The correlation without each record, [n]; 0 where it is undefined."""
    predicted, truth, weights = join_tokens(records)
    x_mean, y_mean = (np.average(values, weights=weights) for values in (predicted, truth))
    x_scale, y_scale = (np.ptp(values) for values in (predicted, truth))
    moments = np.zeros((len(records), 6))
    ends = np.full((len(records), 4), -np.inf)  # greatest x, -x, y, -y of each record
    for i, record in enumerate(records):
        if not len(record.truth):
            continue
        x, y = (record.predicted - x_mean) / x_scale, (record.truth - y_mean) / y_scale
        sums = (len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y)
        moments[i] = record.weight * np.array(sums)
        ends[i] = record.predicted.max(), -record.predicted.min(), record.truth.max(), -record.truth.min()
    n, x_sum, y_sum, xx, yy, xy = (moments.sum(axis=0) - moments).T
    spread = _without_each(ends)
    is_defined = (spread[:, 0] + spread[:, 1] > 0) & (spread[:, 2] + spread[:, 3] > 0)
    with np.errstate(divide="ignore", invalid="ignore"):  # where no token is left, or a side is constant
        covariance, x_var, y_var = xy - x_sum * y_sum / n, xx - x_sum**2 / n, yy - y_sum**2 / n
        is_defined &= (x_var > 0) & (y_var > 0)
        correlations = covariance / np.sqrt(x_var * y_var)
    return np.where(is_defined, np.clip(correlations, -1.0, 1.0), 0.0)


def _without_each(values: Array) -> Array:
    """For each row the greatest value of each column in all other rows."""
    second, greatest = np.sort(values, axis=0)[-2:]
    others: Array = np.where(values == greatest, second, greatest)
    return others


def weighted_auprc(predicted: Array, is_positive: NDArray[np.bool_], weights: Array) -> float | None:
    """Average precision with a weight for each token; equal predictions are taken together.

    What guessing earns, the base rate, is that of the corpus. None without a positive.
    """
    total = float(weights[is_positive].sum())
    if total == 0:
        return None
    order = np.argsort(-predicted, kind="stable")
    ranked, w = predicted[order], weights[order]
    ends = np.append(np.flatnonzero(np.diff(ranked) != 0), len(ranked) - 1)  # the last of equal predictions
    hits, all_so_far = np.cumsum(w * is_positive[order])[ends], np.cumsum(w)[ends]
    precision = hits / all_so_far
    return float(np.sum(np.diff(hits, prepend=0.0) * precision) / total)
