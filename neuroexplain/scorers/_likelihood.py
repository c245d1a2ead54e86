"""How much likelier a word is after an explanation than after others, by any engine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import VocabularyEntry
from neuroexplain.llm.engine import Engine, VocabularyEngine
from neuroexplain.llm.prompts import Prompt
from neuroexplain.runtime.single_flight import SingleFlight
from neuroexplain.scorers.base import Request
from neuroexplain.subject.tokenizer import tokenizer_sha256

PART_OF_CHARACTER = re.compile("[\ufffd\ud800-\udfff]")
TINY = 1e-12  # added to probabilities: two words that are both less likely than it have the ratio 1
IDS_PER_REQUEST = 128  # chosen ids that a server takes in one request
# Probabilities of a token after an explanation's phrasings that are kept, some 100 bytes each: those of a
# thousand explanations.
PROBABILITIES_KEPT = 1_000_000
SPELLINGS_KEPT = 1 << 18  # of tokens, some 200 bytes each: the vocabularies of most models
EXPLANATIONS_KEPT = 100  # distributions over a whole vocabulary, 0.6 MB each for 50,000 tokens

Phrasings = NDArray[np.float64]  # [n_phrasings]: a probability after each phrasing


class LikelihoodRatios:
    """The mean over phrasings of log(p / q), of a word after an explanation.

    p is the probability that a phrasing goes on with the word, in any spelling that is one token: with or
    without a space before it, with or without a capital. q is the mean of p over other explanations, the
    lines of the prompt file's last turn. An engine in this process gives the whole vocabulary at once; a
    server is asked for the spellings of the words that are needed.
    """

    def __init__(self, engine: Engine, prompt: Prompt, subject_tokenizer_sha256: str) -> None:
        self.engine, self._prompt = engine, prompt
        self._same_tokenizer = tokenizer_sha256(engine.tokenizer) == subject_tokenizer_sha256
        self._special_ids = set(engine.tokenizer.all_special_ids)
        self._others = prompt.fill({"explanation": ""})[-1].content.splitlines()
        self._spellings: SingleFlight[list[int]] = SingleFlight(SPELLINGS_KEPT)  # by token
        self._known: SingleFlight[Phrasings] = SingleFlight(PROBABILITIES_KEPT)
        self._known_others: SingleFlight[Phrasings] = SingleFlight(PROBABILITIES_KEPT)
        self._of_vocabulary = lru_cache(maxsize=EXPLANATIONS_KEPT)(self._read_vocabulary)
        self._prompts = lru_cache(maxsize=EXPLANATIONS_KEPT)(self._encode_prompts)

    def ratios(self, explanation: str, tokens: Sequence[VocabularyEntry]) -> tuple[NDArray[np.float64], int]:
        """The mean log ratio of each token's word, [n], and how many prompt tokens were sent for it.

        -inf for white space, special tokens and parts of characters.
        """
        spelled, owners, has_word = self._all_spellings(tokens)
        if not spelled.size:
            return np.full(len(tokens), -np.inf), 0
        ids, places = np.unique(spelled, return_inverse=True)
        own, n_sent = self._probabilities(self._known, [explanation], ids.tolist())
        others, n_more = self._probabilities(self._known_others, self._others, ids.tolist())
        p, q = (sums_of_owners(values[places], owners, len(tokens)) for values in (own, others))
        ratios = np.where(has_word, mean_log_ratios(p, q), -np.inf)
        return ratios, n_sent + n_more

    def of_vocabulary(
        self, explanations: Sequence[str], tokens: Sequence[VocabularyEntry]
    ) -> Iterator[NDArray[np.float64]]:
        """For each explanation what `ratios` gives, [n], of an engine that gives whole vocabularies.

        The spellings of all tokens are looked up once.
        """
        ids, owners, has_word = self._all_spellings(tokens)

        def summed(texts: Sequence[str]) -> NDArray[np.float64]:
            rows = np.mean([self._of_vocabulary(text) for text in texts], axis=0)
            return sums_of_owners(rows[:, ids].T, owners, len(tokens))

        others = summed(self._others)
        for explanation in explanations:
            yield np.where(has_word, mean_log_ratios(summed([explanation]), others), -np.inf)

    def plan(self, explanation: str, tokens: Sequence[VocabularyEntry]) -> list[Request]:
        """The requests of `ratios`: none of an engine that gives whole vocabularies.

        What is asked of the other explanations is counted once a command, as if all units had the same words.
        """
        if gives_vocabulary(self.engine):
            return []
        n_ids = len(np.unique(self._all_spellings(tokens)[0]))
        return [
            Request(len(ids), key=("likelihood", text, n, first))
            for text in (explanation, *self._others)
            for n, ids in enumerate(self._prompts(text))
            for first in range(0, n_ids, IDS_PER_REQUEST)
        ]

    def _probabilities(
        self, known: SingleFlight[Phrasings], texts: Sequence[str], ids: Sequence[int]
    ) -> tuple[NDArray[np.float64], int]:
        """The probability of each id after each phrasing, [n_ids, n_phrasings], and prompt tokens sent.

        It is the mean over the texts. known: what was asked for these texts before, by text and id.
        """
        if gives_vocabulary(self.engine):
            return np.mean([self._of_vocabulary(text)[:, ids] for text in texts], axis=0).T, 0
        prompts = [prompt for text in texts for prompt in self._prompts(text)]
        n_sent = 0

        def ask(keys: list[tuple[str, int]]) -> list[Phrasings]:
            nonlocal n_sent
            rows: list[Phrasings] = []
            for first in range(0, len(keys), IDS_PER_REQUEST):
                chosen = [[token_id] for _, token_id in keys[first : first + IDS_PER_REQUEST]]
                probabilities = self.engine.next_distributions(prompts, chosen, exact=True)
                n_sent += sum(map(len, prompts))
                rows += list(probabilities.reshape(len(texts), -1, len(chosen)).mean(axis=0).T)
            return rows

        rows, _ = known.get_many([(texts[0], token_id) for token_id in ids], ask)
        return np.array(rows).reshape(len(ids), -1), n_sent

    def _read_vocabulary(self, explanation: str) -> NDArray[np.float32]:
        """The probability of every token after each phrasing, [n_phrasings, vocab]."""
        engine: VocabularyEngine = self.engine  # type: ignore[assignment]
        logprobs = [engine.next_token_logprobs(ids) for ids in self._prompts(explanation)]
        probabilities: NDArray[np.float32] = np.exp(logprobs).astype(np.float32)
        return probabilities

    def _encode_prompts(self, explanation: str) -> list[list[int]]:
        *phrasings, _ = self._prompt.fill({"explanation": explanation})
        return [list(self.engine.tokenizer(phrasing.content).input_ids) for phrasing in phrasings]

    def _all_spellings(
        self, tokens: Sequence[VocabularyEntry]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """The ids of all spellings, the index of the token of each, and which tokens have any."""
        spellings, _ = self._spellings.get_many(tokens, self._spell)
        n_spellings = [len(spelled) for spelled in spellings]
        ids = np.array([token_id for spelled in spellings for token_id in spelled], np.int64)
        return ids, np.repeat(np.arange(len(tokens)), n_spellings), np.array(n_spellings, np.bool_)

    def _spell(self, tokens: Sequence[VocabularyEntry]) -> list[list[int]]:
        """The ids of each token: itself, and the spellings of its word that are single tokens.

        If the subject has another tokenizer, the token itself is the first token of its text. All texts are
        encoded in one call: a call for each takes most of the time of a unit with new words.
        """
        texts_of = [self._texts_of(token) for token in tokens]
        texts = list(dict.fromkeys(text for own in texts_of for text in own))
        encoded = self.engine.tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        ids_of = dict(zip(texts, encoded, strict=True))
        spelled: list[list[int]] = []
        for token, own in zip(tokens, texts_of, strict=True):
            if not own:
                spelled.append([])
                continue
            itself, *words = own
            ids = {ids_of[text][0] for text in words if len(ids_of[text]) == 1}
            ids.update([token.token_id] if self._same_tokenizer else ids_of[itself][:1])
            spelled.append(sorted(ids - self._special_ids))
        return spelled

    def _texts_of(self, token: VocabularyEntry) -> list[str]:
        """A token's text, then its word with and without a capital and a space; none if it has no word."""
        word = token.text.strip()
        if token.special or not word or PART_OF_CHARACTER.search(word):
            return []
        words = {word, word.lower(), word.capitalize()}
        return [token.text, *(text for cased in words for text in (cased, f" {cased}"))]


def sums_of_owners(values: NDArray[Any], owners: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """The sum of the values [n_values, n_phrasings] of each of n owners, [n, n_phrasings]."""
    return np.stack([np.bincount(owners, column, n) for column in values.T], axis=1)


def mean_log_ratios(p: NDArray[Any], q: NDArray[Any]) -> NDArray[np.float64]:
    """The mean over phrasings of log(p / q), [n], of probabilities p and q, [n, n_phrasings]."""
    ratios: NDArray[np.float64] = np.log((p + TINY) / (q + TINY)).mean(axis=1)
    return ratios


def gives_vocabulary(engine: Engine) -> bool:
    """Whether the engine gives the probabilities of its whole vocabulary: one in this process."""
    return hasattr(engine, "next_token_logprobs")
