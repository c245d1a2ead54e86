"""Simulated levels and true activations -> scores (pure).

Everything undefined is None with a reason: never 0, never NaN. No fit ever touches the scored records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
CORRELATION, R_SQUARED, DEVIATION = "correlation", "r_squared", "absolute_deviation_explained"
LEAST_FOR_INTERVAL = 3  # records of each kind
LEAST_MASS = 0.02  # of a token whose distribution says something about its level


@dataclass(frozen=True)
class ScoredRecord:
    """The scored tokens of one record: what was predicted and what is true."""

    kind: Kind
    simulated: NDArray[np.float64]  # [32]; NaN where there is no prediction: such a token is not scored
    recorded: NDArray[np.float64]  # [32], what is true of the side
    control: NDArray[np.float64] | None = None  # [32], predicted from another unit's explanation
    digit_mass: NDArray[np.float32] | None = None  # [32], the probability that fell on level tokens


def correlation_score(simulated: ArrayLike, recorded: ArrayLike) -> float | None:
    """Pearson correlation in [-1, 1] of a neuron's scored tokens, all records joined end to end.

    simulated holds levels and recorded holds raw activations; correlation ignores scale. None when either side is
    constant: there is no score, which is not 0.0. Raises ValueError when lengths differ or a value is not finite.
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
    """1 - mean((true - expected)^2) / mean(true^2), uncentred as in Bills et al. (2023); of calibrated values."""
    x, y = np.asarray(expected, np.float64), np.asarray(recorded, np.float64)
    return float(1 - np.mean((y - x) ** 2) / np.mean(y**2))


def absolute_deviation_explained(expected: ArrayLike, recorded: ArrayLike) -> float:
    """1 - mean(|true - expected|) / mean(|true|) (Bills et al. 2023); of calibrated values."""
    x, y = np.asarray(expected, np.float64), np.asarray(recorded, np.float64)
    return float(1 - np.mean(np.abs(y - x)) / np.mean(np.abs(y)))


def jackknife_interval(records: Sequence[ScoredRecord], kinds: Sequence[Kind]) -> tuple[float, float] | str:
    """A 95% interval of the correlation, or the reason that there is none.

    Leave one record out, top and random apart, on z = arctanh r: variance `sum over kinds of (n-1)/n * sum (z_i - mean z)^2`,
    Student's t with (smallest n - 1) degrees of freedom.
    """
    from scipy.special import stdtrit

    r = _correlate(records)
    if r is None or abs(r) == 1:
        return "the correlation is undefined" if r is None else "the correlation is 1 or -1"
    variance, least = 0.0, len(records)
    for kind in kinds:
        members = [i for i, record in enumerate(records) if record.kind == kind]
        n = len(members)
        if n < LEAST_FOR_INTERVAL:
            return f"{n} {kind} records, {LEAST_FOR_INTERVAL} are needed"
        left_out = [_correlate([x for j, x in enumerate(records) if j != i]) for i in members]
        if any(one is None or abs(one) == 1 for one in left_out):
            return "without one of the records the correlation is undefined"
        z = np.arctanh(np.array(left_out, np.float64))
        variance += (n - 1) / n * float(((z - z.mean()) ** 2).sum())
        least = min(least, n)
    half = float(stdtrit(least - 1, 0.975)) * math.sqrt(variance)
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def score_records(
    split: Split,
    records: Sequence[ScoredRecord],
    calibration: Sequence[ScoredRecord],
    control_explanation_id: int | None = None,
    control_reason: str | None = None,
    side: Side = "positive",
) -> list[Score]:
    """The scores of one split for the side's subsets; `calibration` are the `select` records for the fitted line.

    Where `control_explanation_id` is given, every record holds `control`; else `control_reason` says why there is none. The
    correlation always has its row; what needs calibrated values only where it has a value.
    """
    return [
        score
        for subset in SUBSETS[side]
        for score in _scores(
            split,
            subset,
            records,
            calibration if split == "report" else (),
            control_explanation_id,
            control_reason,
        )
    ]


def fit_line(records: Sequence[ScoredRecord]) -> tuple[float, float] | None:
    """Slope and intercept from levels to activations by least squares; None where levels are constant or there are none."""
    if not records:
        return None
    x, y = _join(records)
    if x.size < 2 or np.ptp(x) == 0:
        return None
    slope = float(((x - x.mean()) @ (y - y.mean())) / ((x - x.mean()) @ (x - x.mean())))
    return slope, float(y.mean() - slope * x.mean())


def _scores(
    split: Split,
    subset: Subset,
    records: Sequence[ScoredRecord],
    calibration: Sequence[ScoredRecord],
    control_id: int | None,
    control_reason: str | None,
) -> list[Score]:
    kinds = KINDS_OF[subset]
    mine = [x for x in records if x.kind in kinds]
    simulated, recorded = _join(mine)
    counts = len(recorded), len(mine)
    undefined = _why_undefined(split, mine, kinds, simulated, recorded)
    if undefined is not None:
        status, reason = undefined
        score = Score(split, subset, CORRELATION, status, None, *counts, reason=reason)
        return [replace(score, ci_reason=reason, control_reason=control_reason or reason)]
    interval = jackknife_interval(mine, kinds)
    control = None if control_id is None else correlation_score(*_join(mine, "control"))
    if control_id is not None and control is None:
        control_reason = "the other explanation's simulation is constant"
    score = Score(
        split,
        subset,
        CORRELATION,
        Status.OK,
        _correlate(mine),
        *counts,
        ci_low=None if isinstance(interval, str) else interval[0],
        ci_high=None if isinstance(interval, str) else interval[1],
        ci_reason=interval if isinstance(interval, str) else None,
        control=control,
        control_explanation_id=control_id,
        control_reason=control_reason if control is None else None,
    )
    line = fit_line([x for x in calibration if x.kind in kinds])
    if line is None:
        return [score]
    expected = line[0] * simulated + line[1]
    calibrated = {
        R_SQUARED: r_squared(expected, recorded),
        DEVIATION: absolute_deviation_explained(expected, recorded),
    }
    return [
        score,
        *(Score(split, subset, metric, Status.OK, value, *counts) for metric, value in calibrated.items()),
    ]


def _why_undefined(
    split: Split,
    records: Sequence[ScoredRecord],
    kinds: Sequence[Kind],
    simulated: NDArray[np.float64],
    recorded: NDArray[np.float64],
) -> tuple[Status, str] | None:
    """The status and the reason where there is no score."""
    missing = [kind for kind in kinds if not any(x.kind == kind for x in records)]
    if missing:
        return Status.NO_RECORDS, f"no {' and no '.join(missing)} records in the split {split}"
    if (share := _share_with_mass(records)) < 0.5:
        return (
            Status.LOW_DIGIT_MASS,
            f"only {share:.0%} of the tokens came back with a digit mass of {LEAST_MASS} or more",
        )
    if not len(recorded):
        return Status.LOW_DIGIT_MASS, "no token has a prediction"
    if np.ptp(recorded) == 0:
        return Status.CONSTANT_ACTIVATIONS, "the true activations are all equal"
    if np.ptp(simulated) == 0:
        return Status.CONSTANT_SIMULATION, "the simulated activations are all equal"
    return None


def _share_with_mass(records: Sequence[ScoredRecord]) -> float:
    masses = [x.digit_mass for x in records if x.digit_mass is not None]
    return float((np.concatenate(masses) >= LEAST_MASS).mean()) if masses else 1.0


def _correlate(records: Sequence[ScoredRecord]) -> float | None:
    return correlation_score(*_join(records)) if records else None


def _join(
    records: Sequence[ScoredRecord], side: str = "simulated"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predicted and true values of all tokens that have a prediction, end to end."""
    if not records:
        return np.zeros(0), np.zeros(0)
    predicted = np.concatenate([getattr(x, side) for x in records]).astype(np.float64)
    recorded = np.concatenate([x.recorded for x in records]).astype(np.float64)
    there = ~np.isnan(predicted)
    return predicted[there], recorded[there]
