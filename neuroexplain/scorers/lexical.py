"""A simulator by likelihood: how much likelier a word is after an explanation than after others.

The value is `max(0, mean of log(p / q)) ** 2`, the mean over three phrasings like "Here is a list of
EXPLANATION:". p is the probability that a phrasing goes on with the word, in any spelling that is one token:
with or without a space before it, with or without a capital. q is the mean of p over other explanations, the
lines of the prompt file's last turn. Three short forward passes per explanation give every token of the
vocabulary its value. No instructions are followed, so a base model of 135M parameters will do; but the
context of a token is not seen.

Rejected, measured on the known neurons: one phrasing; negative values kept; other powers; fewer and more
lists for q; adding what the model says of a token in its place, which carries next to nothing.
docs/decisions.md has the tables.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import Tokens, VocabularyEntry
from neuroexplain.llm.engine import VocabularyEngine
from neuroexplain.llm.prompts import Prompt, load_prompt
from neuroexplain.runs import Run
from neuroexplain.scorers._simulation import OpenSimulator, Records, Simulator
from neuroexplain.scorers.base import PredictedTrial, Predictions

TINY = 1e-12  # added to probabilities: two words that are both less likely than it have the ratio 1


class LexicalSimulator(OpenSimulator):
    """Predicts how much likelier each token's word is by the explanation than by others."""

    def __init__(self, engine: VocabularyEngine, subject_tokenizer_sha256: str) -> None:
        self.scorer = SCORER
        self.engine = engine
        self.prompt: Prompt = load_prompt("simulate/lexical")
        self._same_tokenizer = engine.tokenizer_sha256 == subject_tokenizer_sha256
        self._special_ids = set(engine.tokenizer.all_special_ids)
        others = self.prompt.fill({"explanation": ""})[-1].content.splitlines()
        self._others = np.mean([self._probabilities(other) for other in others], axis=0)
        self._own = lru_cache(maxsize=100)(self._probabilities)
        self._spellings = lru_cache(maxsize=65_536)(self._spellings_of)

    def simulate(self, explanation: str, records: Records, vocabulary: Tokens) -> Predictions:
        """A value for each token. White space, special tokens and parts of characters get 0."""
        own = self._own(explanation)
        predicted = []
        for record in records:
            values = np.zeros(len(record), np.float32)
            for i, token_id in enumerate(record):
                ids = self._spellings(vocabulary[int(token_id)])
                if ids:
                    p, q = own[:, ids].sum(axis=1), self._others[:, ids].sum(axis=1)
                    values[i] = likelihood_ratio(p, q)
            predicted.append(PredictedTrial(values))
        return Predictions(predicted)

    def _probabilities(self, explanation: str) -> NDArray[np.float32]:
        """The probability of every token after each phrasing, [n_phrasings, vocab]."""
        *phrasings, _ = self.prompt.fill({"explanation": explanation})
        prompts = [list(self.engine.tokenizer(phrasing.content).input_ids) for phrasing in phrasings]
        logprobs = [self.engine.next_token_logprobs(ids) for ids in prompts]
        probabilities: NDArray[np.float32] = np.exp(logprobs).astype(np.float32)
        return probabilities

    def _spellings_of(self, token: VocabularyEntry) -> list[int]:
        """The ids of a token's word: the token itself, and the spellings of its word that are single tokens.

        If the subject has another tokenizer, the token itself is the first token of its text.
        """
        word = token.text.strip()
        if token.special or not word or "\ufffd" in word:
            return []
        itself = [token.token_id] if self._same_tokenizer else self._encode(token.text)[:1]
        words = {word, word.lower(), word.capitalize()}
        encoded = [self._encode(text) for cased in words for text in (cased, f" {cased}")]
        return sorted({*itself, *(ids[0] for ids in encoded if len(ids) == 1)} - self._special_ids)

    def _encode(self, text: str) -> list[int]:
        return list(self.engine.tokenizer(text, add_special_tokens=False).input_ids)


def likelihood_ratio(p: NDArray[Any], q: NDArray[Any]) -> float:
    """`max(0, mean of log(p / q)) ** 2` of probabilities p and q, [n_phrasings]."""
    return max(0.0, float(np.mean(np.log((p + TINY) / (q + TINY))))) ** 2


class Lexical(Simulator):
    """A few forward passes of any model give every token a value; context is not seen."""

    name = "lexical"
    needs = "vocabulary"
    asks_per_record = False

    def open(self, engine: Any, run: Run) -> LexicalSimulator:
        return LexicalSimulator(engine, run.tokenizer_sha256)


SCORER = Lexical()
