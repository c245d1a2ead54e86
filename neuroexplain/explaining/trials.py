"""One side of a unit before a scorer: trials -> predictions. Nothing is stored here."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import (
    Explanation,
    Headline,
    PredictedRecord,
    Prediction,
    Provenance,
    Split,
    Status,
    Tokens,
)
from neuroexplain.runtime.in_flight import map_in_flight
from neuroexplain.scorers.base import OpenScorer, Predicted, Predictions, compute_scores
from neuroexplain.scoring.sides import Evidence, Place, Trial


def begin_prediction(explanation: Explanation, scorer: OpenScorer) -> Prediction:
    """A prediction from this explanation without records yet."""
    engine, prompt = scorer.engine, None if scorer.prompt is None else scorer.prompt.sha256
    whom = Provenance(engine.engine, engine.version, engine.model, engine.revision, prompt)
    codec = scorer.scorer.codec
    return Prediction(explanation.id or 0, explanation.unit, scorer.name, Status.OK, (), whom, codec=codec)


class Trials:
    """A side's trials and a scorer. What was asked once for a hypothesis and a split is not asked again."""

    def __init__(self, scorer: OpenScorer, evidence: Evidence, tokens: Tokens, at_once: int = 1) -> None:
        self._scorer, self._tokens, self._at_once = scorer, tokens, at_once
        self._trials = {trial.place: trial for trial in scorer.scorer.trials(evidence)}
        self._known: dict[tuple[str, Split], dict[Place, Predicted]] = {}

    def extend(self, made: Prediction, hypotheses: Sequence[str], splits: Collection[Split]) -> Prediction:
        """The prediction with the trials of these splits that it lacks; a failed request makes it a failed attempt.

        Of several hypotheses (a union) each token has the greatest of their values.
        """
        there = {(r.kind, r.rank) for r in made.records}
        missing = [
            trial for trial in self._trials.values() if trial.split in splits and trial.place not in there
        ]
        if made.status != Status.OK or not missing:
            return made
        began = time.perf_counter()
        try:
            tokens = self._ask(hypotheses, missing)
        except LlmReplyError as error:
            return replace(made, status=error.status, reason=error.reason, reply=error.reply, records=())
        new = [self._record(trial, hypotheses) for trial in missing]
        order = list(self._trials)
        before = (replace(r, control=None) for r in made.records)  # the control is of all records or none
        records = sorted((*before, *new), key=lambda r: order.index((r.kind, r.rank)))
        spent = made.provenance.seconds + time.perf_counter() - began
        cost = replace(made.provenance, prompt_tokens=made.provenance.prompt_tokens + tokens, seconds=spent)
        return replace(made, records=tuple(records), control_explanation_id=None, provenance=cost)

    def compare(self, made: Prediction, control: Explanation) -> Prediction:
        """The prediction with another unit's explanation tried on the same records: the control, or `reason` why not."""
        began = time.perf_counter()
        try:
            tokens = self._ask(control.hypotheses, [self._trials[r.kind, r.rank] for r in made.records])
        except LlmReplyError as error:
            return replace(
                made, reason=f"the other explanation's simulation failed, {error.status}: {error.reason}"
            )
        records = tuple(
            replace(r, control=self._record(self._trials[r.kind, r.rank], control.hypotheses).values)
            for r in made.records
        )
        spent = made.provenance.seconds + time.perf_counter() - began
        cost = replace(made.provenance, prompt_tokens=made.provenance.prompt_tokens + tokens, seconds=spent)
        return replace(made, records=records, control_explanation_id=control.id, provenance=cost, reason=None)

    def _ask(self, hypotheses: Sequence[str], trials: Sequence[Trial]) -> int:
        """Have the scorer run every hypothesis on the trials; returns the prompt tokens that it took.

        All trials of a split are asked together, so that a prediction never depends on which of them were missing.
        """
        splits = dict.fromkeys(trial.split for trial in trials)
        questions = [
            (text, split) for split in splits for text in hypotheses if (text, split) not in self._known
        ]
        together = {
            split: [trial for trial in self._trials.values() if trial.split == split] for split in splits
        }

        def run(question: tuple[str, Split]) -> Predictions:
            text, split = question
            return self._scorer.run(text, together[split], self._tokens)

        sent = 0
        for question, answer in map_in_flight(
            run, dict.fromkeys(questions), min(self._at_once, len(questions)) or 1
        ):
            own = zip(together[question[1]], answer.of, strict=True)
            self._known[question] = {trial.place: predicted for trial, predicted in own}
            sent += answer.prompt_tokens
        return sent

    def _record(self, trial: Trial, hypotheses: Sequence[str]) -> PredictedRecord:
        predicted = [self._known[text, trial.split][trial.place] for text in hypotheses]
        values, detail = predicted[0].values, predicted[0].detail
        for more in predicted[1:]:
            if detail is not None and more.detail is not None:
                detail = np.where(np.isnan(values) | (more.values > values), more.detail, detail)
            values = np.fmax(values, more.values)
        return PredictedRecord(trial.kind, trial.rank, trial.first, values, detail)


def select_score(
    evidence: Evidence,
    prediction: Prediction | None,
    headline: Headline,
    among: Collection[Place] | None = None,
) -> float | None:
    """The headline on `select`, or on those of its records that are in `among`; None where it is undefined."""
    if prediction is None or prediction.status != Status.OK:
        return None
    if among is not None:
        prediction = replace(
            prediction, records=tuple(r for r in prediction.records if (r.kind, r.rank) in among)
        )
    scores = compute_scores(evidence, prediction)
    mine = (
        s.value
        for s in scores
        if s.split == "select" and s.metric == headline.metric and s.subset in headline.subsets
    )
    return next(mine, None)


def units_at_once(scorer: OpenScorer | None, explaining: int, n_units: int) -> tuple[int, int]:
    """(units in work at once, hypotheses of one unit at once), so that the engines' bounds of requests are used."""
    bound = max(explaining, scorer.engine.in_flight if scorer is not None else 1)
    return bound, max(1, bound // max(1, n_units))
