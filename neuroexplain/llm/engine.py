"""What an engine offers. Whoever adds one writes these methods; explainers and simulators know nothing else of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from jinja2 import TemplateError
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


class Usage:
    """What an engine was sent and gave since it was opened. Safe to add to from many threads."""

    def __init__(self) -> None:
        self.requests = self.prompt_tokens = self.completion_tokens = 0
        self.cached_tokens: int | None = (
            0  # prompt tokens that cost nothing; None where an answer did not say
        )
        self._lock = threading.Lock()

    def add(self, prompt_tokens: int, cached_tokens: int | None, completion_tokens: int | None) -> None:
        """Count one request."""
        with self._lock:
            self.requests += 1
            self.prompt_tokens += prompt_tokens
            self.completion_tokens += completion_tokens or 0
            known = self.cached_tokens is not None and cached_tokens is not None
            self.cached_tokens = self.cached_tokens + cached_tokens if known else None  # type: ignore[operator]


class Engine(Protocol):
    """An LLM. A request that fails raises LlmReplyError, never a value; an engine that is gone raises EngineLost."""

    engine: str  # local, server
    model: str
    revision: str | None
    in_flight: int  # requests that may wait at once; above 1 the methods are called from several threads
    used: Usage

    @property
    def version(self) -> str: ...

    @property
    def tokenizer(self) -> Any:
        """The model's own, as Transformers loads it. Raises EngineError where it cannot be had."""
        ...

    def generate(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float, seed: int
    ) -> Reply:
        """Answer a chat; models without a chat template read the turns as plain text."""
        ...

    def level_distributions(
        self,
        token_ids: Sequence[int],
        rows: Sequence[int],
        level_token_ids: Sequence[Sequence[int]],
        shared: int = 0,
    ) -> NDArray[np.float64]:
        """The probability of each level at the token after each row, [rows, n_levels]: spellings of one level are summed.

        A cut distribution gives 0 to what it leaves out, so the row's sum is what is known of its mass. The first `shared`
        tokens begin many prompts and hold no row: an engine may keep what it computed for them.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds; requests that wait fail at once."""
        ...


class VocabularyEngine(Engine, Protocol):
    """An engine that can give the whole next-token distribution, which `lexical` needs."""

    tokenizer_sha256: str

    def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float64]:
        """log p of every token of the vocabulary after the given ones, [vocab]."""
        ...


def chat_token_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """A chat as the ids that the model reads, ready for its answer; without a chat template the turns as plain text.

    Where the template takes no system turn (Gemma 2), its text begins the turn after it.
    """
    if tokenizer.chat_template:
        # Reasoning would leak into explanations; templates without that switch ignore it.
        apply = partial(
            tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text = apply(turns)
        except TemplateError:
            if len(turns) < 2 or turns[0]["role"] != "system":
                raise
            first = {**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
            text = apply([first, *turns[2:]])
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    return list(tokenizer("\n\n".join(m.content for m in messages)).input_ids)


def opened_thought(tokenizer: Any, prompt_ids: Sequence[int]) -> str:
    """`<think>` where a chat template opened the thought in the prompt, so that the answer shows that it begins inside it."""
    end: str = tokenizer.decode(list(prompt_ids)[-16:])
    return "<think>" if end.rstrip().endswith("<think>") else ""
