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

from neuroexplain.evidence import Tokens, texts_in_context
from neuroexplain.llm.distributions import NextTokenRequest
from neuroexplain.llm.engine import Engine
from neuroexplain.llm.prompts import Prompt, load_prompt, marked
from neuroexplain.runs import Run
from neuroexplain.scorers._questions import TextQuestions
from neuroexplain.scorers._windows import WindowScorer, require_samples
from neuroexplain.scorers.base import OpenScorer, PredictedTrial, Predictions, Request
from neuroexplain.scoring.judgements import BALANCED_ACCURACY, BRIER, F1
from neuroexplain.scoring.population_scores import AUPRC
from neuroexplain.scoring.side_evidence import Trial


class Judge(WindowScorer):
    """A scorer that asks yes or no about each window."""

    prompt_name: ClassVar[str]
    metrics = (AUPRC, F1, BALANCED_ACCURACY)
    unsorted_metrics = (BRIER,)
    codec = "probabilities"

    @abstractmethod
    def text_of(self, trial: Trial, tokens: Tokens) -> str:
        """The window's text as the prompt shows it."""
        ...

    def open(self, engine: Any, run: Run) -> OpenJudge:
        """Raises NeuroexplainError for a run without sampled records."""
        require_samples(self.name, run)
        return OpenJudge(self, engine)


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


def window_text(trial: Trial, tokens: Tokens, places: Sequence[int] = ()) -> str:
    """A window on one line, with the tokens at some places between **.

    A token whose character stands with an earlier token marks that one.
    """
    texts = texts_in_context([tokens[token_id] for token_id in trial.token_ids])
    is_marked = [False] * len(texts)
    for place in places:
        is_marked[next((p for p in range(place, -1, -1) if texts[p]), place)] = True
    return marked(texts, is_marked)
