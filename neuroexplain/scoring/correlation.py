"""Simulated levels and true activations -> scores (pure).

Everything undefined is None with a reason: never 0, never NaN. No fit ever touches the scored records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuroexplain.types import SCORE_KINDS, Kind, Score, ScoreKind, Split, Status

KINDS_OF: Mapping[ScoreKind, tuple[Kind, ...]] = {
    "top_and_random": ("top", "random"),
    "top": ("top",),
    "random": ("random",),
}
LEAST_FOR_INTERVAL = 3  # records of each kind
LEAST_MASS = 0.02  # of a token whose distribution says something about its level


@dataclass(frozen=True)
class ScoredRecord:
    """The scored tokens of one record: what was predicted and what is true."""

    kind: Kind
    simulated: NDArray[np.float64]  # [32]; NaN where there is no prediction: such a token is not scored
    recorded: NDArray[np.float64]  # [32], raw activations
    other: NDArray[np.float64] | None = None  # [32], predicted from another neuron's explanation
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
    other_explanation_id: int | None = None,
    other_reason: str | None = None,
) -> list[Score]:
    """The scores of one split for the three kinds; `calibration` are the `select` records for the fitted line.

    Where `other_explanation_id` is given, every record holds `other`; else `other_reason` says why there is no null.
    """
    return [
        _score(split, kind, records, calibration if split == "report" else (), other_explanation_id, other_reason)
        for kind in SCORE_KINDS
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


def _score(
    split: Split,
    kind: ScoreKind,
    records: Sequence[ScoredRecord],
    calibration: Sequence[ScoredRecord],
    other_id: int | None,
    other_reason: str | None,
) -> Score:
    kinds = KINDS_OF[kind]
    mine = [x for x in records if x.kind in kinds]
    simulated, recorded = _join(mine)
    n_tokens, n_records = len(recorded), len(mine)
    status, reason = Status.OK, None
    missing = [one for one in kinds if not any(x.kind == one for x in mine)]
    if missing:
        status, reason = Status.NO_RECORDS, f"no {' and no '.join(missing)} records in the split {split}"
    elif (share := _share_with_mass(mine)) < 0.5:
        status, reason = (
            Status.LOW_DIGIT_MASS,
            f"only {share:.0%} of the tokens came back with a digit mass of {LEAST_MASS} or more",
        )
    elif not n_tokens:
        status, reason = Status.LOW_DIGIT_MASS, "no token has a prediction"
    elif np.ptp(recorded) == 0:
        status, reason = Status.CONSTANT_ACTIVATIONS, "the true activations are all equal"
    elif np.ptp(simulated) == 0:
        status, reason = Status.CONSTANT_SIMULATION, "the simulated activations are all equal"
    if status != Status.OK:
        undefined = Score(split, kind, status, None, n_tokens, n_records, reason)
        return replace(undefined, ci_reason=reason, other_reason=other_reason or reason, calibration_reason=reason)
    interval = jackknife_interval(mine, kinds)
    other = None if other_id is None else correlation_score(*_join(mine, "other"))
    if other_id is not None and other is None:
        other_reason = "the other explanation's simulation is constant"
    line = fit_line([x for x in calibration if x.kind in kinds])
    expected = None if line is None else line[0] * simulated + line[1]
    return Score(
        split,
        kind,
        status,
        _correlate(mine),
        n_tokens,
        n_records,
        ci_low=None if isinstance(interval, str) else interval[0],
        ci_high=None if isinstance(interval, str) else interval[1],
        ci_reason=interval if isinstance(interval, str) else None,
        other_correlation=other,
        other_explanation_id=other_id,
        other_reason=other_reason if other is None else None,
        r_squared=None if expected is None else r_squared(expected, recorded),
        absolute_deviation_explained=None if expected is None else absolute_deviation_explained(expected, recorded),
        calibration_reason="no line can be fitted on the select records" if expected is None else None,
    )


def _share_with_mass(records: Sequence[ScoredRecord]) -> float:
    masses = [x.digit_mass for x in records if x.digit_mass is not None]
    return float((np.concatenate(masses) >= LEAST_MASS).mean()) if masses else 1.0


def _correlate(records: Sequence[ScoredRecord]) -> float | None:
    return correlation_score(*_join(records)) if records else None


def _join(records: Sequence[ScoredRecord], side: str = "simulated") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predicted and true values of all tokens that have a prediction, end to end."""
    if not records:
        return np.zeros(0), np.zeros(0)
    predicted = np.concatenate([getattr(x, side) for x in records]).astype(np.float64)
    recorded = np.concatenate([x.recorded for x in records]).astype(np.float64)
    there = ~np.isnan(predicted)
    return predicted[there], recorded[there]
