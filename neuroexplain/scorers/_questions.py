"""Questions with yes or no for an answer: does a word belong to an explanation? Is a text one of its texts?

The question is one generated token with chosen ids, so every engine answers it, nothing is parsed, and what
stands before the word or the text is computed once. One answer serves every record of every unit with that
explanation and word or text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import LlmReplyError, NeuroexplainError
from neuroexplain.evidence import Status
from neuroexplain.llm.distributions import NextTokenRequest
from neuroexplain.llm.engine import Engine, Message, chat_text, head_token_ids
from neuroexplain.llm.prompts import Prompt, displayed
from neuroexplain.runtime.single_flight import SingleFlight
from neuroexplain.scorers.base import Request

ANSWERS = ("no", "yes")
EXAMPLE_WORDS = ("house", "tree", "lamp")
TEXT_PLACE = (
    "\ufdd0"  # stands for what is asked about in a chat: it is no character, so nothing else holds it
)
ENDINGS_KEPT = 100_000  # token ids of words and texts, some 200 bytes each
ANSWERS_KEPT = 1_000_000  # some 200 bytes each: the words of many records, and some thousand explanations
LEAST = 1e-6  # added to probabilities, so that an answer that a server leaves out does not decide alone

NOT_FINITE = "the engine answered probabilities that are not finite"

Question = tuple[str, str]  # an explanation, and a word or a text


class QuestionPrompts:
    """The token ids of questions: what stands before the text is encoded once for each explanation."""

    def __init__(self, tokenizer: Any, fill: Callable[[str, str], Sequence[Message]]) -> None:
        """`fill` gives the turns of a question from an explanation and a text."""
        self._tokenizer, self._fill = tokenizer, fill
        self._parts = lru_cache(maxsize=256)(self._encode_around)
        self._endings: SingleFlight[list[int]] = SingleFlight(ENDINGS_KEPT)  # by text and what follows it

    def build(self, explanation: str, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of the question about each text, up to its answer."""
        before, after = self._parts(explanation)
        endings, _ = self._endings.get_many([(text, after) for text in texts], self._encode_endings)
        return [[*before, *ending] for ending in endings]

    def n_shared(self, explanation: str) -> int:
        """How many tokens all questions about an explanation begin with."""
        return len(self._parts(explanation)[0])

    def _encode_around(self, explanation: str) -> tuple[tuple[int, ...], str]:
        """The token ids of the chat before the text, and what follows it."""
        turns = self._fill(displayed(explanation), TEXT_PLACE)
        before, after = chat_text(self._tokenizer, turns).split(TEXT_PLACE)
        return tuple(head_token_ids(self._tokenizer, before.rstrip(" "))), after

    def _encode_endings(self, endings: Sequence[tuple[str, str]]) -> list[list[int]]:
        """The token ids of each text, with the space before it, and of the chat's end; in one call."""
        texts = [f" {text}{after}" for text, after in endings]
        return list(self._tokenizer(texts, add_special_tokens=False).input_ids)


class WordQuestions:
    """The log odds of yes over no for words, over those for other explanations.

    The others, lines of the prompt file's last turn, are different categories: what the model answers for a
    word when it is asked for something else. They are asked for once, for all units.
    """

    def __init__(self, engine: Engine, prompt: Prompt) -> None:
        self.engine, self._prompt = engine, prompt
        self._others = prompt.fill({"explanation": "", "word": ""})[-1].content.splitlines()
        self._answer_ids = find_answer_ids(engine.tokenizer)
        self._prompts = QuestionPrompts(engine.tokenizer, self._fill)
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
            Request(len(prompt), key=("question", text, word))
            for text in (explanation, *self._others)
            for word, prompt in zip(words, self.build_prompts(text, words), strict=True)
        ]

    def example(self) -> NextTokenRequest:
        """A request of usual form, to choose a server's log-probability method by."""
        prompts = self.build_prompts(self._others[0], ("house", "went", "the"))
        return NextTokenRequest(prompts, self._answer_ids)

    def build_prompts(self, explanation: str, words: Sequence[str]) -> list[list[int]]:
        """The token ids of the question about each word, up to its answer."""
        return self._prompts.build(explanation, [displayed(word) for word in words])

    def _log_odds(
        self, known: SingleFlight[float], explanation: str, words: Sequence[str]
    ) -> tuple[NDArray[np.float64], int]:
        """The log odds of yes for each word, [n], and the prompt tokens sent."""
        n_sent = 0

        def ask(questions: list[Question]) -> list[float]:
            nonlocal n_sent
            prompts = self.build_prompts(explanation, [word for _, word in questions])
            n_sent += sum(map(len, prompts))
            n_shared = self._prompts.n_shared(explanation)
            probabilities = self.engine.next_distributions(prompts, self._answer_ids, n_shared)
            return list(log_odds(probabilities))

        odds, _ = known.get_many([(explanation, word) for word in words], ask)
        return np.array(odds), n_sent

    def _fill(self, explanation: str, word: str) -> list[Message]:
        """The turns of a question; the prompt file's last turn lists the other explanations."""
        return self._prompt.fill({"explanation": explanation, "word": word})[:-1]


class TextQuestions:
    """The probabilities of answers to questions about texts: no and yes, unless others are given."""

    def __init__(self, engine: Engine, prompt: Prompt, answer_ids: list[list[int]] | None = None) -> None:
        """answer_ids: the ids of each answer's spellings."""
        self.engine = engine
        self._answer_ids = answer_ids or find_answer_ids(engine.tokenizer)
        self._prompts = QuestionPrompts(
            engine.tokenizer,
            lambda explanation, text: prompt.fill({"explanation": explanation, "text": text}),
        )
        self._answers: SingleFlight[list[float]] = SingleFlight(ANSWERS_KEPT)

    def probabilities(self, explanation: str, texts: Sequence[str]) -> tuple[NDArray[np.float64], int]:
        """The probability of each answer for each text, [n, n_answers], and prompt tokens sent.

        Texts are as `displayed` shows them. All are 0 where the engine gave none a probability.
        """
        n_sent = 0

        def ask(questions: list[Question]) -> list[list[float]]:
            nonlocal n_sent
            prompts = self.build_prompts(explanation, [text for _, text in questions])
            n_sent += sum(map(len, prompts))
            n_shared = self._prompts.n_shared(explanation)
            answers = self.engine.next_distributions(prompts, self._answer_ids, n_shared)
            if not np.isfinite(answers).all():
                raise LlmReplyError(Status.LLM_ERROR, NOT_FINITE)
            rows: list[list[float]] = answers.tolist()
            return rows

        answers, _ = self._answers.get_many([(explanation, text) for text in texts], ask)
        return np.array(answers, np.float64).reshape(len(texts), len(self._answer_ids)), n_sent

    def plan(self, explanation: str, texts: Sequence[str]) -> list[Request]:
        """The requests of `probabilities`. A text is asked for once with each explanation."""
        return [
            Request(len(prompt), key=("question", explanation, text))
            for text, prompt in zip(texts, self.build_prompts(explanation, texts), strict=True)
        ]

    def example(self) -> NextTokenRequest:
        """A request of usual form, to choose a server's log-probability method by."""
        texts = [f"the {word} in the middle of a field near the old mill" for word in EXAMPLE_WORDS]
        return NextTokenRequest(self.build_prompts("plants", texts), self._answer_ids)

    def build_prompts(self, explanation: str, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of the question about each text, up to its answer."""
        return self._prompts.build(explanation, texts)


def log_odds(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """The log odds of yes over no of probabilities [n, 2], no first; NaN where both are 0."""
    if not np.isfinite(probabilities).all():
        raise LlmReplyError(Status.LLM_ERROR, NOT_FINITE)
    odds = np.log(probabilities[:, 1] + LEAST) - np.log(probabilities[:, 0] + LEAST)
    return np.where(probabilities.sum(axis=1) > 0, odds, np.nan)


def find_number_ids(tokenizer: Any, n: int) -> list[list[int]]:
    """The ids of the numbers 1..n, with and without a space before; only single tokens.

    Raises NeuroexplainError if a number has none.
    """
    ids = []
    for number in range(1, n + 1):
        spelled = [tokenizer(f"{space}{number}", add_special_tokens=False).input_ids for space in ("", " ")]
        ids.append(sorted({own[0] for own in spelled if len(own) == 1}))
    if not all(ids) or len({token_id for own in ids for token_id in own}) < sum(map(len, ids)):
        raise NeuroexplainError(
            f"The tokenizer has no single tokens for the numbers 1 to {n}, which --scorer intruder reads."
        )
    return ids


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
        raise NeuroexplainError("The tokenizer cannot tell yes from no: use --scorer lexical.")
    return ids
