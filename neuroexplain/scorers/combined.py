"""`lexical` and `words` in one value: how likely a word is after an explanation, and if it belongs to it.

The value of a token is `max(0, ratio + WEIGHT * raised - NOISE)`: ratio is the mean log likelihood ratio of
its word (`_likelihood.py`), raised what a question about it raises the log odds of yes by (`_questions.py`).
Both are logarithms of odds over other explanations. A small model's answers hardly differ from word to word,
and then the ratio decides; a larger model's differ by several nats.

Rejected, measured on the known neurons: the product of the two, their positive parts added, a ratio that only
counts where the answer is yes; powers of the value. docs/decisions.md has the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuroexplain.evidence import Tokens
from neuroexplain.llm.distributions import NextTokenRequest
from neuroexplain.llm.engine import Engine
from neuroexplain.llm.prompts import Prompt, load_prompt
from neuroexplain.runs import Run
from neuroexplain.scorers._likelihood import LikelihoodRatios
from neuroexplain.scorers._questions import WordQuestions
from neuroexplain.scorers._simulation import OpenSimulator, Records, Simulator
from neuroexplain.scorers.base import PredictedTrial, Predictions, Request
from neuroexplain.scorers.words import distinct_words, words_of_record
from neuroexplain.scoring.side_evidence import Trial

WEIGHT = 2.0  # of the question, beside the likelihood ratio
NOISE = 1.5  # nats: words that have nothing to do with an explanation differ from others by as much
# How a value is made, beside the prompt files: predictions by another rule are another prompt's.
RULE = f"### value\nmax(0, ratio + {WEIGHT} * raised - {NOISE})\n"


class CombinedSimulator(OpenSimulator):
    """Predicts from likelihood ratios and from questions about words."""

    def __init__(self, engine: Engine, subject_tokenizer_sha256: str) -> None:
        self.scorer = SCORER
        self.engine = engine
        questions, phrasings = load_prompt("simulate/words"), load_prompt("simulate/lexical")
        self.prompt = Prompt("simulate/words+lexical", questions.text + phrasings.text + RULE)
        self._questions = WordQuestions(engine, questions)
        self._likelihood = LikelihoodRatios(engine, phrasings, subject_tokenizer_sha256)

    def simulate(self, explanation: str, records: Records, vocabulary: Tokens) -> Predictions:
        """A value for each token. White space gets 0."""
        words = [words_of_record(record, vocabulary) for record in records]
        distinct = distinct_words(words)
        odds, n_sent = self._questions.raised_odds(explanation, distinct)
        raised = {"": 0.0, **dict(zip(distinct, odds, strict=True))}
        ids = list(dict.fromkeys(int(token_id) for record in records for token_id in record))
        logs, n_more = self._likelihood.ratios(explanation, [vocabulary[token_id] for token_id in ids])
        ratios = dict(zip(ids, np.where(np.isfinite(logs), logs, 0.0), strict=True))
        predicted = []
        for record, of_record in zip(records, words, strict=True):
            sums = [
                ratios[int(token_id)] + WEIGHT * raised[word] if word else 0.0
                for token_id, word in zip(record, of_record, strict=True)
            ]
            values = np.maximum(np.array(sums) - NOISE, 0.0)
            predicted.append(PredictedTrial(values.astype(np.float32)))
        return Predictions(predicted, n_sent + n_more)

    def plan(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> list[Request]:
        words = [words_of_record(trial.token_ids, tokens) for trial in trials]
        ids = dict.fromkeys(token_id for trial in trials for token_id in trial.token_ids)
        return [
            *self._questions.plan(explanation, distinct_words(words)),
            *self._likelihood.plan(explanation, [tokens[token_id] for token_id in ids]),
        ]

    def example(self) -> NextTokenRequest:
        return self._questions.example()


class Combined(Simulator):
    """A word's likelihood and a question about it, by any model; context is not seen."""

    name = "combined"

    def open(self, engine: Any, run: Run) -> CombinedSimulator:
        return CombinedSimulator(engine, run.tokenizer_sha256)


SCORER = Combined()
