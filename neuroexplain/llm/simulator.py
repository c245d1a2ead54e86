"""An explanation and a record's tokens -> predicted activations. SIMULATORS lists all there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from neuroexplain.llm.engine import VocabularyEngine
from neuroexplain.types import VocabularyEntry

LEXICAL_PROMPT = "Here is a list of {}:"

Predict = Callable[[str, Sequence[int], Mapping[int, VocabularyEntry]], NDArray[np.float32]]


class LexicalSimulator:
    """The likelihood ratio of each token after the explanation: `log p(t | a list of it) - log p(t | a list of words)`.

    One short forward pass gives every token of the vocabulary its value. It asks for no instruction following, so a base
    model of 135M parameters will do; it cannot see context.
    """

    name = "lexical"

    def __init__(self, engine: VocabularyEngine, subject_tokenizer_sha256: str) -> None:
        self.engine = engine
        self._shared = engine.tokenizer_sha256 == subject_tokenizer_sha256
        self._baseline = self._logprobs("words")
        self._values = lru_cache(maxsize=256)(self._values_of)
        self._special = set(engine.tokenizer.all_special_ids)

    def simulate(
        self, explanation: str, token_ids: Sequence[int], vocabulary: Mapping[int, VocabularyEntry]
    ) -> NDArray[np.float32]:
        """A value for each token: white space, special tokens and parts of characters get 0."""
        values = self._values(explanation)
        found = np.zeros(len(token_ids), np.float32)
        for place, token_id in enumerate(token_ids):
            mapped = self._map(vocabulary[int(token_id)])
            if mapped is not None:
                found[place] = values[mapped]
        return found

    def prompt_tokens(self, explanation: str) -> int:
        return len(self._ids(explanation))

    def _map(self, token: VocabularyEntry) -> int | None:
        if token.special or not token.text.strip() or "\ufffd" in token.text:
            return None
        if self._shared:
            return token.token_id
        ids = self.engine.tokenizer(token.text, add_special_tokens=False).input_ids
        return ids[0] if ids and ids[0] not in self._special else None

    def _values_of(self, explanation: str) -> NDArray[np.float32]:
        return (self._logprobs(explanation) - self._baseline).astype(np.float32)

    def _logprobs(self, explanation: str) -> NDArray[np.float64]:
        return self.engine.next_token_logprobs(self._ids(explanation))

    def _ids(self, explanation: str) -> list[int]:
        return list(self.engine.tokenizer(LEXICAL_PROMPT.format(explanation)).input_ids)
