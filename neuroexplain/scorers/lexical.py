"""A likelihood ratio: how much likelier a word is after the explanation than after others. Any model will do; no context."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import Tokens, VocabularyEntry
from neuroexplain.llm.engine import VocabularyEngine
from neuroexplain.llm.prompts import Prompt, load_prompt
from neuroexplain.runs import Run
from neuroexplain.scorers._simulation import OpenSimulator, PredictedTrial, Predictions, Records, Simulator

TINY = 1e-12  # a probability below which two words are alike: none


class LexicalSimulator(OpenSimulator):
    """How much likelier each token's word is as an example of the explanation than as an example of other things.

    The value is `max(0, mean of log(p / q)) ** 2`, the mean over several phrasings. p is the probability that a phrasing with
    the explanation goes on with the word, in any spelling that is one token: with or without a space before it, with or without
    a capital. q is the mean of that over other explanations, the same for all: the lines of the prompt file's last turn. A few
    short forward passes give every token of the vocabulary its value. It asks for no instruction following, so a base model of
    135M parameters will do; it cannot see context.
    """

    def __init__(self, engine: VocabularyEngine, subject_tokenizer_sha256: str) -> None:
        self.scorer = SCORER
        self.engine = engine
        self.prompt: Prompt = load_prompt("simulate/lexical")
        self._shared = engine.tokenizer_sha256 == subject_tokenizer_sha256
        self._special = set(engine.tokenizer.all_special_ids)
        others = self.prompt.fill({"explanation": ""})[-1].content.splitlines()
        self._others = np.mean([self._probabilities(other) for other in others], axis=0)
        self._own = lru_cache(maxsize=100)(self._probabilities)
        self._spellings = lru_cache(maxsize=65_536)(self._spellings_of)

    def simulate(self, explanation: str, records: Records, vocabulary: Tokens) -> Predictions:
        """A value for each token: white space, special tokens and parts of characters get 0."""
        own = self._own(explanation)
        found = []
        for record in records:
            values = np.zeros(len(record), np.float32)
            for place, token_id in enumerate(record):
                if ids := self._spellings(vocabulary[int(token_id)]):
                    values[place] = likelihood_ratio(
                        own[:, ids].sum(axis=1), self._others[:, ids].sum(axis=1)
                    )
            found.append(PredictedTrial(values))
        return Predictions(found)

    def _probabilities(self, explanation: str) -> NDArray[np.float32]:
        """Of every token, after each phrasing: [n_phrasings, vocabulary]."""
        prompts = [
            self.engine.tokenizer(one.content).input_ids
            for one in self.prompt.fill({"explanation": explanation})[:-1]
        ]
        found: NDArray[np.float32] = np.exp(
            [self.engine.next_token_logprobs(list(ids)) for ids in prompts]
        ).astype(np.float32)
        return found

    def _spellings_of(self, token: VocabularyEntry) -> list[int]:
        """The token itself (in another tokenizer the first one of its text) and its word's other spellings, where single."""
        word = token.text.strip()
        if token.special or not word or "\ufffd" in word:
            return []
        itself = [token.token_id] if self._shared else self._encode(token.text)[:1]
        words = {word, word.lower(), word.capitalize()}
        spelled = [ids for one in words for text in (one, f" {one}") if len(ids := self._encode(text)) == 1]
        return sorted({*itself, *(ids[0] for ids in spelled)} - self._special)

    def _encode(self, text: str) -> list[int]:
        return list(self.engine.tokenizer(text, add_special_tokens=False).input_ids)


def likelihood_ratio(p: NDArray[Any], q: NDArray[Any]) -> float:
    """`max(0, mean of log(p / q)) ** 2`: less likely than elsewhere counts nothing, much likelier stands out."""
    return max(0.0, float(np.mean(np.log((p + TINY) / (q + TINY))))) ** 2


class Lexical(Simulator):
    """A few forward passes of any model give every token of the vocabulary its value."""

    name = "lexical"
    needs = "vocabulary"
    asks_per_record = False

    def open(self, engine: Any, run: Run) -> LexicalSimulator:
        return LexicalSimulator(engine, run.tokenizer_sha256)


SCORER = Lexical()
