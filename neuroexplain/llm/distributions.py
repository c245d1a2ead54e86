"""The probabilities of chosen tokens from a vLLM server: what each method sends, and how its answer is read.

A simulator needs the probability of a few level tokens ("yes", "no") at some 256 rows of one prompt. vLLM
offers three request fields for that; `LogprobMethod` is one of them. They differ in what they cost and in
what they lose:

| request field | values | the server computes | needs |
|---|---|---|---|
| `prompt_logprob_token_ids` | exact | each prompt token once | vLLM 0.32, a GPU, `--enable-scale-out` |
| `logprob_token_ids` | exact | half a block of the prefix cache more for each row | small blocks |
| `prompt_logprobs=k` | the k most likely tokens | each prompt token once, without the cache | any vLLM |

`llm/server.py` tries them once, by a piece of a real prompt, and keeps the first in this order that works.
Exact methods come first, because a rare "yes" carries the score and a cut of the most likely tokens would
lose it. An answer is checked before it is used: its shape, its order, the prompt's own tokens, and that the
values can be probabilities.

Rejected, with measurements in docs/decisions.md: one request per row (twice as slow, and 6,400 requests/s for
the client); parsing every entry of `prompt_logprobs` (27 ms in place of 1.2 for 787 kB, so entries stay bytes
until a level is read).

Readers raise ValueError, with the reason, for an answer that does not fit its request.
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

# Every option that shapes a distribution, at its neutral value. All are sent, because a server's defaults or
# the model's generation_config would otherwise decide.
NEUTRAL_SAMPLING: Mapping[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
LARGEST_LOGPROB = 1e-3  # a log-probability is at most 0, but for rounding
LARGEST_SUM = 1.01  # probabilities of different tokens add up to at most 1, but for rounding


@dataclass(frozen=True, slots=True)
class LogprobRequest:
    """A request for the probability of each level after each row of a prompt."""

    token_ids: Sequence[int]
    rows: Sequence[int]  # ascending; each before the last token
    level_token_ids: Sequence[Sequence[int]]  # the spellings of each level; their probabilities are added

    @property
    def flat_token_ids(self) -> list[int]:
        """The token ids of all spellings, level after level."""
        return [token_id for spellings in self.level_token_ids for token_id in spellings]

    @property
    def prompts(self) -> list[list[int]]:
        """The prompt cut after each row."""
        ids = list(self.token_ids)
        return [ids[: row + 1] for row in self.rows]


@dataclass(frozen=True, slots=True)
class NextTokenRequest:
    """A request for the probability of each level as the token that follows each prompt."""

    prompts: Sequence[Sequence[int]]
    level_token_ids: Sequence[Sequence[int]]  # see LogprobRequest

    @property
    def flat_token_ids(self) -> list[int]:
        """The token ids of all spellings, level after level."""
        return [token_id for spellings in self.level_token_ids for token_id in spellings]


TokenCount = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class ReportedUsage(msgspec.Struct, frozen=True):
    """The `usage` of an answer. Servers may leave out any of it."""

    prompt_tokens: TokenCount | None = None
    completion_tokens: TokenCount | None = None
    prompt_tokens_details: PromptTokensDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        return None if self.prompt_tokens_details is None else self.prompt_tokens_details.cached_tokens


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Part of `usage` on servers started with --enable-prompt-tokens-details."""

    cached_tokens: TokenCount | None = None  # of the last prompt only, if a request has several


class LogprobMethod(Protocol):
    """One way to get the probabilities of chosen tokens, named like the request field that it uses."""

    name: str
    path: str
    decoder: Any  # msgspec decoder of an answer with `usage: ReportedUsage | None`
    reports_cached_tokens: bool  # whether the answer's count of cached tokens is of the whole request

    def body(self, request: LogprobRequest) -> dict[str, Any]:
        """The JSON to send, without the model."""
        ...

    def n_prompt_tokens(self, request: LogprobRequest) -> int:
        """How many prompt tokens the JSON holds."""
        ...

    def read(self, answer: Any, request: LogprobRequest) -> NDArray[np.float64]:
        """Probabilities [rows, n_levels]; 0 for a token that the server left out."""
        ...


class NextTokenMethod(Protocol):
    """A method for the tokens that follow prompts: see LogprobMethod."""

    name: str

    def read(self, answer: Any, request: NextTokenRequest) -> NDArray[np.float64]:
        """Probabilities [n_prompts, n_levels]; 0 for a token that the server left out."""
        ...


class PromptRowsAnswer(msgspec.Struct, frozen=True):
    prompt_token_id_logprobs: str | None
    usage: ReportedUsage | None = None


class PromptLogprobTokenIds:
    """Chosen ids at chosen rows of one prompt: exact, and the prefix cache is read up to the first row.

    Needs vLLM 0.32 or newer with its V2 model runner (a GPU), started with `--enable-scale-out` and with
    --max-logprobs of at least the number of chosen ids. The answer's shape was read from vLLM 0.32.0's
    source, because no server with a GPU was at hand
    (entrypoints/scale_out/token_in_token_out/{protocol,serving}.py, v1/worker/gpu/sample/prompt_logprob.py):
    `prompt_token_id_logprobs` is the base64 of a `.npy` file, float32 [prompt_len - 1 - start, most ids of a
    row], -inf where a row asked for fewer ids, and null if cached tokens go beyond `start`.
    """

    name = "prompt_logprob_token_ids"
    path = "/inference/v1/generate"
    decoder = msgspec.json.Decoder(PromptRowsAnswer)
    reports_cached_tokens = True

    def __init__(self, *, read_cache: bool = True) -> None:
        self._read_cache = read_cache

    def body(self, request: LogprobRequest) -> dict[str, Any]:
        first_row, rows, chosen = request.rows[0], set(request.rows), request.flat_token_ids
        ids_by_row = [chosen if row in rows else [] for row in range(first_row, len(request.token_ids) - 1)]
        sampling = {
            "max_tokens": 1,
            **NEUTRAL_SAMPLING,
            "prompt_logprob_start": first_row,
            "prompt_logprob_token_ids": ids_by_row,
            "skip_reading_prefix_cache": not self._read_cache,
        }
        return {"token_ids": list(request.token_ids), "sampling_params": sampling}

    def n_prompt_tokens(self, request: LogprobRequest) -> int:
        return len(request.token_ids)

    def read(self, answer: PromptRowsAnswer, request: LogprobRequest) -> NDArray[np.float64]:
        if answer.prompt_token_id_logprobs is None:
            raise ValueError("no prompt_token_id_logprobs")
        all_rows = _load_npy(base64.b64decode(answer.prompt_token_id_logprobs, validate=True))
        first_row = request.rows[0]
        expected = len(request.token_ids) - 1 - first_row, len(request.flat_token_ids)
        if all_rows.shape != expected:
            raise ValueError(f"prompt_token_id_logprobs: shape {all_rows.shape}, expected {expected}")
        logprobs = all_rows[np.asarray(request.rows) - first_row].astype(np.float64)
        if np.isneginf(logprobs).all(axis=1).any():
            raise ValueError("prompt_token_id_logprobs: a row holds none of the requested tokens: shifted?")
        return sum_levels(logprobs, request.level_token_ids)


def _load_npy(npy: bytes) -> NDArray[np.floating[Any]]:
    if not npy.startswith(np.lib.format.MAGIC_PREFIX):
        raise ValueError("prompt_token_id_logprobs holds no array")
    try:
        array = np.load(io.BytesIO(npy), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError, TokenError, MemoryError, OverflowError) as error:
        raise ValueError(f"prompt_token_id_logprobs holds no array: {error}") from error
    if array.dtype.kind != "f":
        raise ValueError(f"prompt_token_id_logprobs: an array of {array.dtype}")
    floats: NDArray[np.floating[Any]] = array
    return floats


class NextTokenLogprobs(msgspec.Struct, frozen=True):
    top_logprobs: list[dict[str, float]]


class NextTokenChoice(msgspec.Struct, frozen=True):
    index: int
    logprobs: NextTokenLogprobs


class NextTokenAnswer(msgspec.Struct, frozen=True):
    choices: list[NextTokenChoice]
    usage: ReportedUsage | None = None


class LogprobTokenIds:
    """Chosen ids, at most 128, after each of several prompts; a prompt with rows is cut after each of them.

    Exact, on any vLLM that knows `logprob_token_ids`. The prefix cache holds what a cut shares with the cut
    before it, in whole blocks, so each row costs half a block on average.
    """

    name = "logprob_token_ids"
    path = "/v1/completions"
    decoder = msgspec.json.Decoder(NextTokenAnswer)
    reports_cached_tokens = False  # only those of the last prompt

    def body(self, request: LogprobRequest | NextTokenRequest) -> dict[str, Any]:
        return {**_next_tokens_body(request, 1), "logprob_token_ids": request.flat_token_ids}

    def n_prompt_tokens(self, request: LogprobRequest | NextTokenRequest) -> int:
        return sum(map(len, request.prompts))

    def read(
        self, answer: NextTokenAnswer, request: LogprobRequest | NextTokenRequest
    ) -> NDArray[np.float64]:
        keys = [f"token_id:{token_id}" for token_id in request.flat_token_ids]
        logprobs = np.zeros((len(request.prompts), len(keys)))
        for i, entry in enumerate(_next_tokens(answer, len(request.prompts))):
            try:
                logprobs[i] = [entry[key] for key in keys]
            except KeyError as error:
                raise ValueError(f"top_logprobs: {error} was requested and is missing") from error
        return sum_levels(logprobs, request.level_token_ids)


class NextLogprobs:
    """The k most likely tokens after each of several prompts. A level that is not among them gets 0.

    Any vLLM answers it, up to its --max-logprobs. Of a question with two answers both are among them.
    """

    path = "/v1/completions"
    decoder = msgspec.json.Decoder(NextTokenAnswer)
    reports_cached_tokens = False

    def __init__(self, k: int) -> None:
        self.name = f"logprobs={k}"
        self._k = k

    def body(self, request: NextTokenRequest) -> dict[str, Any]:
        return _next_tokens_body(request, self._k)

    def n_prompt_tokens(self, request: NextTokenRequest) -> int:
        return sum(map(len, request.prompts))

    def read(self, answer: NextTokenAnswer, request: NextTokenRequest) -> NDArray[np.float64]:
        keys = [f"token_id:{token_id}" for token_id in request.flat_token_ids]
        logprobs = np.full((len(request.prompts), len(keys)), -math.inf)
        for i, entry in enumerate(_next_tokens(answer, len(request.prompts))):
            if len(entry) < self._k:
                raise ValueError(f"top_logprobs: {len(entry)} tokens for {self._k}")
            logprobs[i] = [entry.get(key, -math.inf) for key in keys]
        return sum_levels(logprobs, request.level_token_ids)


def _next_tokens_body(request: LogprobRequest | NextTokenRequest, k: int) -> dict[str, Any]:
    """The JSON for one token after each prompt, with the k most likely ones, named by id."""
    return {
        "prompt": [list(prompt) for prompt in request.prompts],
        "max_tokens": 1,
        **NEUTRAL_SAMPLING,
        "logprobs": k,
        "return_tokens_as_token_ids": True,
    }


def _next_tokens(answer: NextTokenAnswer, n_prompts: int) -> list[dict[str, float]]:
    """The log-probabilities after each prompt, by token. Raises ValueError if they are not in order."""
    if [choice.index for choice in answer.choices] != list(range(n_prompts)):
        raise ValueError(f"{len(answer.choices)} choices for {n_prompts} prompts, or in another order")
    entries = []
    for choice in answer.choices:
        if len(choice.logprobs.top_logprobs) != 1:
            raise ValueError(f"top_logprobs: {len(choice.logprobs.top_logprobs)} entries for one token")
        entries.append(choice.logprobs.top_logprobs[0])
    return entries


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    logprob: float


class PromptChoice(msgspec.Struct, frozen=True):
    prompt_logprobs: list[msgspec.Raw]  # an entry is decoded only if a level is read from it


class PromptAnswer(msgspec.Struct, frozen=True):
    choices: list[PromptChoice]
    usage: ReportedUsage | None = None


class PromptLogprobs:
    """The k most likely tokens at each token of the prompt. A level that is not among them gets 0.

    Any vLLM answers it, up to its --max-logprobs. The prefix cache is not read.
    """

    path = "/v1/completions"
    decoder = msgspec.json.Decoder(PromptAnswer)
    reports_cached_tokens = True

    def __init__(self, k: int) -> None:
        self.name = f"prompt_logprobs={k}"
        self._k = k

    def body(self, request: LogprobRequest) -> dict[str, Any]:
        ids = list(request.token_ids)
        return {"prompt": ids, "max_tokens": 1, **NEUTRAL_SAMPLING, "prompt_logprobs": self._k}

    def n_prompt_tokens(self, request: LogprobRequest) -> int:
        return len(request.token_ids)

    def read(self, answer: PromptAnswer, request: LogprobRequest) -> NDArray[np.float64]:
        if len(answer.choices) != 1:
            raise ValueError(f"{len(answer.choices)} choices for one prompt")
        entries, ids = answer.choices[0].prompt_logprobs, request.token_ids
        if len(entries) != len(ids):
            raise ValueError(f"prompt_logprobs: {len(entries)} entries for {len(ids)} tokens")
        if bytes(entries[0]) != b"null":
            raise ValueError("prompt_logprobs: the first token has an entry: shifted?")
        chosen = request.flat_token_ids
        logprobs = np.full((len(request.rows), len(chosen)), -math.inf)
        for i, row in enumerate(request.rows):  # the distribution after a row is the entry of the next token
            entry = self._decode_entry(entries[row + 1], row + 1, ids[row + 1])
            for j, token_id in enumerate(chosen):
                if token_id in entry:
                    logprobs[i, j] = entry[token_id].logprob
        return sum_levels(logprobs, request.level_token_ids)

    def _decode_entry(self, raw: msgspec.Raw, position: int, token_id: int) -> dict[int, TokenLogprob]:
        """The tokens of one position, by id: the k most likely and the prompt's own, which vLLM adds."""
        try:
            entry = _ENTRY.decode(raw)
        except msgspec.DecodeError as error:
            raise ValueError(f"prompt_logprobs: entry {position}: {error}") from error
        if token_id not in entry:
            raise ValueError(f"prompt_logprobs: entry {position} lacks the prompt's token: shifted?")
        if len(entry) < self._k:
            raise ValueError(f"prompt_logprobs: entry {position} holds {len(entry)} tokens for {self._k}")
        return entry


_ENTRY = msgspec.json.Decoder(dict[int, TokenLogprob])
EXACT_METHODS: Sequence[LogprobMethod] = (PromptLogprobTokenIds(), LogprobTokenIds())  # the cheapest first
# k of PromptLogprobs to try. Servers allow different numbers: vLLM 20 by default, and once 5.
MOST_LIKELY_COUNTS = (100, 20, 5)


def sum_levels(
    logprobs: NDArray[np.float64], level_token_ids: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """Log-probabilities of spellings, [rows, spellings], -> probabilities of levels, [rows, n_levels].

    -inf is probability 0. Raises ValueError for NaN, for a value above 0 and for a row's sum above 1 (but for
    rounding).
    """
    impossible = np.isnan(logprobs) | (logprobs > LARGEST_LOGPROB)
    if impossible.any():
        raise ValueError(f"{logprobs[impossible][0]} is no log-probability")
    probabilities = np.exp(np.minimum(logprobs, 0.0))
    first_spellings = np.cumsum([0, *(len(spellings) for spellings in level_token_ids[:-1])])
    levels: NDArray[np.float64] = np.add.reduceat(probabilities, first_spellings, axis=1)
    if (levels.sum(axis=1) > LARGEST_SUM).any():
        raise ValueError(f"the probabilities of one token add up to {levels.sum(axis=1).max():.3f}")
    return levels
