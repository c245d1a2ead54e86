"""Questions with yes or no for an answer: does a word belong to an explanation?

The question is one generated token with chosen ids, so every engine answers it, nothing is parsed, and what
stands before the word is computed once. One answer serves every record of every unit with that explanation
and word.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import LlmReplyError, NeuroexplainError
from neuroexplain.evidence import Status
from neuroexplain.llm.distributions import NextTokenRequest
from neuroexplain.llm.engine import Engine, chat_text, head_token_ids
from neuroexplain.llm.prompts import Prompt, displayed
from neuroexplain.runtime.single_flight import SingleFlight
from neuroexplain.scorers.base import Request

ANSWERS = ("no", "yes")
WORD_PLACE = "\ufdd0"  # stands for the word in a chat's text: it is no character, so no explanation holds it
ANSWERS_KEPT = 1_000_000  # some 200 bytes each: the words of many records, and some thousand explanations
LEAST = 1e-6  # added to probabilities, so that an answer that a server leaves out does not decide alone

Question = tuple[str, str]  # an explanation and a word


class WordQuestions:
    """The log odds of yes over no for words, over those for other explanations.

    The others, lines of the prompt file's last turn, are different categories: what the model answers for a
    word when it is asked for something else. They are asked for once, for all units.
    """

    def __init__(self, engine: Engine, prompt: Prompt) -> None:
        self.engine, self._prompt = engine, prompt
        self._others = prompt.fill({"explanation": "", "word": ""})[-1].content.splitlines()
        self._answer_ids = find_answer_ids(engine.tokenizer)
        self._parts = lru_cache(maxsize=256)(self._encode_around)
        self._ending = lru_cache(maxsize=65_536)(self._encode_ending)
        self._answers: SingleFlight[float] = SingleFlight(ANSWERS_KEPT)
        self._other_answers: SingleFlight[float] = SingleFlight(ANSWERS_KEPT)

    def raised_odds(self, explanation: str, words: Sequence[str]) -> tuple[NDArray[np.float64], int]:
        """How much the explanation raises the log odds of yes for each word, [n], and prompt tokens sent.

        NaN where the engine gave no answer a probability.
        """
        own, n_sent = self._log_odds(self._answers, explanation, words)
        others = np.zeros(len(words))
        for text in self._others:
            odds, n_more = self._log_odds(self._other_answers, text, words)
            others += odds / len(self._others)
            n_sent += n_more
        return own - others, n_sent

    def plan(self, explanation: str, words: Sequence[str]) -> list[Request]:
        """The requests of `raised_odds`. A word is asked for once with each explanation."""
        return [
            Request(len(self.build_prompt(text, word)), key=("question", text, word))
            for text in (explanation, *self._others)
            for word in words
        ]

    def example(self) -> NextTokenRequest:
        """A request of usual form, to choose a server's log-probability method by."""
        prompts = [self.build_prompt(self._others[0], word) for word in ("house", "went", "the")]
        return NextTokenRequest(prompts, self._answer_ids)

    def build_prompt(self, explanation: str, word: str) -> list[int]:
        """The token ids of a question, up to its answer."""
        before, after = self._parts(explanation)
        return [*before, *self._ending(word, after)]

    def _log_odds(
        self, known: SingleFlight[float], explanation: str, words: Sequence[str]
    ) -> tuple[NDArray[np.float64], int]:
        """The log odds of yes for each word, [n], and the prompt tokens sent."""
        n_sent = 0

        def ask(questions: list[Question]) -> list[float]:
            nonlocal n_sent
            prompts = [self.build_prompt(explanation, word) for _, word in questions]
            n_sent += sum(map(len, prompts))
            n_shared = len(self._parts(explanation)[0])
            probabilities = self.engine.next_distributions(prompts, self._answer_ids, n_shared)
            return list(log_odds(probabilities))

        odds, _ = known.get_many([(explanation, word) for word in words], ask)
        return np.array(odds), n_sent

    def _encode_around(self, explanation: str) -> tuple[tuple[int, ...], str]:
        """The token ids of the chat before the word, and the text after it."""
        values = {"explanation": displayed(explanation), "word": WORD_PLACE}
        *turns, _ = self._prompt.fill(values)
        before, after = chat_text(self.engine.tokenizer, turns).split(WORD_PLACE)
        return tuple(head_token_ids(self.engine.tokenizer, before.rstrip(" "))), after

    def _encode_ending(self, word: str, after: str) -> tuple[int, ...]:
        """The token ids of the word, with the space before it, and of the chat's end."""
        ids = self.engine.tokenizer(f" {displayed(word)}{after}", add_special_tokens=False).input_ids
        return tuple(ids)


def log_odds(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """The log odds of yes over no of probabilities [n, 2], no first; NaN where both are 0."""
    if not np.isfinite(probabilities).all():
        raise LlmReplyError(Status.LLM_ERROR, "the engine answered probabilities that are not finite")
    odds = np.log(probabilities[:, 1] + LEAST) - np.log(probabilities[:, 0] + LEAST)
    return np.where(probabilities.sum(axis=1) > 0, odds, np.nan)


def find_answer_ids(tokenizer: Any) -> list[list[int]]:
    """The ids of each answer's spellings that are single tokens: with a capital, and with a space before.

    A tokenizer that has none of them gets the first tokens of the answers. Raises NeuroexplainError if these
    are the same.
    """

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    cased = [(answer, answer.capitalize()) for answer in ANSWERS]
    encoded = [[encode(space + text) for space in ("", " ") for text in texts] for texts in cased]
    ids = [sorted({spelled[0] for spelled in of_answer if len(spelled) == 1}) for of_answer in encoded]
    if not all(ids):
        ids = [sorted({encode(text)[0] for text in texts}) for texts in cased]
    if set(ids[0]) & set(ids[1]):
        raise NeuroexplainError("The tokenizer cannot tell yes from no: use --simulator lexical.")
    return ids
