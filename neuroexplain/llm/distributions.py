"""The ways in which a vLLM server gives the probabilities of chosen tokens: what each asks, and how its answer is read (pure).

Readers raise ValueError, with the reason, for an answer that does not fit the question.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from tokenize import TokenError
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

NEUTRAL: Mapping[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}  # every option that shapes a distribution, so that no default of a server or of a model's generation_config does


@dataclass(frozen=True, slots=True)
class Question:
    """The probability of each level after each row of a prompt; the spellings of one level are summed."""

    token_ids: Sequence[int]
    rows: Sequence[int]  # ascending; each before the last token
    level_token_ids: Sequence[Sequence[int]]

    @property
    def chosen(self) -> list[int]:
        return [token_id for ids in self.level_token_ids for token_id in ids]


Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class Spent(msgspec.Struct, frozen=True):
    """vLLM's `usage`, as far as it is there."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: CachedTokens | None = None

    @property
    def cached_tokens(self) -> int | None:
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details is not None else None


class CachedTokens(msgspec.Struct, frozen=True):
    """Given by servers started with --enable-prompt-tokens-details; for several prompts at once, of the last one only."""

    cached_tokens: Count | None = None


class Way(Protocol):
    """One of them."""

    name: str  # as the server calls it
    path: str
    decoder: Any  # msgspec's, of an answer with `usage: Spent | None`

    def asked(self, question: Question) -> dict[str, Any]:
        """The request's body, without the model."""
        ...

    def n_prompt_tokens(self, question: Question) -> int:
        """How many tokens the request sends."""
        ...

    def read(self, answer: Any, question: Question) -> NDArray[np.float64]:
        """[rows, n_levels], 0 for what was cut."""
        ...


class ScoredRows(msgspec.Struct, frozen=True):
    prompt_token_id_logprobs: str | None
    usage: Spent | None = None


class AtRows:
    """Chosen ids at chosen rows of one request: exact, one pass over the prompt, the prefix cache read before the first row.

    Needs vLLM 0.32 or newer with its V2 model runner (a GPU), started with `--enable-scale-out`, and --max-logprobs of at
    least the number of chosen ids. The answer's shape is that of vLLM 0.32.0's own source, for want of a server that gives it
    (entrypoints/scale_out/token_in_token_out/{protocol,serving}.py, v1/worker/gpu/sample/prompt_logprob.py):
    `prompt_token_id_logprobs` is the base64 of a `.npy` file, float32 [prompt_len - 1 - start, most ids of a row], -inf where
    a row asked for fewer, and null where cached tokens go beyond `start`.
    """

    name = "prompt_logprob_token_ids"
    path = "/inference/v1/generate"
    decoder = msgspec.json.Decoder(ScoredRows)

    def __init__(self, *, cached: bool = True) -> None:
        self._cached = cached

    def asked(self, question: Question) -> dict[str, Any]:
        start, wanted, chosen = question.rows[0], set(question.rows), question.chosen
        sampling = {
            "max_tokens": 1,
            **NEUTRAL,
            "prompt_logprob_start": start,
            "prompt_logprob_token_ids": [
                chosen if row in wanted else [] for row in range(start, len(question.token_ids) - 1)
            ],
            "skip_reading_prefix_cache": not self._cached,
        }
        return {"token_ids": list(question.token_ids), "sampling_params": sampling}

    def n_prompt_tokens(self, question: Question) -> int:
        return len(question.token_ids)

    def read(self, answer: ScoredRows, question: Question) -> NDArray[np.float64]:
        if answer.prompt_token_id_logprobs is None:
            raise ValueError("no prompt_token_id_logprobs")
        npy = base64.b64decode(answer.prompt_token_id_logprobs, validate=True)
        if not npy.startswith(np.lib.format.MAGIC_PREFIX):
            raise ValueError("prompt_token_id_logprobs holds no array")
        try:
            logprobs = np.load(io.BytesIO(npy), allow_pickle=False)
        except (ValueError, EOFError, OSError, SyntaxError, TokenError, MemoryError, OverflowError) as error:
            raise ValueError(f"prompt_token_id_logprobs holds no array: {error}") from error
        if logprobs.dtype.kind != "f":
            raise ValueError(f"prompt_token_id_logprobs: an array of {logprobs.dtype}")
        expected = len(question.token_ids) - 1 - question.rows[0], len(question.chosen)
        if logprobs.shape != expected:
            raise ValueError(f"prompt_token_id_logprobs: shape {logprobs.shape} for {expected}")
        places = np.asarray(question.rows) - question.rows[0]
        found = logprobs[places].astype(np.float64)
        if np.isneginf(found).all(axis=1).any():
            raise ValueError("prompt_token_id_logprobs: a row holds none of the tokens asked for: shifted?")
        return sum_levels(found, question.level_token_ids)


class NextLogprobs(msgspec.Struct, frozen=True):
    top_logprobs: list[dict[str, float]]


class NextChoice(msgspec.Struct, frozen=True):
    index: int
    logprobs: NextLogprobs


class NextAnswer(msgspec.Struct, frozen=True):
    choices: list[NextChoice]
    usage: Spent | None = None


class AtNext:
    """Chosen ids, at most 128, at one generated token: the prompt cut after each row, all cuts in one request.

    Exact, on any vLLM that knows `logprob_token_ids`; the prefix cache makes what a cut has in common with the one before it
    free, up to the cache's blocks.
    """

    name = "logprob_token_ids"
    path = "/v1/completions"
    decoder = msgspec.json.Decoder(NextAnswer)

    def asked(self, question: Question) -> dict[str, Any]:
        ids = list(question.token_ids)
        return {
            "prompt": [ids[: row + 1] for row in question.rows],
            "max_tokens": 1,
            **NEUTRAL,
            "logprobs": 1,
            "logprob_token_ids": question.chosen,
            "return_tokens_as_token_ids": True,
        }

    def n_prompt_tokens(self, question: Question) -> int:
        return sum(row + 1 for row in question.rows)

    def read(self, answer: NextAnswer, question: Question) -> NDArray[np.float64]:
        if [choice.index for choice in answer.choices] != list(range(len(question.rows))):
            raise ValueError(
                f"{len(answer.choices)} choices for {len(question.rows)} prompts, or in another order"
            )
        keys = [f"token_id:{token_id}" for token_id in question.chosen]
        logprobs = np.zeros((len(question.rows), len(keys)))
        for place, choice in enumerate(answer.choices):
            if len(choice.logprobs.top_logprobs) != 1:
                raise ValueError(f"top_logprobs: {len(choice.logprobs.top_logprobs)} entries for one token")
            found = choice.logprobs.top_logprobs[0]
            try:
                logprobs[place] = [found[key] for key in keys]
            except KeyError as error:
                raise ValueError(f"top_logprobs: {error} was asked for and is missing") from error
        return sum_levels(logprobs, question.level_token_ids)


class Logprob(msgspec.Struct, frozen=True, gc=False):
    logprob: float


class PromptChoice(msgspec.Struct, frozen=True):
    prompt_logprobs: list[msgspec.Raw]  # decoded only where a level is read: the whole takes 20 times as long


class PromptAnswer(msgspec.Struct, frozen=True):
    choices: list[PromptChoice]
    usage: Spent | None = None


class TopOfPrompt:
    """The k most likely tokens at each token of the prompt: what is not among them counts 0, so the mass says what was seen.

    Any vLLM answers it, up to its --max-logprobs; the prefix cache is not read.
    """

    path = "/v1/completions"
    decoder = msgspec.json.Decoder(PromptAnswer)

    def __init__(self, k: int) -> None:
        self.name = f"prompt_logprobs={k}"
        self._k = k

    def asked(self, question: Question) -> dict[str, Any]:
        return {"prompt": list(question.token_ids), "max_tokens": 1, **NEUTRAL, "prompt_logprobs": self._k}

    def n_prompt_tokens(self, question: Question) -> int:
        return len(question.token_ids)

    def read(self, answer: PromptAnswer, question: Question) -> NDArray[np.float64]:
        if len(answer.choices) != 1:
            raise ValueError(f"{len(answer.choices)} choices for one prompt")
        entries, ids = answer.choices[0].prompt_logprobs, question.token_ids
        if len(entries) != len(ids):
            raise ValueError(f"prompt_logprobs: {len(entries)} entries for {len(ids)} tokens")
        if bytes(entries[0]) != b"null":
            raise ValueError("prompt_logprobs: the first token has an entry: shifted?")
        chosen = question.chosen
        logprobs = np.full((len(question.rows), len(chosen)), -math.inf)
        for place, row in enumerate(question.rows):
            try:
                entry = _ENTRY.decode(entries[row + 1])
            except msgspec.DecodeError as error:
                raise ValueError(f"prompt_logprobs: entry {row + 1}: {error}") from error
            if ids[row + 1] not in entry:  # vLLM adds the prompt's own token to the k
                raise ValueError(
                    f"prompt_logprobs: entry {row + 1} does not hold the prompt's token: shifted?"
                )
            if len(entry) < self._k:
                raise ValueError(f"prompt_logprobs: entry {row + 1} holds {len(entry)} tokens for {self._k}")
            for column, token_id in enumerate(chosen):
                if (found := entry.get(token_id)) is not None:
                    logprobs[place, column] = found.logprob
        return sum_levels(logprobs, question.level_token_ids)


_ENTRY = msgspec.json.Decoder(dict[int, Logprob])
BY_PREFERENCE: Sequence[Way] = (AtRows(), AtNext(), TopOfPrompt(100), TopOfPrompt(20), TopOfPrompt(5))


def sum_levels(
    logprobs: NDArray[np.float64], level_token_ids: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """Log-probabilities of the chosen ids, [rows, all spellings], -> probabilities of the levels, [rows, n_levels].

    -inf is probability 0. Raises ValueError for NaN, for what is above 0 (but for rounding) and for a sum above 1.
    """
    if np.isnan(logprobs).any() or (logprobs > 1e-3).any():
        wrong = logprobs[np.isnan(logprobs) | (logprobs > 1e-3)][0]
        raise ValueError(f"{wrong} is no log-probability")
    probabilities = np.exp(np.minimum(logprobs, 0.0))
    first = np.cumsum([0, *(len(ids) for ids in level_token_ids[:-1])])
    summed: NDArray[np.float64] = np.add.reduceat(probabilities, first, axis=1)
    if (summed.sum(axis=1) > 1.01).any():
        raise ValueError(f"the probabilities of one token add up to {summed.sum(axis=1).max():.3f}")
    return summed
