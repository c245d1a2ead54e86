"""Simulated levels and true activations -> scores (pure).

A score is Pearson's correlation over the scored tokens of all records, joined end to end (Bills et al. 2023).
A mean of the records' own correlations was no choice: many random records have the same activation at every
token, and thus none. The interval leaves out one record after the other (jackknife), since tokens of one
record are not independent. Kinds are strata, because how many top and random records there are was chosen and
not drawn. It costs one correlation per record, of some 512 values.

Explained variance and explained absolute deviation need predictions on the scale of activations. A line is
fitted for that on the `select` records, so no fit ever sees the `report` records that it is scored on.

A score that is undefined is None with a status and a reason, and never 0 or NaN: a mean over units must not
count it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuroexplain.evidence import SUBSETS, Score, Split, Status, Subset
from neuroexplain.units import Kind, Side

KINDS_OF: Mapping[str, tuple[Kind, ...]] = {
    "top_and_random": ("top", "random"),
    "top": ("top",),
    "random": ("random",),
    "bottom_and_random": ("bottom", "random"),
    "bottom": ("bottom",),
}
CORRELATION, R_SQUARED, DEVIATION = "correlation", "r_squared", "absolute_deviation_explained"  # metrics
LEAST_FOR_INTERVAL = 3  # records of each kind: with fewer, a variance over left-out records says nothing
LEAST_MASS = 0.02  # on all level tokens: with less, the model was about to write something else
LEAST_SHARE_WITH_MASS = 0.5  # of the tokens, for a score to be defined


@dataclass(frozen=True)
class ScoredRecord:
    """The predicted and the true values of one record's scored tokens."""

    kind: Kind
    simulated: NDArray[np.float64]  # [32]; NaN: no prediction, so the token is not scored
    recorded: NDArray[np.float64]  # [32], the side's true values
    control: NDArray[np.float64] | None = None  # [32], simulated by another unit's explanation
    digit_mass: NDArray[np.float32] | None = None  # [32], the probability of all level tokens together


def correlation_score(simulated: ArrayLike, recorded: ArrayLike) -> float | None:
    """Pearson correlation in [-1, 1] of a neuron's scored tokens, all records joined end to end.

    simulated holds levels and recorded holds raw activations; correlation ignores scale. None when either
    side is constant: there is no score, which is not 0.0. Raises ValueError when lengths differ or a value is
    not finite.
    """
    x, y = np.asarray(simulated, np.float64), np.asarray(recorded, np.float64)
    if x.shape != y.shape:
        raise ValueError(f"{x.shape} simulated and {y.shape} recorded values")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a value is not finite")
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    r = float(x @ y / math.sqrt((x @ x) * (y @ y)))
    return max(-1.0, min(1.0, r))


def r_squared(expected: ArrayLike, recorded: ArrayLike) -> float:
    """Explained variance of calibrated predictions: 1 - mean((true - expected)^2) / mean(true^2).

    Uncentred, as in Bills et al. (2023).
    """
    x, y = np.asarray(expected, np.float64), np.asarray(recorded, np.float64)
    return float(1 - np.mean((y - x) ** 2) / np.mean(y**2))


def absolute_deviation_explained(expected: ArrayLike, recorded: ArrayLike) -> float:
    """Of calibrated predictions: 1 - mean(|true - expected|) / mean(|true|) (Bills et al. 2023)."""
    x, y = np.asarray(expected, np.float64), np.asarray(recorded, np.float64)
    return float(1 - np.mean(np.abs(y - x)) / np.mean(np.abs(y)))


def jackknife_interval(records: Sequence[ScoredRecord], kinds: Sequence[Kind]) -> tuple[float, float] | str:
    """A 95% interval of the correlation, or the reason why it is undefined.

    The stratified jackknife of z = arctanh r: z_i leaves record i out, and the variance is the sum over kinds
    of `(n - 1) / n * sum((z_i - mean z)^2)` for the kind's n records. Student's t has (smallest n) - 1
    degrees of freedom.
    """
    from scipy.special import stdtrit

    r = _correlate(records)
    if r is None or abs(r) == 1:
        return "the correlation is undefined" if r is None else "the correlation is 1 or -1"
    variance, smallest_n = 0.0, len(records)
    for kind in kinds:
        members = [i for i, record in enumerate(records) if record.kind == kind]
        n = len(members)
        if n < LEAST_FOR_INTERVAL:
            return f"{n} {kind} records, {LEAST_FOR_INTERVAL} are needed"
        left_out = [_correlate([*records[:i], *records[i + 1 :]]) for i in members]
        if any(r_i is None or abs(r_i) == 1 for r_i in left_out):
            return "without one of the records the correlation is undefined"
        z = np.arctanh(np.array(left_out, np.float64))
        variance += (n - 1) / n * float(((z - z.mean()) ** 2).sum())
        smallest_n = min(smallest_n, n)
    half_width = float(stdtrit(smallest_n - 1, 0.975)) * math.sqrt(variance)
    return math.tanh(math.atanh(r) - half_width), math.tanh(math.atanh(r) + half_width)


def score_records(
    split: Split,
    records: Sequence[ScoredRecord],
    calibration: Sequence[ScoredRecord],
    control_explanation_id: int | None = None,
    control_reason: str | None = None,
    side: Side = "positive",
) -> list[Score]:
    """The scores of one split, for each of the side's subsets of records.

    calibration: the `select` records, for the fitted line; used for `report` only. control_explanation_id:
    whose explanation gave the records' `control`, which all of them have then; without it, control_reason
    says why. There is always a score for the correlation; for the other metrics only if they have a value.
    """
    fitted_on = calibration if split == "report" else ()
    scores = []
    for subset in SUBSETS[side]:
        members = [record for record in records if record.kind in KINDS_OF[subset]]
        correlation = _score_correlation(split, subset, members, control_explanation_id, control_reason)
        scores.append(correlation)
        line = fit_line([record for record in fitted_on if record.kind in KINDS_OF[subset]])
        if correlation.status == Status.OK and line is not None:
            scores += _score_calibrated(split, subset, members, line)
    return scores


def fit_line(records: Sequence[ScoredRecord]) -> tuple[float, float] | None:
    """Slope and intercept from levels to activations by least squares; None if levels are constant."""
    x, y = _join(records)
    if x.size < 2 or np.ptp(x) == 0:
        return None
    slope = float(((x - x.mean()) @ (y - y.mean())) / ((x - x.mean()) @ (x - x.mean())))
    return slope, float(y.mean() - slope * x.mean())


def _score_correlation(
    split: Split,
    subset: Subset,
    records: Sequence[ScoredRecord],
    control_id: int | None,
    control_reason: str | None,
) -> Score:
    simulated, _ = _join(records)
    n_tokens, n_records = simulated.size, len(records)
    undefined = _why_undefined(split, KINDS_OF[subset], records)
    if undefined is not None:
        status, reason = undefined
        return Score(
            split,
            subset,
            CORRELATION,
            status,
            None,
            n_tokens,
            n_records,
            reason,
            ci_reason=reason,
            control_reason=control_reason or reason,
        )
    interval = jackknife_interval(records, KINDS_OF[subset])
    low, high, no_interval = (None, None, interval) if isinstance(interval, str) else (*interval, None)
    control = None if control_id is None else _correlate_control(records)
    if control_id is not None and control is None:
        control_reason = "the other explanation's simulation is constant"
    return Score(
        split,
        subset,
        CORRELATION,
        Status.OK,
        _correlate(records),
        n_tokens,
        n_records,
        ci_low=low,
        ci_high=high,
        ci_reason=no_interval,
        control=control,
        control_explanation_id=control_id,
        control_reason=control_reason if control is None else None,
    )


def _score_calibrated(
    split: Split, subset: Subset, records: Sequence[ScoredRecord], line: tuple[float, float]
) -> list[Score]:
    simulated, recorded = _join(records)
    slope, intercept = line
    expected = slope * simulated + intercept
    values = {
        R_SQUARED: r_squared(expected, recorded),
        DEVIATION: absolute_deviation_explained(expected, recorded),
    }
    counts = len(recorded), len(records)
    return [Score(split, subset, metric, Status.OK, value, *counts) for metric, value in values.items()]


def _why_undefined(
    split: Split, kinds: Sequence[Kind], records: Sequence[ScoredRecord]
) -> tuple[Status, str] | None:
    """The status and the reason of an undefined correlation; None if it is defined."""
    missing_kinds = [kind for kind in kinds if not any(record.kind == kind for record in records)]
    if missing_kinds:
        return Status.NO_RECORDS, f"no {' and no '.join(missing_kinds)} records in the split {split}"
    low_mass = why_low_mass([record.digit_mass for record in records if record.digit_mass is not None])
    if low_mass is not None:
        return low_mass
    simulated, recorded = _join(records)
    return why_constant(simulated, recorded)


def why_constant(simulated: NDArray[np.float64], recorded: NDArray[np.float64]) -> tuple[Status, str] | None:
    """The status and the reason if there is no token, or one side is the same at all tokens."""
    if not len(recorded):
        return Status.LOW_DIGIT_MASS, "no token has a prediction"
    if np.ptp(recorded) == 0:
        return Status.CONSTANT_ACTIVATIONS, "the true activations are all equal"
    if np.ptp(simulated) == 0:
        return Status.CONSTANT_SIMULATION, "the simulated activations are all equal"
    return None


def why_low_mass(masses: Sequence[NDArray[np.float32]]) -> tuple[Status, str] | None:
    """The status and the reason if too few tokens came back with a prediction; None without masses."""
    if not masses:
        return None
    share = float((np.concatenate(masses) >= LEAST_MASS).mean())
    if share >= LEAST_SHARE_WITH_MASS:
        return None
    reason = f"only {share:.0%} of the tokens came back with a digit mass of {LEAST_MASS} or more"
    return Status.LOW_DIGIT_MASS, reason


def _correlate(records: Sequence[ScoredRecord]) -> float | None:
    return correlation_score(*_join(records))


def _correlate_control(records: Sequence[ScoredRecord]) -> float | None:
    return correlation_score(*_join_tokens([(record.control, record.recorded) for record in records]))


def _join(records: Sequence[ScoredRecord]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Simulated and true values of all scored tokens, record after record."""
    return _join_tokens([(record.simulated, record.recorded) for record in records])


def _join_tokens(
    records: Sequence[tuple[NDArray[np.float64] | None, NDArray[np.float64]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predicted and true values of all records, end to end, without tokens that have no prediction."""
    if not records:
        return np.zeros(0), np.zeros(0)
    predicted = np.concatenate([values for values, _ in records]).astype(np.float64)
    recorded = np.concatenate([values for _, values in records]).astype(np.float64)
    is_scored = ~np.isnan(predicted)
    return predicted[is_scored], recorded[is_scored]
