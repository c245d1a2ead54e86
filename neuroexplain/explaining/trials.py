"""One side of a unit before a scorer: trials -> predictions. Nothing is stored here."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import Explanation, PredictedRecord, Prediction, RecordKey, Split, Status, Tokens
from neuroexplain.runtime.run_many import RunMany, run_in_order
from neuroexplain.scorers.base import OpenScorer, PredictedTrial, Predictions, trials_read
from neuroexplain.scoring.side_evidence import BackgroundDraw, SideEvidence, Trial, background_draw_of
from neuroexplain.status_words import status_words

# Which trials are read: "held out" or "explain", Prediction.n_read and with_bills, of the background, n_hard.
Reading: TypeAlias = tuple[str, int | None, bool | None, BackgroundDraw | None, int | None]


class SideTrials:
    """A side's trials and a scorer. A hypothesis is tried once on each split, however often it is asked for.

    All trials of a split are run together, so a prediction never depends on which of them were missing. Hard
    negatives are run by themselves: they may have been measured long after the others were predicted.
    """

    def __init__(
        self,
        scorer: OpenScorer,
        evidence: SideEvidence,
        tokens: Tokens,
        run_many: RunMany = run_in_order,
        at_once: int = 1,
    ) -> None:
        self._scorer, self._tokens = scorer, tokens
        self._run_many, self._at_once = run_many, at_once  # hypotheses of this side at the same time
        self._evidence = evidence
        self._trials: dict[Reading, list[Trial]] = {}
        self._predicted: dict[tuple[str, str, Reading], Mapping[RecordKey, PredictedTrial]] = {}

    def extend(
        self, prediction: Prediction, hypotheses: Sequence[str], splits: Collection[Split]
    ) -> Prediction:
        """The prediction with all trials of these splits. A failed request makes it a failed attempt.

        Of several hypotheses (a union) each token gets the greatest of their values.
        """
        if prediction.status != Status.OK:
            return prediction
        began = time.perf_counter()
        try:
            prediction, n_guess_tokens = self._guess(prediction, hypotheses, splits)
            if "report" in splits and prediction.n_hard is None:  # they may have been measured since
                n_hard = self._scorer.hard_read(self._evidence, prediction.n_read)
                prediction = replace(prediction, n_hard=n_hard)
            reading, keys = _reading_of(prediction), {r.key for r in prediction.records}
            trials = self._trials_of(reading)
            missing = [t for t in trials if t.split in splits and t.key not in keys]
            if not missing:
                if "report" in splits and not prediction.has_report:
                    return replace(prediction, has_report=True)
                return prediction
            n_tokens = n_guess_tokens + self._run(hypotheses, missing, reading)
        except LlmReplyError as error:
            return replace(
                prediction, status=error.status, reason=error.reason, reply=error.reply, records=()
            )
        kept = [
            replace(r, control=None) for r in prediction.records
        ]  # a control is of all records or of none
        records = kept + [self._record(trial, hypotheses, reading) for trial in missing]
        order = {trial.key: place for place, trial in enumerate(trials)}
        records.sort(key=lambda r: order[r.key])
        return replace(
            _add_cost(prediction, n_tokens, began),
            records=tuple(records),
            control_explanation_id=None,
            control_text=None,
            has_report=prediction.has_report or "report" in splits,
        )

    def _guess(
        self, prediction: Prediction, hypotheses: Sequence[str], splits: Collection[Split]
    ) -> tuple[Prediction, int]:
        """The prediction with guesses where it needs them, and the prompt tokens sent for them.

        A guess is the sum of what `lexical` predicts of a record's scored half; without it all are equal.
        """
        n, evidence = prediction.n_background, self._evidence
        if n is None or prediction.guesses is not None or "report" not in splits:
            return prediction, 0
        if not self._scorer.asks_per_record or n >= len(evidence.background_frame()):
            return prediction, 0
        trials, n_tokens = evidence.guessed_trials(), 0
        guesses = np.zeros(len(trials), np.float32)
        if (guesser := self._scorer.guesser) is not None:
            for text in dict.fromkeys(hypotheses):
                predicted = guesser.run(text, trials, self._tokens)
                sums = [np.nansum(trial.values, dtype=np.float32) for trial in predicted.trials]
                guesses = np.maximum(guesses, np.array(sums, np.float32))
                n_tokens += predicted.prompt_tokens
        return replace(prediction, guesses=tuple(guesses.tolist())), n_tokens

    def add_control(self, prediction: Prediction, control: Explanation) -> Prediction:
        """The prediction with the control, another unit's explanation, tried on the same records.

        Of the control the same part is read. If a request fails, the prediction gets the reason instead.
        """
        began = time.perf_counter()
        reading, hypotheses = _reading_of(prediction), control.hypotheses_of(prediction.part)
        by_key = {trial.key: trial for trial in self._trials_of(reading)}
        trials = [by_key[r.key] for r in prediction.records]
        try:
            n_tokens = self._run(hypotheses, trials, reading)
        except LlmReplyError as error:
            reason = (
                f"the other explanation's simulation failed, {status_words(error.status)}: {error.reason}"
            )
            return replace(prediction, reason=reason)
        records = tuple(
            replace(record, control=self._record(trial, hypotheses, reading).values)
            for record, trial in zip(prediction.records, trials, strict=True)
        )
        return replace(
            _add_cost(prediction, n_tokens, began),
            records=records,
            control_explanation_id=control.id,
            control_text=control.text_of(prediction.part),
            reason=None,
        )

    def predict_explain(
        self, prediction: Prediction, hypotheses: Sequence[str]
    ) -> tuple[Prediction, list[PredictedRecord]]:
        """What the hypotheses predict of the split `explain`, and the prediction with its cost added.

        As many sampled and random records are read as of other splits. Raises LlmReplyError.
        """
        began, reading = time.perf_counter(), ("explain", prediction.n_read, False, None, None)
        drawn = {d.record.key for d in self._evidence.draw("explain", prediction.n_read)}
        trials = [trial for trial in self._evidence.crops_of("explain") if trial.key in drawn]
        self._trials[reading] = trials
        n_tokens = self._run(hypotheses, trials, reading)
        records = [self._record(trial, hypotheses, reading) for trial in trials]
        return _add_cost(prediction, n_tokens, began), records

    def _trials_of(self, reading: Reading) -> list[Trial]:
        """The held-out trials of a prediction."""
        if reading not in self._trials:
            _, n_read, with_bills, background, n_hard = reading
            self._trials[reading] = trials_read(
                self._scorer.scorer, self._evidence, n_read, with_bills, background, n_hard
            )
        return self._trials[reading]

    def _run(self, hypotheses: Sequence[str], trials: Sequence[Trial], reading: Reading) -> int:
        """Run every hypothesis on all trials of these trials' groups. Returns the prompt tokens sent."""
        groups = dict.fromkeys(map(_group_of, trials))
        pairs = dict.fromkeys((text, group) for group in groups for text in hypotheses)
        missing = [pair for pair in pairs if (*pair, reading) not in self._predicted]
        by_group = {group: [t for t in self._trials[reading] if _group_of(t) == group] for group in groups}

        def run(pair: tuple[str, str]) -> Predictions:
            text, group = pair
            return self._scorer.run(text, by_group[group], self._tokens)

        n_tokens = 0
        n_at_once = max(1, min(self._at_once, len(missing)))
        for pair, predictions in self._run_many(run, missing, n_at_once):
            keys = (trial.key for trial in by_group[pair[1]])
            self._predicted[*pair, reading] = dict(zip(keys, predictions.trials, strict=True))
            n_tokens += predictions.prompt_tokens
        return n_tokens

    def _record(self, trial: Trial, hypotheses: Sequence[str], reading: Reading) -> PredictedRecord:
        """What the hypotheses predict together: at each token the greatest value, with its detail."""
        group = _group_of(trial)
        first, *others = [self._predicted[text, group, reading][trial.key] for text in hypotheses]
        values, detail = first.values, first.detail
        for other in others:
            if detail is not None and other.detail is not None:
                detail = np.where(np.isnan(values) | (other.values > values), other.detail, detail)
            values = np.fmax(values, other.values)
        return PredictedRecord(trial.kind, trial.rank, trial.first, values, detail)


def _reading_of(prediction: Prediction) -> Reading:
    background = background_draw_of(prediction)
    return "held out", prediction.n_read, prediction.with_bills, background, prediction.n_hard


def _group_of(trial: Trial) -> str:
    """Which trials it is run together with: those of its split, or hard ones."""
    return "hard" if trial.kind == "hard" else trial.split


def _add_cost(prediction: Prediction, n_tokens: int, began: float) -> Prediction:
    provenance = prediction.provenance
    cost = replace(
        provenance,
        prompt_tokens=provenance.prompt_tokens + n_tokens,
        seconds=provenance.seconds + time.perf_counter() - began,
    )
    return replace(prediction, provenance=cost)


def units_at_once(scorer: OpenScorer | None, n_explaining: int, n_units: int) -> tuple[int, int]:
    """(units at a time, hypotheses of one unit at a time) that use all of the engines' requests."""
    bound = max(n_explaining, scorer.engine.in_flight if scorer is not None else 1)
    return bound, max(1, bound // max(1, n_units))
