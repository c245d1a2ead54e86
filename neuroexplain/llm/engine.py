"""What an engine offers. Whoever adds one writes these methods; explainers and simulators know nothing else of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True, slots=True)
class Reply:
    """Generated text and what it cost."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class Engine(Protocol):
    """An LLM that answers one request at a time. A request that fails raises LlmReplyError, never a value."""

    engine: str  # local, server
    version: str
    model: str
    revision: str | None
    tokenizer: Any  # of the model, as Transformers loads it
    tokenizer_sha256: str

    def generate(self, messages: Sequence[Message], *, max_tokens: int, temperature: float, seed: int) -> Reply:
        """Answer a chat; models without a chat template read the turns as plain text."""
        ...

    def level_distributions(
        self, token_ids: Sequence[int], rows: Sequence[int], level_token_ids: Sequence[Sequence[int]]
    ) -> NDArray[np.float64]:
        """The probability of each level at the token after each row, [rows, n_levels]: spellings of one level are summed."""
        ...


class VocabularyEngine(Protocol):
    """An engine that can give the whole next-token distribution, which `lexical` needs."""

    engine: str
    version: str
    model: str
    revision: str | None
    tokenizer: Any
    tokenizer_sha256: str

    def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float64]:
        """log p of every token of the vocabulary after the given ones, [vocab]."""
        ...
