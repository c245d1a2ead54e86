"""One side of a unit -> its explanations: candidates are asked for, tried, the best is chosen, and revised.

The loop of a side: candidates are compared by the headline on the `select` records; the best one is revised
where the command wants that. A revision is shown mistakes on `explain` records, and judged on `select` like
every candidate. (Runs that split by rank show a half of `select`, and judge by the other.) `report` records
are predicted for the chosen explanation alone where each record costs a request, so a candidate costs a half.
Nothing is stored here: results go back to the run as `ExplanationResult`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import (
    Exemplar,
    Explanation,
    ExplanationResult,
    Headline,
    PredictedRecord,
    Prediction,
    PredictionResult,
    RecordKey,
    Split,
    Status,
    TextPart,
    choose_unscored,
)
from neuroexplain.explaining.hypotheses import ask_candidates, ask_revision
from neuroexplain.explaining.plan import ExplainTask, Requests
from neuroexplain.explaining.predictions import continue_prediction
from neuroexplain.explaining.rendering import Mistake
from neuroexplain.explaining.trials import SideTrials
from neuroexplain.runtime.run_many import RunMany, run_in_order
from neuroexplain.scorers.base import OpenScorer, compute_scores
from neuroexplain.scoring.codecs import as_stored
from neuroexplain.scoring.levels import to_levels
from neuroexplain.scoring.side_evidence import HELD_OUT, SideEvidence
from neuroexplain.scoring.splits import halve_select

MOST_MISTAKES = 3  # records that a revision is shown: a small model loses the thread with more


def explain_side(
    task: ExplainTask,
    *,
    requests: Requests,
    scorer: OpenScorer | None,
    headline: Headline,
    run_many: RunMany = run_in_order,
    at_once: int = 1,
) -> list[ExplanationResult]:
    """Explain one side: its explanations, and for each the prediction and scores that are new.

    Nothing that the store holds is asked for again.
    """
    records = task.evidence.explain_records(requests.explainer.n_records)
    explanations = list(ask_candidates(task, requests, records))
    usable = [e for e in explanations if e.status == Status.OK]
    if scorer is None or not usable:
        chosen = choose_unscored(explanations)
        return [ExplanationResult(replace(e, chosen=e is chosen)) for e in explanations]
    trials = SideTrials(scorer, task.evidence, task.tokens, run_many, at_once)
    contest = Contest(task, scorer, trials, headline)
    first_splits = _first_splits(requests, scorer)
    for explanation in usable:
        contest.predict_candidate(explanation, first_splits)
    best = max(usable, key=contest.select_score) if requests.chooses else usable[0]  # the first of equals
    held_keys = contest.held_keys()
    for candidate in requests.revisions:
        revision = task.answers.get(candidate)
        if revision is None:
            try:
                mistakes = contest.find_mistakes(best)
            except LlmReplyError as error:  # of the scorer, whose prediction the revision would be shown
                request = requests.request(task.unit.id, candidate, task.evidence.side)
                reason = f"the records to show could not be predicted: {error.reason}"
                revision = replace(request, status=error.status, reason=reason, reply=error.reply)
            else:
                revision = ask_revision(task, requests, records, best, mistakes, candidate)
        explanations.append(revision)
        if revision.status == Status.OK:
            contest.predict_candidate(revision, first_splits)
            if contest.select_score(revision, held_keys) > contest.select_score(best, held_keys):
                best = revision
    for part in best.text_parts:
        contest.predict(best, part, HELD_OUT if requests.chooses else first_splits)
    return [contest.result(explanation, is_chosen=explanation is best) for explanation in explanations]


def _first_splits(requests: Requests, scorer: OpenScorer) -> tuple[Split, ...]:
    """The splits that every candidate is predicted on."""
    if not scorer.asks_per_record:
        return HELD_OUT  # all records cost one request
    return ("select",) if requests.chooses else ("report",)


class Contest:
    """The explanations of one side, with what a scorer predicts from each."""

    def __init__(self, task: ExplainTask, scorer: OpenScorer, trials: SideTrials, headline: Headline) -> None:
        self._task, self._scorer, self._trials, self._headline = task, scorer, trials, headline
        self._predictions: dict[tuple[int, TextPart], Prediction] = {}  # by candidate

    def prediction(self, explanation: Explanation) -> Prediction:
        """What was predicted from the part of an explanation that it is compared by."""
        return self._predictions[explanation.candidate, explanation.ranking_part]

    def predict_candidate(self, explanation: Explanation, splits: Collection[Split]) -> None:
        """Predict what an explanation is compared by, and the other part where records cost nothing."""
        parts = (explanation.ranking_part,) if self._scorer.asks_per_record else explanation.text_parts
        for part in parts:
            self.predict(explanation, part, splits)

    def predict(self, explanation: Explanation, part: TextPart, splits: Collection[Split]) -> None:
        """Predict the missing records of these splits; values are rounded as the store keeps them."""
        key = explanation.candidate, part
        before = self._predictions.get(key)
        if before is None:
            stored = self._task.stored_prediction(explanation, part)
            before = continue_prediction(explanation, part, self._scorer, self._task.evidence, stored)
        after = self._trials.extend(before, explanation.hypotheses_of(part), splits)
        self._predictions[key] = before if after is before else as_stored(after)

    def select_score(self, explanation: Explanation, records: Collection[RecordKey] | None = None) -> float:
        """The headline on `select`, or on its records that are in `records`; -inf if it is undefined."""
        prediction = self.prediction(explanation)
        if prediction.status != Status.OK:
            return -math.inf
        if records is not None:
            kept = tuple(r for r in prediction.records if r.key in records)
            prediction = replace(prediction, records=kept)
        for score in compute_scores(self._task.evidence, prediction):
            if (
                score.split == "select"
                and score.metric == self._headline.metric
                and score.subset in self._headline.subsets
                and score.value is not None
            ):
                return score.value
        return -math.inf

    def held_keys(self) -> Collection[RecordKey] | None:
        """The `select` records on which a revision must win; None: all of them.

        In runs that split by rank a revision is shown a half of `select`, so the other half judges it.
        """
        evidence = self._task.evidence
        if evidence.split_rule == "passages":
            return None
        return halve_select(evidence.unit.exemplars, evidence.splits, evidence.kinds)[1]

    def find_mistakes(self, explanation: Explanation) -> list[Mistake]:
        """The records that a revision is shown: of `explain`, predicted for that purpose.

        In runs that split by rank: of the first half of `select`. Raises LlmReplyError.
        """
        evidence, prediction = self._task.evidence, self.prediction(explanation)
        if evidence.split_rule == "ranks":
            shown_keys, _ = halve_select(evidence.unit.exemplars, evidence.splits, evidence.kinds)
            return find_mistakes(evidence, [r for r in prediction.records if r.key in shown_keys])
        if prediction.status != Status.OK:
            return []
        part = explanation.ranking_part
        prediction, records = self._trials.predict_explain(prediction, explanation.hypotheses_of(part))
        self._predictions[explanation.candidate, part] = prediction
        return find_mistakes(evidence, records)

    def result(self, explanation: Explanation, *, is_chosen: bool) -> ExplanationResult:
        """An explanation with its predictions and scores that the store does not have."""
        new = []
        for part in explanation.text_parts:
            stored = self._task.stored_prediction(explanation, part)
            prediction = self._predictions.get((explanation.candidate, part))
            if prediction is not None and prediction is not stored:
                scores = tuple(compute_scores(self._task.evidence, prediction))
                new.append(PredictionResult(prediction, scores, stored))
        return ExplanationResult(replace(explanation, chosen=is_chosen), tuple(new))


def find_mistakes(evidence: SideEvidence, predicted: Sequence[PredictedRecord]) -> list[Mistake]:
    """The mistakes in what was predicted of some of a side's records: see worst_mistakes."""
    records = [evidence.by_key[r.key] for r in predicted]
    true = [
        evidence.truth(record)[r.first : r.first + len(r.values)]
        for record, r in zip(records, predicted, strict=True)
    ]
    return worst_mistakes(records, [r.first for r in predicted], true, [r.values for r in predicted])


def worst_mistakes(
    records: Sequence[Exemplar],
    firsts: Sequence[int],
    true: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
) -> list[Mistake]:
    """The crops whose predicted levels differ most, by sum of squares, worst first: at most MOST_MISTAKES.

    A crop has a record, its first token there, and a true and a predicted value for each token. Levels are
    0..10: true and predicted values are each scaled by their greatest over all crops. A token without a
    prediction (NaN) counts as silent.
    """
    if not records:
        return []
    true_levels = _levels_of(true)
    guessed_levels = _levels_of([np.nan_to_num(values) for values in predicted])
    errors = [int(((t - g) ** 2).sum()) for t, g in zip(true_levels, guessed_levels, strict=True)]
    worst = sorted(range(len(errors)), key=lambda i: -errors[i])[:MOST_MISTAKES]
    return [
        Mistake(records[i], firsts[i], true_levels[i].tolist(), guessed_levels[i].tolist()) for i in worst
    ]


def _levels_of(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Levels 0..10 of several crops, scaled by the greatest value of all."""
    maximum = max(float(crop.max()) for crop in values)
    return [to_levels(crop, maximum) for crop in values]
