"""An explanation and a record's tokens -> predicted activations.

A simulator is a class with `name`, `engine`, `prompt` and `simulate`: add one here, its name to config.py, and say in
pipeline/engines.py which engine it runs on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import LlmReplyError, NeuroexplainError
from neuroexplain.llm.engine import Engine, VocabularyEngine
from neuroexplain.llm.prompts import Prompt, displayed, level_lines, load_prompt
from neuroexplain.scoring.levels import expected_level
from neuroexplain.types import VocabularyEntry

TINY = 1e-12  # a probability below which two words are alike: none
UNKNOWN = "unknown"  # the mark at each token whose level is asked for


@dataclass(frozen=True)
class Prediction:
    """What a simulator says of one crop: a level for each token, and for `digits` the mass that fell on level tokens."""

    levels: NDArray[np.float32]  # [n]; NaN where no level was among what the engine gave: no prediction, so not scored
    digit_mass: NDArray[np.float32] | None = None  # [n]
    prompt_tokens: int = 0  # what it cost


class Simulator(Protocol):
    """Predicts activations from an explanation. A request that fails raises LlmReplyError."""

    name: str
    engine: Any
    prompt: Prompt | None
    asks_per_record: bool  # whether each record is a request; else an explanation's first record costs all

    def simulate(self, explanation: str, token_ids: Sequence[int], vocabulary: Mapping[int, VocabularyEntry]) -> Prediction: ...


class DigitsSimulator:
    """All at once (Bills et al. 2023): every token is followed by a tab and an unknown mark, where the level is read.

    The prompt is built as token ids, piece by piece, so the rows are known by construction. The scale is 0..10 where the
    model's tokenizer has a single token for 10, else 0..9.
    """

    name = "digits"
    asks_per_record = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.prompt: Prompt | None = load_prompt("simulate/digits")
        self.level_token_ids = find_level_tokens(engine.tokenizer)
        self._piece = lru_cache(maxsize=65_536)(self._encode)  # the same tokens come again and again
        self._head = lru_cache(maxsize=256)(self._encode_head)  # and each explanation with many records
        self._tab, self._mark, self._newline = (self._encode(piece) for piece in ("\t", UNKNOWN, "\n"))
        self._fixed = self._encode_head("")  # what all prompts begin with, and a little more

    def build_prompt(
        self, explanation: str, token_ids: Sequence[int], vocabulary: Mapping[int, VocabularyEntry]
    ) -> tuple[list[int], list[int]]:
        """(token ids, rows): the level of token i is read at the distribution after `rows[i]`, the end of its tab."""
        ids = list(self._head(displayed(explanation)))
        rows = []
        for token_id in token_ids:
            ids += self._piece(displayed(vocabulary[int(token_id)].text))
            ids += self._tab
            rows.append(len(ids) - 1)
            ids += self._mark
            ids += self._newline
        return ids, rows

    def _encode_head(self, explanation: str) -> list[int]:
        """What is the same for all records of an explanation."""
        assert self.prompt is not None
        top = len(self.level_token_ids) - 1
        worked = (
            f"Neuron: {neuron.explanation}\n{level_lines((token, min(level, top)) for token, level in record)}\n"
            for neuron in self.prompt.examples
            for record in neuron.records
        )
        blanks = {"scale": str(top), "examples": "\n".join(worked), "explanation": explanation}
        return list(self.engine.tokenizer(self.prompt.fill(blanks)[0].content + "\n").input_ids)

    def simulate(self, explanation: str, token_ids: Sequence[int], vocabulary: Mapping[int, VocabularyEntry]) -> Prediction:
        ids, rows = self.build_prompt(explanation, token_ids, vocabulary)
        shared = next((i for i, (a, b) in enumerate(zip(self._fixed, ids, strict=False)) if a != b), 0)
        probabilities = self.engine.level_distributions(ids, rows, self.level_token_ids, shared)
        if probabilities.shape != (len(rows), len(self.level_token_ids)) or not np.isfinite(probabilities).all():
            raise LlmReplyError("llm_error", f"the engine answered distributions of shape {probabilities.shape}")
        levels, mass = np.full(len(rows), np.nan, np.float32), np.zeros(len(rows), np.float32)
        said = probabilities.sum(axis=1) > 0
        levels[said], mass[said] = expected_level(probabilities[said])
        return Prediction(levels, mass, len(ids))

    def _encode(self, text: str) -> list[int]:
        return list(self.engine.tokenizer(text, add_special_tokens=False).input_ids)


def find_level_tokens(tokenizer: Any) -> list[list[int]]:
    """For each level the token ids that spell it, with or without a space before it: 0..10, or 0..9 where 10 is no token.

    Raises NeuroexplainError where a digit is no single token.
    """
    spellings = []
    for level in range(11):
        encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in (str(level), f" {level}")]
        single = sorted({ids[0] for ids in encoded if len(ids) == 1})
        if not single and level == 10:
            break
        if not single:
            raise NeuroexplainError(f"The simulator's tokenizer has no single token for {level}: use --simulator lexical.")
        spellings.append(single)
    return spellings


class LexicalSimulator:
    """How much likelier each token's word is as an example of the explanation than as an example of other things.

    The value is `max(0, mean of log(p / q)) ** 2`, the mean over several phrasings. p is the probability that a phrasing with
    the explanation goes on with the word, in any spelling that is one token: with or without a space before it, with or without
    a capital. q is the mean of that over other explanations, the same for all: the lines of the prompt file's last turn. A few
    short forward passes give every token of the vocabulary its value. It asks for no instruction following, so a base model of
    135M parameters will do; it cannot see context.
    """

    name = "lexical"
    asks_per_record = False

    def __init__(self, engine: VocabularyEngine, subject_tokenizer_sha256: str) -> None:
        self.engine = engine
        self.prompt: Prompt | None = load_prompt("simulate/lexical")
        self._shared = engine.tokenizer_sha256 == subject_tokenizer_sha256
        self._special = set(engine.tokenizer.all_special_ids)
        others = self.prompt.fill({"explanation": ""})[-1].content.splitlines()
        self._others = np.mean([self._probabilities(other) for other in others], axis=0)
        self._own = lru_cache(maxsize=100)(self._probabilities)
        self._spellings = lru_cache(maxsize=65_536)(self._spellings_of)

    def simulate(self, explanation: str, token_ids: Sequence[int], vocabulary: Mapping[int, VocabularyEntry]) -> Prediction:
        """A value for each token: white space, special tokens and parts of characters get 0."""
        own = self._own(explanation)
        found = np.zeros(len(token_ids), np.float32)
        for place, token_id in enumerate(token_ids):
            if ids := self._spellings(vocabulary[int(token_id)]):
                found[place] = likelihood_ratio(own[:, ids].sum(axis=1), self._others[:, ids].sum(axis=1))
        return Prediction(found, prompt_tokens=0)

    def _probabilities(self, explanation: str) -> NDArray[np.float32]:
        """Of every token, after each phrasing: [n_phrasings, vocabulary]."""
        assert self.prompt is not None
        prompts = [self.engine.tokenizer(one.content).input_ids for one in self.prompt.fill({"explanation": explanation})[:-1]]
        found: NDArray[np.float32] = np.exp([self.engine.next_token_logprobs(list(ids)) for ids in prompts]).astype(np.float32)
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
