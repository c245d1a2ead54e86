"""What judges share: a model answers yes or no to an explanation and a window of text.

Detection and fuzzing are those of Paulo et al. (2024), but each window has a prompt of its own: windows of
one prompt leak into each other, and a list of answers that does not parse loses them all. The explanation
stands before the window, so what is computed for it is kept. The answer is one token, whose probability is
read: no reply is parsed, and the order of windows tells nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import POPULATION, Prediction, Score, Status, Tokens, texts_in_context
from neuroexplain.llm.distributions import NextTokenRequest
from neuroexplain.llm.engine import Engine
from neuroexplain.llm.prompts import Prompt, load_prompt, marked
from neuroexplain.runs import Run
from neuroexplain.scorers._questions import TextQuestions
from neuroexplain.scorers.base import (
    RECORDS_OF_CHEAP,
    OpenScorer,
    PredictedTrial,
    Predictions,
    Request,
    Scorer,
)
from neuroexplain.scoring.judge_scores import score_windows
from neuroexplain.scoring.judgements import AUROC, BALANCED_ACCURACY, F1
from neuroexplain.scoring.population_scores import AUPRC
from neuroexplain.scoring.side_evidence import HELD_OUT, SideEvidence, Trial
from neuroexplain.scoring.windows import windows_of


class Judge(Scorer):
    """A scorer that asks yes or no about each window."""

    main_metric = AUROC
    prompt_name: ClassVar[str]
    metrics = (AUPRC, F1, BALANCED_ACCURACY)  # less is better by the Brier score, so nothing is sorted by it
    codec = "probabilities"
    predicts_tokens = False
    reads_background = False
    records_of_split = RECORDS_OF_CHEAP  # one answer a window, where a simulator has 32: all of them are read

    @abstractmethod
    def text_of(self, trial: Trial, tokens: Tokens) -> str:
        """The window's text as the prompt shows it."""
        ...

    def trials(self, evidence: SideEvidence) -> list[Trial]:
        return windows_of(evidence)

    def open(self, engine: Any, run: Run) -> OpenJudge:
        """Raises NeuroexplainError for a run without sampled records."""
        require_samples(self.name, run)
        return OpenJudge(self, engine)

    def subsets_of(self, run: Run, metric: str) -> tuple[str, ...]:
        return (POPULATION,) if run.n_sampled else ()

    def score(self, evidence: SideEvidence, prediction: Prediction) -> list[Score]:
        no_control = self.why_no_control(prediction)
        scores: list[Score] = []
        for split in HELD_OUT:
            if split == "report" and not prediction.has_report:
                reason = "another candidate was chosen, so the report records were not judged"
                scores += self.undefined(evidence, Status.NOT_CHOSEN, reason)
            elif split == "report" or any(evidence.splits[r.key] == split for r in prediction.records):
                scores += score_windows(evidence, prediction, split, no_control)
        return scores

    def undefined(self, evidence: SideEvidence, status: Status, reason: str | None) -> list[Score]:
        return [Score("report", POPULATION, self.main_metric, status, None, 0, 0, reason)]


class OpenJudge(OpenScorer):
    """A judge and its model."""

    scorer: Judge

    def __init__(self, judge: Judge, engine: Engine) -> None:
        self.scorer = judge
        self.engine = engine
        self.prompt: Prompt = load_prompt(judge.prompt_name)
        self._questions = TextQuestions(engine, self.prompt)

    def run(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> Predictions:
        """The probability of yes where the answer is yes or no, and that of these two together."""
        texts = [self.scorer.text_of(trial, tokens) for trial in trials]
        answers, n_sent = self._questions.probabilities(explanation, texts)
        mass = answers.sum(axis=1)
        yes = np.full(len(texts), np.nan)
        yes[mass > 0] = answers[mass > 0, 1] / mass[mass > 0]
        predicted = [
            PredictedTrial(np.array([p], np.float32), np.array([m], np.float32))
            for p, m in zip(yes, mass, strict=True)
        ]
        return Predictions(predicted, n_sent)

    def plan(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> list[Request]:
        return self._questions.plan(explanation, [self.scorer.text_of(trial, tokens) for trial in trials])

    def example(self) -> NextTokenRequest:
        return self._questions.example()


def require_samples(scorer: str, run: Run) -> None:
    """Raise NeuroexplainError for a run without sampled records."""
    if not run.n_sampled:
        raise NeuroexplainError(
            f"--scorer {scorer} asks about sampled and random records, and run {run.id} has no sampled "
            "ones.\nCollect again to have them, or use  --scorer combined"
        )


def window_text(trial: Trial, tokens: Tokens, places: Sequence[int] = ()) -> str:
    """A window on one line, with the tokens at some places between **.

    A token whose character stands with an earlier token marks that one.
    """
    texts = texts_in_context([tokens[token_id] for token_id in trial.token_ids])
    is_marked = [False] * len(texts)
    for place in places:
        is_marked[next((p for p in range(place, -1, -1) if texts[p]), place)] = True
    return marked(texts, is_marked)
