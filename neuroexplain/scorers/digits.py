"""Bills' simulator with yes and no: a capable model judges each token of a text in its context.

Every token has a line of its own in the prompt: its text, a tab, and the level word "no" (or the digit 0).
The level is read from the distribution after the tab, so one pass over the prompt gives all of them, and the
word in the prompt never tells the answer. But a model that reads a hundred times no learns to say no, the
more so the better it learns: so a prompt holds TOKENS_PER_PROMPT tokens, a crop, and a longer record is cut.

A level alone says more of the token than of the explanation. So the same prompt is read a second time with a
neutral explanation, and the prediction is how much the explanation raises the odds over it (`raised_level`).
Neutral levels do not depend on the explanation, so they are computed once for all that share the records.

Cost for crops of 32 tokens, of which each has a prompt: 36 prompt tokens a scored token, of which 8.5 are
computed where the fixed part is cached (4.3 for the explanation, 4.2 for the neutral one). Rejected: the
mark "unknown" of Bills et al. (2023), from which small models learn to write it; ten digits where yes and no
are tokens; shorter lines; several crops a prompt; anything cheaper in place of the neutral prompt.
docs/decisions.md has the measurements.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import LlmReplyError, NeuroexplainError
from neuroexplain.evidence import Status, Tokens, VocabularyEntry, texts_in_context
from neuroexplain.llm.distributions import LogprobRequest
from neuroexplain.llm.engine import Engine, Message, chat_token_ids
from neuroexplain.llm.prompts import Prompt, WorkedExample, displayed, level_lines, load_prompt
from neuroexplain.runs import Run
from neuroexplain.runtime.single_flight import SingleFlight
from neuroexplain.scorers._simulation import OpenSimulator, Records, Simulator
from neuroexplain.scorers.base import PredictedTrial, Predictions, Request
from neuroexplain.scoring.levels import expected_level, raised_level
from neuroexplain.scoring.side_evidence import Trial
from neuroexplain.units import CROP_LENGTH

# Lowest level first. A tokenizer gets the first whose words are single tokens.
LEVEL_WORDS = (("no", "yes"), tuple("0123456789"))
LEVEL_OF_YES = 5  # a worked neuron's level above which its line says yes
TOKENS_PER_PROMPT = CROP_LENGTH  # most scored tokens in one prompt
NEUTRAL_PROMPTS_KEPT = 262_144  # 0.6 kB each: a layer of Llama-3-8B's, until its controls are simulated

# Expected levels in 0..1, and the mass on all levels.
Levels = tuple[NDArray[np.float64], NDArray[np.float32]]


class DigitsSimulator(OpenSimulator):
    """Predicts how much an explanation raises the odds of the highest level at each token.

    Prompts are built as token ids, piece by piece, so the rows to read are known by construction.
    """

    def __init__(self, engine: Engine) -> None:
        self.scorer = SCORER
        self.engine = engine
        self.prompt: Prompt = load_versioned_prompt()
        self.level_words, self.level_token_ids = find_level_words(engine.tokenizer)
        self._token_text = lru_cache(maxsize=65_536)(self._encode)  # the same tokens come again and again
        self._head = lru_cache(maxsize=256)(self._encode_head)  # and each explanation with many records
        self._tab, self._lowest, self._newline = (
            self._encode(text) for text in ("\t", self.level_words[0], "\n")
        )
        self._empty_head = self._encode_head("")  # its first tokens are the shared ones of all prompts
        self._neutral: SingleFlight[Levels] = SingleFlight(NEUTRAL_PROMPTS_KEPT)

    def build_prompt(
        self, explanation: str | None, token_ids: Sequence[int], vocabulary: Tokens
    ) -> tuple[list[int], list[int]]:
        """The prompt's ids, and the row of each of the tokens: its tab, after which its level is read.

        With None for the explanation it is the neutral prompt.
        """
        ids = list(self._head(None if explanation is None else displayed(explanation)))
        rows = []
        for text in texts_in_context([vocabulary[int(token_id)] for token_id in token_ids]):
            ids += self._token_text(displayed(text))
            ids += self._tab
            rows.append(len(ids) - 1)
            ids += self._lowest
            ids += self._newline
        return ids, rows

    def _encode_head(self, explanation: str | None) -> list[int]:
        """The part of a prompt before its records: the chat up to where the model would answer."""
        system, own, neutral = self._turns(explanation or "")
        worked = [turn for neuron in self.prompt.examples for turn in self._worked_turns(neuron)]
        tokenizer = self.engine.tokenizer
        ids = chat_token_ids(tokenizer, [system, *worked, neutral if explanation is None else own])
        return ids if tokenizer.chat_template else [*ids, *self._encode("\n\n")]

    def _worked_turns(self, neuron: WorkedExample) -> tuple[Message, Message]:
        """A worked neuron's explanation and its lines, each with the lowest or the highest level word."""
        lowest, *_, highest = self.level_words
        lines = level_lines(
            (text, highest if level > LEVEL_OF_YES else lowest) for text, level in neuron.records[0]
        )
        return self._turns(neuron.explanation)[1], Message("assistant", lines)

    def _turns(self, explanation: str) -> list[Message]:
        """The prompt file's turns: the task, the explanation, and the neutral explanation."""
        lowest, *_, highest = self.level_words
        return self.prompt.fill({"no": lowest, "yes": highest, "explanation": explanation})

    def simulate(self, explanation: str, records: Records, vocabulary: Tokens) -> Predictions:
        predicted, n_tokens = [], 0
        for record in records:
            pieces = []
            for token_ids in cut_record(record):
                piece, n_sent = self._predict(explanation, token_ids, vocabulary)
                pieces.append(piece)
                n_tokens += n_sent
            values, mass = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
            predicted.append(PredictedTrial(values, mass))
        return Predictions(predicted, n_tokens)

    def plan(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> list[Request]:
        requests = []
        for trial in trials:
            for token_ids in cut_record(trial.token_ids):
                requests.append(Request(len(self.build_prompt(explanation, token_ids, tokens)[0])))
                neutral_ids = self.build_prompt(None, token_ids, tokens)[0]
                requests.append(Request(len(neutral_ids), key=tuple(neutral_ids)))
        return requests

    def example(self) -> LogprobRequest:
        word = {0: VocabularyEntry(0, " word", False)}
        ids, rows = self.build_prompt(None, [0] * TOKENS_PER_PROMPT, word)
        return LogprobRequest(ids, rows, self.level_token_ids)

    def _predict(
        self, explanation: str, token_ids: Sequence[int], vocabulary: Tokens
    ) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], int]:
        """Predicted levels and masses of the tokens of one prompt, and how many prompt tokens were sent."""
        ids, rows = self.build_prompt(explanation, token_ids, vocabulary)
        levels, mass = self._read_levels(ids, rows)
        neutral_ids, neutral_rows = self.build_prompt(None, token_ids, vocabulary)
        key = hashlib.blake2b(np.asarray(neutral_ids, np.int64).tobytes(), digest_size=16).digest()
        read_neutral = partial(self._read_levels, neutral_ids, neutral_rows)
        (neutral, _), is_new = self._neutral.get(key, read_neutral)
        mass = np.where(np.isnan(neutral), np.float32(0.0), mass)  # no prediction without both levels
        return (raised_level(levels, neutral).astype(np.float32), mass), len(ids) + is_new * len(neutral_ids)

    def _read_levels(self, ids: list[int], rows: list[int]) -> Levels:
        """Expected levels and masses at the rows; NaN and 0 where the engine gave no level a probability."""
        pairs = enumerate(zip(self._empty_head, ids, strict=False))
        n_shared = next((i for i, (shared_id, own_id) in pairs if shared_id != own_id), 0)
        n_shared = min(n_shared, rows[0])
        probabilities = self.engine.level_distributions(ids, rows, self.level_token_ids, n_shared)
        shape = len(rows), len(self.level_token_ids)
        if probabilities.shape != shape or not np.isfinite(probabilities).all():
            reason = f"the engine answered distributions of shape {probabilities.shape}"
            raise LlmReplyError(Status.LLM_ERROR, reason)
        levels, mass = np.full(len(rows), np.nan), np.zeros(len(rows), np.float32)
        has_mass = probabilities.sum(axis=1) > 0
        levels[has_mass], mass[has_mass] = expected_level(probabilities[has_mass])
        return levels / (len(self.level_words) - 1), mass

    def _encode(self, text: str) -> list[int]:
        return list(self.engine.tokenizer(text, add_special_tokens=False).input_ids)


def load_versioned_prompt() -> Prompt:
    """The prompt file and how many tokens share a prompt, so that scores of other numbers are not mixed."""
    prompt = load_prompt("simulate/digits")
    return replace(prompt, text=f"{prompt.text}### tokens in a prompt\n{TOKENS_PER_PROMPT}\n")


def cut_record(record: Sequence[int]) -> list[Sequence[int]]:
    """The record's parts that have a prompt each."""
    return [record[first : first + TOKENS_PER_PROMPT] for first in range(0, len(record), TOKENS_PER_PROMPT)]


def find_level_words(tokenizer: Any) -> tuple[tuple[str, ...], list[list[int]]]:
    """The first of LEVEL_WORDS that are single tokens, and each word's ids, with and without a space before.

    Raises NeuroexplainError if the tokenizer has no single tokens for either.
    """
    for words in LEVEL_WORDS:
        encoded = [
            [tokenizer(text, add_special_tokens=False).input_ids for text in (word, f" {word}")]
            for word in words
        ]
        spellings = [sorted({ids[0] for ids in spelled if len(ids) == 1}) for spelled in encoded]
        if all(spellings):
            return words, spellings
    raise NeuroexplainError(
        "The tokenizer has single tokens neither for no and yes nor for the digits: use --simulator lexical."
    )


class Digits(Simulator):
    """A capable model judges each token in its context."""

    name = "digits"

    def open(self, engine: Any, run: Run) -> DigitsSimulator:
        return DigitsSimulator(engine)


SCORER = Digits()
