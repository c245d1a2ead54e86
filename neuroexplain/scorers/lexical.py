"""A simulator by likelihood: how much likelier a word is after an explanation than after others.

The value is `max(0, mean of log(p / q)) ** 2`, the mean over three phrasings like "Here is a list of
EXPLANATION:" (`_likelihood.py`). Three short forward passes per explanation give every token of the
vocabulary its value; a server gives those of the records' words. No instructions are followed, so a base
model of 135M parameters will do; but the context of a token is not seen.

Rejected, measured on the known neurons: one phrasing; negative values kept; other powers; fewer and more
lists for q; adding what the model says of a token in its place, which carries next to nothing.
docs/decisions.md has the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import Tokens
from neuroexplain.llm.engine import Engine
from neuroexplain.llm.prompts import Prompt, load_prompt
from neuroexplain.runs import Run
from neuroexplain.scorers._likelihood import LikelihoodRatios
from neuroexplain.scorers._simulation import OpenSimulator, Records, Simulator
from neuroexplain.scorers.base import PredictedTrial, Predictions, Request
from neuroexplain.scoring.side_evidence import Trial


class LexicalSimulator(OpenSimulator):
    """Predicts how much likelier each token's word is by the explanation than by others."""

    def __init__(self, engine: Engine, subject_tokenizer_sha256: str) -> None:
        self.scorer = SCORER
        self.engine = engine
        self.prompt: Prompt = load_prompt("simulate/lexical")
        self.likelihood = LikelihoodRatios(engine, self.prompt, subject_tokenizer_sha256)

    def simulate(self, explanation: str, records: Records, vocabulary: Tokens) -> Predictions:
        """A value for each token. White space, special tokens and parts of characters get 0."""
        ids = [int(token_id) for record in records for token_id in record]
        distinct = list(dict.fromkeys(ids))
        ratios, n_sent = self.likelihood.ratios(explanation, [vocabulary[token_id] for token_id in distinct])
        values = dict(zip(distinct, value_of(ratios), strict=True))
        predicted = [
            PredictedTrial(np.array([values[int(token_id)] for token_id in record], np.float32))
            for record in records
        ]
        return Predictions(predicted, n_sent)

    def plan(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> list[Request]:
        distinct = dict.fromkeys(token_id for trial in trials for token_id in trial.token_ids)
        return self.likelihood.plan(explanation, [tokens[token_id] for token_id in distinct])


def value_of(ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """The predicted values of words by their mean log ratios."""
    values: NDArray[np.float64] = np.maximum(ratios, 0.0) ** 2
    return values


class Lexical(Simulator):
    """A few forward passes of any model give every token a value; context is not seen."""

    name = "lexical"
    asks_per_record = False

    def open(self, engine: Any, run: Run) -> LexicalSimulator:
        return LexicalSimulator(engine, run.tokenizer_sha256)


SCORER = Lexical()
