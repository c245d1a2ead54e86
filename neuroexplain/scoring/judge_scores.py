"""What a judge or an embedding says of windows -> its scores (pure). The metrics are in judgements.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neuroexplain.evidence import HARD, POPULATION, PredictedRecord, Prediction, Score, Split, Status
from neuroexplain.scoring.correlation import LEAST_MASS, LEAST_SHARE_WITH_MASS
from neuroexplain.scoring.judgements import (
    AUROC,
    HARD_STRATA,
    JUDGE_METRICS,
    LEAST_OF_KIND,
    Judgements,
    JudgeMetric,
    judged_interval,
)
from neuroexplain.scoring.population import LEAST_EFFECTIVE, POSITIVE_SHARE
from neuroexplain.scoring.side_evidence import DrawnRecord, SideEvidence
from neuroexplain.scoring.windows import firing_tokens
from neuroexplain.units import CROP_LENGTH

LEAST_HARD = 5  # hard negatives that a score needs


@dataclass(frozen=True)
class Judged:
    """The drawn windows of a split with what was predicted of each."""

    drawn: Sequence[DrawnRecord]
    predicted: Sequence[PredictedRecord]

    @classmethod
    def of(cls, evidence: SideEvidence, prediction: Prediction, split: Split) -> Judged:
        """Those that were read and do not leak; none without a peak."""
        by_key = {record.key: record for record in prediction.records}
        drawn = evidence.draw(split, prediction.n_read) if by_key else []
        drawn = [d for d in drawn if d.record.key in by_key and d.record.key not in evidence.leaking]
        return cls(drawn, [by_key[d.record.key] for d in drawn])

    def judgements(self, evidence: SideEvidence, *, is_control: bool = False) -> Judgements:
        """The judgements of the explanation or of the control; a window without an answer is left out."""
        values = [_value_of(record, is_control) for record in self.predicted]
        pairs = [(d, value) for d, value in zip(self.drawn, values, strict=True) if value is not None]
        return Judgements(
            ["sampled" if d.record.kind == "sampled" else "random" for d, _ in pairs],
            np.array([1 / d.probability for d, _ in pairs]),
            np.array([probability for _, probability in pairs]),
            np.array([bool(firing_tokens(evidence, d.record).any()) for d, _ in pairs], np.bool_),
        )

    def against(
        self, hard: Sequence[PredictedRecord], evidence: SideEvidence, *, is_control: bool = False
    ) -> Judgements:
        """The judgements of the positive ones of these windows, and of hard negatives."""
        own = self.judgements(evidence, is_control=is_control)
        values = [value for record in hard if (value := _value_of(record, is_control)) is not None]
        n_positive = int(own.is_positive.sum())
        return Judgements(
            ["positive"] * n_positive + ["hard"] * len(values),
            np.append(own.weights[own.is_positive], np.ones(len(values))),
            np.append(own.probabilities[own.is_positive], np.array(values, np.float64)),
            np.arange(n_positive + len(values)) < n_positive,
        )


def _value_of(record: PredictedRecord, is_control: bool) -> float | None:
    """What was predicted of a window from the explanation or the control; None without an answer."""
    values = record.control if is_control else record.values
    return None if values is None or np.isnan(values[0]) else float(values[0])


def score_windows(
    evidence: SideEvidence,
    prediction: Prediction,
    split: Split,
    no_control: str | None,
    metrics: Sequence[str] = tuple(JUDGE_METRICS),
) -> list[Score]:
    """The scores of one split: on `report` by all metrics, else AUROC alone, also if it is undefined.

    no_control: why there is no control; None if there is one.
    """
    judged = Judged.of(evidence, prediction, split)
    own = judged.judgements(evidence)
    size = _size(own)
    undefined = _why_undefined(evidence, split, judged, own)
    if undefined is not None:
        status, reason = undefined
        remark: dict[str, Any] = {"ci_reason": reason, "control_reason": no_control or reason}
        return [Score(split, POPULATION, AUROC, status, None, reason=reason, **remark, **size)]
    control = judged.judgements(evidence, is_control=True) if no_control is None else None
    names = metrics if split == "report" else (AUROC,)
    scores = [_score(split, name, own, JUDGE_METRICS[name], size) for name in names]
    return [_with_control(score, prediction, control, no_control) for score in scores]


def score_hard(evidence: SideEvidence, prediction: Prediction, no_control: str | None) -> list[Score]:
    """How well positive windows of `report` are told from hard negatives; none if these were not measured.

    Positive windows count for as many as they stand for, hard negatives each for one: they are no sample.
    """
    if evidence.hard is None or prediction.n_hard is None or not prediction.has_report:
        return []
    judged = Judged.of(evidence, prediction, "report")
    hard = [record for record in prediction.records if record.kind == "hard"]
    own = judged.against(hard, evidence)
    n = len(own.kinds)
    size: dict[str, Any] = {"n_tokens": CROP_LENGTH * n, "n_records": n}
    undefined = _why_undefined_hard(evidence, [*judged.predicted, *hard], own)
    if undefined is not None:
        status, reason = undefined
        remark: dict[str, Any] = {"ci_reason": reason, "control_reason": no_control or reason}
        return [Score("report", HARD, AUROC, status, None, reason=reason, **remark, **size)]
    metric = JUDGE_METRICS[AUROC]
    interval = judged_interval(own, metric, HARD_STRATA)
    low, high, no_interval = (None, None, interval) if isinstance(interval, str) else (*interval, None)
    bounds: dict[str, Any] = {"ci_low": low, "ci_high": high, "ci_reason": no_interval}
    score = Score("report", HARD, AUROC, Status.OK, metric.value(own), **bounds, **size)
    control = judged.against(hard, evidence, is_control=True) if no_control is None else None
    return [_with_control(score, prediction, control, no_control)]


def _score(split: Split, name: str, own: Judgements, metric: JudgeMetric, size: dict[str, Any]) -> Score:
    """One metric with its interval."""
    interval = judged_interval(own, metric)
    low, high, no_interval = (None, None, interval) if isinstance(interval, str) else (*interval, None)
    bounds: dict[str, Any] = {"ci_low": low, "ci_high": high, "ci_reason": no_interval}
    return Score(split, POPULATION, name, Status.OK, metric.value(own), **bounds, **size)


def _with_control(
    score: Score, prediction: Prediction, control: Judgements | None, no_control: str | None
) -> Score:
    """The score with that of the control on the same windows, or the reason why there is none."""
    if control is None:
        return replace(score, control_reason=no_control)
    value = JUDGE_METRICS[score.metric].value(control)
    if value is None:
        reason = "too few windows were answered for the other explanation"
        return replace(score, control_reason=reason)
    return replace(score, control=value, control_explanation_id=prediction.control_explanation_id)


def _size(own: Judgements) -> dict[str, Any]:
    n, weights = len(own.kinds), own.weights
    effective = float(weights.sum() ** 2 / (weights**2).sum()) if n else 0.0
    return {"n_tokens": CROP_LENGTH * n, "n_records": n, "effective_records": effective}


def _why_undefined(
    evidence: SideEvidence, split: Split, judged: Judged, own: Judgements
) -> tuple[Status, str] | None:
    """The status and the reason of undefined scores; None if they are defined."""
    if not judged.drawn:
        return Status.NO_RECORDS, f"no random or sampled record in the split {split}"
    unanswered = _why_unanswered(judged.predicted, own)
    if unanswered is not None:
        return Status.LOW_DIGIT_MASS, unanswered
    effective = _size(own)["effective_records"]
    if effective < LEAST_EFFECTIVE:
        reason = f"the windows have the weight of {effective:.1f} equal ones, fewer than {LEAST_EFFECTIVE:g}"
        return Status.FEW_RECORDS, reason
    n, n_positive = len(own.kinds), int(own.is_positive.sum())
    if n_positive in (0, n):
        which = "none" if n_positive == 0 else "each"
        return Status.NO_RECORDS, (
            f"{which} of the {n} windows has an activation above {POSITIVE_SHARE} of the unit's peak"
        )
    return None


def _why_undefined_hard(
    evidence: SideEvidence, predicted: Sequence[PredictedRecord], own: Judgements
) -> tuple[Status, str] | None:
    """The same of the subset `hard`."""
    n_measured, n_read = len(evidence.hard or ()), sum(record.kind == "hard" for record in predicted)
    if n_read < LEAST_HARD:
        return Status.FEW_RECORDS, (
            f"the unit is below {POSITIVE_SHARE} of its peak in {n_read} of the {n_measured} windows of "
            f"look-alikes that were measured, {LEAST_HARD} are needed"
        )
    unanswered = _why_unanswered(predicted, own)
    if unanswered is not None:
        return Status.LOW_DIGIT_MASS, unanswered
    n_positive = int(own.is_positive.sum())
    if n_positive < LEAST_OF_KIND:
        return Status.FEW_RECORDS, (
            f"the unit is above {POSITIVE_SHARE} of its peak in {n_positive} windows, {LEAST_OF_KIND} are "
            "needed"
        )
    if n_positive == len(own.kinds):
        return Status.LOW_DIGIT_MASS, "none of the hard negatives has a prediction"
    return None


def _why_unanswered(predicted: Sequence[PredictedRecord], own: Judgements) -> str | None:
    """Why too few windows have an answer; None if enough have."""
    masses = np.array([float(r.detail[0]) for r in predicted if r.detail is not None])
    share = float((masses >= LEAST_MASS).mean()) if len(masses) else 1.0
    if share < LEAST_SHARE_WITH_MASS:
        return f"at only {share:.0%} of the windows yes and no together have a probability of {LEAST_MASS}"
    return None if own.kinds else "none of the windows has a prediction"
