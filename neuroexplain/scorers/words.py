"""A simulator that asks a question a word: does it belong to the explanation, yes or no?

The value of a word is `max(0, own - others) ** 2`: own is the log odds of yes for the explanation, others
the mean of those for four other categories (`_questions.py`). Its words are those of the record's text; a
token gets the value of the word that it is a part of. The context of a word is not seen.

Rejected, measured on the known neurons: neutral explanations ("any kind of word" is answered yes for every
word), worked examples, the plain probability of yes. docs/decisions.md has the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuroexplain.evidence import Tokens, texts_in_context
from neuroexplain.llm.distributions import NextTokenRequest
from neuroexplain.llm.engine import Engine
from neuroexplain.llm.prompts import Prompt, load_prompt
from neuroexplain.runs import Run
from neuroexplain.scorers._questions import WordQuestions
from neuroexplain.scorers._simulation import OpenSimulator, Records, Simulator
from neuroexplain.scorers.base import PredictedTrial, Predictions, Request
from neuroexplain.scoring.named_words import words_of_tokens
from neuroexplain.scoring.side_evidence import Trial


class WordsSimulator(OpenSimulator):
    """Predicts how much an explanation raises the odds that a word belongs to it."""

    def __init__(self, engine: Engine) -> None:
        self.scorer = SCORER
        self.engine = engine
        self.prompt: Prompt = load_prompt("simulate/words")
        self._questions = WordQuestions(engine, self.prompt)

    def simulate(self, explanation: str, records: Records, vocabulary: Tokens) -> Predictions:
        """A value for each token. White space gets 0."""
        words = [words_of_record(record, vocabulary) for record in records]
        distinct = distinct_words(words)
        raised, n_sent = self._questions.raised_odds(explanation, distinct)
        values = {"": 0.0, **dict(zip(distinct, np.maximum(raised, 0.0) ** 2, strict=True))}
        predicted = [
            PredictedTrial(np.array([values[word] for word in of_record], np.float32)) for of_record in words
        ]
        return Predictions(predicted, n_sent)

    def plan(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> list[Request]:
        words = [words_of_record(trial.token_ids, tokens) for trial in trials]
        return self._questions.plan(explanation, distinct_words(words))

    def example(self) -> NextTokenRequest:
        return self._questions.example()


def words_of_record(record: Sequence[int], vocabulary: Tokens) -> list[str]:
    """The word of each token: see words_of_tokens; empty for special tokens."""
    entries = [vocabulary[int(token_id)] for token_id in record]
    words = words_of_tokens(texts_in_context(entries))
    return ["" if entry.special else word for entry, word in zip(entries, words, strict=True)]


def distinct_words(words: Sequence[Sequence[str]]) -> list[str]:
    """The words of several records, each once, without the empty one of white space."""
    return list(dict.fromkeys(word for of_record in words for word in of_record if word))


class Words(Simulator):
    """A question a word to a capable model; context is not seen."""

    name = "words"

    def open(self, engine: Any, run: Run) -> WordsSimulator:
        return WordsSimulator(engine)


SCORER = Words()
