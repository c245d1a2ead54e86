"""A prediction on a run with sampled records -> its scores by the population (pure).

For each split: the weighted correlation. On `report` also the same beyond the words of the explanation, and
the weighted AUPRC. population.py has the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import POPULATION, PredictedRecord, Prediction, Score, Split, Status
from neuroexplain.sampling import random_key
from neuroexplain.scoring.correlation import CORRELATION, why_constant, why_low_mass
from neuroexplain.scoring.named_words import find_named
from neuroexplain.scoring.population import (
    LEAST_EFFECTIVE,
    LEAST_VARIATION,
    POSITIVE_SHARE,
    WeightedRecord,
    correlate_records,
    effective_records,
    jackknife_interval,
    join_tokens,
    lower_with_three,
    share_of_variation,
    weighted_auprc,
)
from neuroexplain.scoring.side_evidence import DrawnRecord, SideEvidence, background_draw_of

BEYOND_WORDS, AUPRC = "correlation_beyond_words", "auprc"  # metrics


@dataclass(frozen=True)
class Control:
    """Another unit's explanation on the same records, or why there is none."""

    explanation_id: int | None
    records: Sequence[WeightedRecord]
    reason: str | None  # None if there is an explanation


def score_population(
    evidence: SideEvidence, prediction: Prediction, split: Split, no_control: str | None
) -> list[Score]:
    """The population scores of one split. no_control: why there is no control; None if there is one."""
    predicted = {record.key: record for record in prediction.records}
    drawn = evidence.draw(split, prediction.n_read, background_draw_of(prediction))
    drawn = [d for d in drawn if d.record.key in predicted]
    drawn = [d for d in drawn if d.record.key not in evidence.leaking]
    texts = [evidence.texts(d.record) if split == "report" and evidence.tokens else () for d in drawn]
    records = [
        _weighted(evidence, d, predicted[d.record.key], find_named(own_texts, prediction.text))
        for d, own_texts in zip(drawn, texts, strict=True)
    ]
    control_records: list[WeightedRecord] = []
    if no_control is None:
        control_text = prediction.control_text or ""
        control_records = [
            _weighted(
                evidence, d, predicted[d.record.key], find_named(own_texts, control_text), is_control=True
            )
            for d, own_texts in zip(drawn, texts, strict=True)
        ]
    has_background = split == "report" and prediction.n_background is not None
    fired = _sampled_first(evidence, drawn, records) if has_background else []
    control = Control(prediction.control_explanation_id, control_records, no_control)
    masses = [predicted[d.record.key].detail for d in drawn]
    low_mass = why_low_mass([mass for mass in masses if mass is not None])
    scores = [_correlation(split, CORRELATION, records, control, low_mass, fired)]
    if split == "report":
        beyond = _beyond_words(split, records, control, low_mass, fired)
        scores += [beyond, *_auprc(evidence, split, records, control, low_mass)]
    return scores


def _sampled_first(
    evidence: SideEvidence, drawn: Sequence[DrawnRecord], records: Sequence[WeightedRecord]
) -> list[WeightedRecord]:
    """The three sampled records with the smallest hash, for the rule of three."""
    sampled = [
        (random_key(evidence.seed, d.record.segment), place)
        for place, d in enumerate(drawn)
        if d.record.kind == "sampled"
    ]
    return [records[place] for _, place in sorted(sampled)[:3]]


def _weighted(
    evidence: SideEvidence,
    drawn: DrawnRecord,
    predicted: PredictedRecord,
    is_named: NDArray[np.bool_],
    *,
    is_control: bool = False,
) -> WeightedRecord:
    """A record's scored tokens with a prediction, of the explanation or of the control.

    is_named: which of the record's tokens belong to a word that it names, [64]; empty if that is not needed.
    """
    record = drawn.record
    values = predicted.control if is_control else predicted.values
    assert values is not None
    part = slice(predicted.first, predicted.first + len(values))
    is_scored = ~np.isnan(values) & evidence.counts(record)[part]
    kept = ~is_named[part][is_scored] if len(is_named) else None
    return WeightedRecord(
        "sampled" if record.kind == "sampled" else "random",
        1 / drawn.probability,
        values.astype(np.float64)[is_scored],
        evidence.truth(record)[part][is_scored],
        kept,
    )


def _correlation(
    split: Split,
    metric: str,
    records: Sequence[WeightedRecord],
    control: Control,
    undefined: tuple[Status, str] | None,
    fired: Sequence[WeightedRecord] = (),
) -> Score:
    """The weighted correlation, with interval and control. fired: see lower_with_three."""
    size = _size(records)
    undefined = undefined or _why_undefined(split, records)
    if undefined is not None:
        status, reason = undefined
        return _undefined(split, metric, status, reason, control, size)
    interval = jackknife_interval(records)
    low, high, no_interval = (None, None, interval) if isinstance(interval, str) else (*interval, None)
    if low is not None:
        low = lower_with_three(low, records, fired)
    value = None if control.reason is not None else correlate_records(control.records)
    no_control = control.reason
    if value is None and no_control is None:
        no_control = "the other explanation's predictions are constant"
    return Score(
        split,
        POPULATION,
        metric,
        Status.OK,
        correlate_records(records),
        ci_low=low,
        ci_high=high,
        ci_reason=no_interval,
        control=value,
        control_explanation_id=control.explanation_id,
        control_reason=no_control,
        **size,
    )


def _beyond_words(
    split: Split,
    records: Sequence[WeightedRecord],
    control: Control,
    undefined: tuple[Status, str] | None,
    fired: Sequence[WeightedRecord],
) -> Score:
    """The correlation without the tokens whose words the explanation names; its control without its own."""
    undefined = undefined or _why_undefined(split, records)
    if undefined is None and share_of_variation(records) < LEAST_VARIATION:
        reason = f"the tokens left have under {LEAST_VARIATION:.0%} of the variation of the activations"
        undefined = Status.LITTLE_VARIATION, reason
    left = [record.beyond_words() for record in records]
    left_control = control
    if control.reason is None:
        if share_of_variation(control.records) < LEAST_VARIATION:
            reason = "the other explanation's words leave too little variation of the activations"
            left_control = Control(control.explanation_id, (), reason)
        else:
            own = [record.beyond_words() for record in control.records]
            left_control = Control(control.explanation_id, own, None)
    left_fired = [record.beyond_words() for record in fired]
    return _correlation(split, BEYOND_WORDS, left, left_control, undefined, left_fired)


def _auprc(
    evidence: SideEvidence,
    split: Split,
    records: Sequence[WeightedRecord],
    control: Control,
    undefined: tuple[Status, str] | None,
) -> list[Score]:
    """The weighted AUPRC; none if it is undefined."""
    peak = evidence.peak
    if undefined is not None or peak is None or effective_records(records) < LEAST_EFFECTIVE:
        return []

    def value_of(of: Sequence[WeightedRecord]) -> float | None:
        predicted, truth, weights = join_tokens(of)
        return weighted_auprc(predicted, truth > POSITIVE_SHARE * peak, weights)

    value = value_of(records)
    if value is None:
        return []
    control_value = None if control.reason is not None else value_of(control.records)
    return [
        Score(
            split,
            POPULATION,
            AUPRC,
            Status.OK,
            value,
            control=control_value,
            control_explanation_id=None if control_value is None else control.explanation_id,
            control_reason=control.reason,
            **_size(records),
        )
    ]


def _size(records: Sequence[WeightedRecord]) -> dict[str, Any]:
    return {
        "n_tokens": sum(len(record.truth) for record in records),
        "n_records": len(records),
        "effective_records": effective_records(records),
    }


def _undefined(
    split: Split, metric: str, status: Status, reason: str, control: Control, size: dict[str, Any]
) -> Score:
    return Score(
        split,
        POPULATION,
        metric,
        status,
        None,
        reason=reason,
        ci_reason=reason,
        control_reason=control.reason or reason,
        **size,
    )


def _why_undefined(split: Split, records: Sequence[WeightedRecord]) -> tuple[Status, str] | None:
    """The status and the reason of an undefined score; None if it is defined."""
    if not records:
        return Status.NO_RECORDS, f"no random or sampled record in the split {split}"
    effective = effective_records(records)
    if effective < LEAST_EFFECTIVE:
        reason = f"the records have the weight of {effective:.1f} equal ones, fewer than {LEAST_EFFECTIVE:g}"
        return Status.FEW_RECORDS, reason
    predicted, truth, _ = join_tokens(records)
    return why_constant(predicted, truth)
