"""Intruder: can a judge find the odd one of five windows, four of which a unit fires at?

No explanation is read, so it measures the unit: where a judge only guesses, the windows have no meaning in
common that it sees, and no sentence can score well for a good reason (scoring/intruders.py). All explanations
of a unit have the same result, which is asked for once a command. The answer is one token, a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuroexplain.evidence import INTRUDER, Headline, Prediction, Score, Status, Tokens
from neuroexplain.llm.distributions import NextTokenRequest
from neuroexplain.llm.engine import Engine
from neuroexplain.llm.prompts import Prompt, load_prompt
from neuroexplain.runs import Run
from neuroexplain.scorers._judge import window_text
from neuroexplain.scorers._questions import TextQuestions, find_number_ids
from neuroexplain.scorers._windows import require_samples
from neuroexplain.scorers.base import (
    RECORDS_OF_CHEAP,
    OpenScorer,
    PredictedTrial,
    Predictions,
    Request,
    Scorer,
)
from neuroexplain.scoring.intruders import N_SHOWN, IntruderRound, intruder_rounds, score_rounds
from neuroexplain.scoring.side_evidence import SideEvidence, Trial

NO_CONTROL = "no explanation is read"


class Intruder(Scorer):
    """A question about five windows of a unit; it measures the unit, and reads no explanation."""

    name = "intruder"
    main_metric = INTRUDER[0]
    codec = "choices"
    predicts_tokens = False
    reads_background = False
    reads_explanation = False
    records_of_split = RECORDS_OF_CHEAP

    def trials(self, evidence: SideEvidence) -> list[Trial]:
        return list(intruder_rounds(evidence))

    def open(self, engine: Any, run: Run) -> OpenIntruder:
        """Raises NeuroexplainError for a run without sampled records."""
        require_samples(self.name, run)
        return OpenIntruder(engine)

    def headline(self, run: Run) -> Headline:
        metric, subset = INTRUDER
        return Headline(metric, (subset,))

    def subsets_of(self, run: Run, metric: str) -> tuple[str, ...]:
        return (INTRUDER[1],) if run.n_sampled else ()

    def score(self, evidence: SideEvidence, prediction: Prediction) -> list[Score]:
        if not prediction.has_report:
            reason = "another candidate was chosen, so the report records were not judged"
            return self.undefined(evidence, Status.NOT_CHOSEN, reason)
        return [score_rounds(evidence, prediction.records, NO_CONTROL)]

    def undefined(self, evidence: SideEvidence, status: Status, reason: str | None) -> list[Score]:
        metric, subset = INTRUDER
        return [Score("report", subset, metric, status, None, 0, 0, reason)]


class OpenIntruder(OpenScorer):
    """The judge of rounds and its model."""

    def __init__(self, engine: Engine) -> None:
        self.scorer = SCORER
        self.engine = engine
        self.prompt: Prompt = load_prompt("judge/intruder")
        self._questions = TextQuestions(engine, self.prompt, find_number_ids(engine.tokenizer, N_SHOWN))

    def run(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> Predictions:
        """The probability of each window's number, that of the odd one first."""
        rounds = [trial for trial in trials if isinstance(trial, IntruderRound)]
        answers, n_sent = self._questions.probabilities("", [round_text(r, tokens) for r in rounds])
        predicted = [
            PredictedTrial(own.odd_first(values).astype(np.float32))
            for own, values in zip(rounds, answers, strict=True)
        ]
        return Predictions(predicted, n_sent)

    def plan(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> list[Request]:
        rounds = [trial for trial in trials if isinstance(trial, IntruderRound)]
        return self._questions.plan("", [round_text(own, tokens) for own in rounds])

    def example(self) -> NextTokenRequest:
        return self._questions.example()


def round_text(own: IntruderRound, tokens: Tokens) -> str:
    """The five windows as numbered lines."""
    windows = [window_text(window, tokens, window.marked) for window in own.windows()]
    return "\n".join(f"{number}. {text}" for number, text in enumerate(windows, 1))


SCORER = Intruder()
