"""The protocol of an engine: an LLM and what runs it. Explainers and scorers use nothing else of it."""

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
    """Generated text with its token counts and the time from request to answer."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class Usage:
    """Requests and tokens of an engine since it was opened. Safe to add to from many threads."""

    def __init__(self) -> None:
        self.requests = self.prompt_tokens = self.completion_tokens = 0
        self.cached_tokens: int | None = 0  # prompt tokens not computed again; None once an answer lacks it
        self._lock = threading.Lock()

    def add(self, prompt_tokens: int, cached_tokens: int | None, completion_tokens: int | None) -> None:
        """Count one request."""
        with self._lock:
            self.requests += 1
            self.prompt_tokens += prompt_tokens
            self.completion_tokens += completion_tokens or 0
            if self.cached_tokens is not None:
                self.cached_tokens = None if cached_tokens is None else self.cached_tokens + cached_tokens

    def snapshot(self) -> Usage:
        """The counts as they are now."""
        usage = Usage()
        with self._lock:
            usage.requests, usage.prompt_tokens = self.requests, self.prompt_tokens
            usage.completion_tokens, usage.cached_tokens = self.completion_tokens, self.cached_tokens
        return usage

    def since(self, before: Usage) -> Usage:
        """What was counted since a snapshot."""
        usage = self.snapshot()
        usage.requests -= before.requests
        usage.prompt_tokens -= before.prompt_tokens
        usage.completion_tokens -= before.completion_tokens
        if usage.cached_tokens is not None:
            usage.cached_tokens -= before.cached_tokens or 0
        return usage


class Engine(Protocol):
    """An LLM. A failed request raises LlmReplyError, and a lost engine EngineLost."""

    engine: str  # local, server
    model: str
    revision: str | None
    usage: Usage

    @property
    def in_flight(self) -> int:
        """Most requests at a time; above 1 the methods are called from several threads."""
        ...

    @property
    def n_servers(self) -> tuple[int, int] | None:
        """(servers that answer, servers that are listed); None without a list of servers."""
        ...

    @property
    def version(self) -> str: ...

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, as Transformers loads it. Raises EngineError if it is not found."""
        ...

    def generate(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float, seed: int
    ) -> Reply:
        """Answer a chat. Temperature 0 takes the likeliest token each time."""
        ...

    def level_distributions(
        self,
        token_ids: Sequence[int],
        rows: Sequence[int],
        level_token_ids: Sequence[Sequence[int]],
        shared: int = 0,
    ) -> NDArray[np.float64]:
        """The probability of each level after each row, [rows, n_levels]; a level's spellings are added.

        A token that the engine leaves out counts 0, so a row's sum is the known part of its mass. The first
        `shared` tokens begin many prompts and hold no row, so an engine may keep what it computed for them.
        """
        ...

    def next_distributions(
        self,
        prompts: Sequence[Sequence[int]],
        level_token_ids: Sequence[Sequence[int]],
        shared: int = 0,
        *,
        exact: bool = False,
    ) -> NDArray[np.float64]:
        """The probability of each level as the token that follows each prompt, [n_prompts, n_levels].

        As level_distributions, but for many prompts with one row each, the last. All begin with the same
        `shared` tokens, and each has more. exact: raise EngineError if the engine leaves out tokens that are
        not among the most likely ones. A server takes at most 128 spellings.
        """
        ...

    def close(self) -> None:
        """Release the engine's resources. Waiting requests fail at once."""
        ...


class VocabularyEngine(Engine, Protocol):
    """An engine that gives the distribution over its whole vocabulary."""

    tokenizer_sha256: str

    def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float64]:
        """Log-probability of every token of the vocabulary after the given tokens, [vocab]."""
        ...


def chat_token_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The token ids of a chat, up to where the model's answer begins."""
    return head_token_ids(tokenizer, chat_text(tokenizer, messages))


def head_token_ids(tokenizer: Any, text: str) -> list[int]:
    """The token ids of the beginning of a chat's text. The model's first token, if any, is part of it."""
    return list(tokenizer(text, add_special_tokens=not tokenizer.chat_template).input_ids)


def chat_text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The text of a chat, up to where the model's answer begins.

    A tokenizer without a chat template gets the turns as plain text. If the template refuses a system turn
    (Gemma 2's does), that turn's text begins the next turn.
    """
    if not tokenizer.chat_template:
        return "\n\n".join(message.content for message in messages)
    # Reasoning would get into explanations, so it is switched off; templates without the switch ignore it.
    apply = partial(
        tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text: str = apply(turns)
    except TemplateError:
        if len(turns) < 2 or turns[0]["role"] != "system":
            raise
        first = {**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
        text = apply([first, *turns[2:]])
    return text


def opened_thought(tokenizer: Any, prompt_ids: Sequence[int]) -> str:
    """`<think>` if the chat template ends the prompt with it, so that the answer lacks it; else empty."""
    end: str = tokenizer.decode(list(prompt_ids)[-16:])
    return "<think>" if end.rstrip().endswith("<think>") else ""
