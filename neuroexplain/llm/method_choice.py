"""Which log-probability method of a server is used: the first one that works on a piece of a real request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import EngineError, LlmReplyError
from neuroexplain.llm.distributions import (
    EXACT_METHODS,
    MOST_LIKELY_COUNTS,
    LogprobMethod,
    LogprobRequest,
    LogprobTokenIds,
    NextLogprobs,
    NextTokenMethod,
    NextTokenRequest,
    PromptLogprobs,
)
from neuroexplain.llm.transport import Refused

PROBES = 3  # tries before a page or a method counts as not offered, since a fault may be gone the next time
SAMPLE_ROWS = 3  # rows or prompts by which methods are compared
SAMPLE_CONTEXT = 32  # tokens before the first of these rows
TOLERANCE = 0.05  # of a probability by two methods: in bfloat16 a server repeats itself to about 0.01

Send = Callable[[Any, Any], NDArray[np.float64]]  # (method, request) -> probabilities; raises LlmReplyError


class MethodChoice:
    """Tries methods on one server. The most likely tokens are requested first.

    An exact method must give the same probabilities for these.
    """

    def __init__(self, send: Send, url: str) -> None:
        self._send, self._url = send, url
        self._refusals: dict[str, str] = {}  # reasons by the method's name

    def for_rows(self, request: LogprobRequest, cache_block_size: float | None) -> LogprobMethod:
        """The first exact method that answers rightly, else as many most likely tokens as the server gives.

        Cut prompts are left out if the server would compute more tokens for them than for the whole prompt.
        cache_block_size: tokens in a block of the server's prefix cache; infinite without a cache, None if
        unknown. Raises EngineError if the server offers no method.
        """
        sample = sample_of(request)
        most_likely, reference = self._most_likely(PromptLogprobs, sample)
        exact = list(EXACT_METHODS)
        if most_likely is not None and _cuts_cost_more(request, cache_block_size):
            exact = [method for method in exact if not isinstance(method, LogprobTokenIds)]
        method: LogprobMethod = self._exact(exact, sample, reference) or most_likely or self._give_up()
        return method

    def for_next_tokens(self, request: NextTokenRequest) -> NextTokenMethod:
        """Chosen tokens if the server gives them, else as many most likely ones as it gives.

        Raises EngineError if it gives neither.
        """
        sample = sample_of(request)
        most_likely, reference = self._most_likely(NextLogprobs, sample)
        method: NextTokenMethod = (
            self._exact([LogprobTokenIds()], sample, reference) or most_likely or self._give_up()
        )
        return method

    def _most_likely(self, kind: Any, sample: Any) -> tuple[Any, NDArray[np.float64] | None]:
        """The method with as many most likely tokens as the server gives, and what it answers."""
        for k in MOST_LIKELY_COUNTS:
            levels = self._try(kind(k), sample)
            if levels is not None:
                return kind(k), levels
        return None, None

    def _exact(self, methods: list[Any], sample: Any, reference: NDArray[np.float64] | None) -> Any:
        """The first of the methods that answers, and as the reference does."""
        for method in methods:
            levels = self._try(method, sample)
            if levels is not None and (reference is None or agree(levels, reference)):
                return method
            if levels is not None:
                self._refusals[method.name] = "its answers differ from the most likely tokens"
        return None

    def _try(self, method: Any, request: Any) -> NDArray[np.float64] | None:
        """The method's answer; None if the server gives none."""
        for _ in range(PROBES):
            try:
                return self._send(method, request)
            except LlmReplyError as error:
                self._refusals[method.name] = error.reason
                if isinstance(error, Refused):
                    break
        return None

    def _give_up(self) -> Any:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in self._refusals.items())
        raise EngineError(
            f"The server at {self._url} gives no probabilities of chosen tokens, and the simulator needs "
            f"them:{reasons}\n"
            "Start vLLM 0.32 or newer (on a GPU with --enable-scale-out), or name another engine for the "
            "simulation:  --simulator-server URL | --simulator-local MODEL"
        )


def _cuts_cost_more(request: LogprobRequest, cache_block_size: float | None) -> bool:
    """Whether a prompt's cuts cost the server more than the whole prompt; False if it does not tell.

    Each row costs half a block of the prefix cache on average.
    """
    return cache_block_size is not None and (
        len(request.rows) * (cache_block_size + 1) / 2 > len(request.token_ids)
    )


@overload
def sample_of(request: LogprobRequest) -> LogprobRequest: ...
@overload
def sample_of(request: NextTokenRequest) -> NextTokenRequest: ...
def sample_of(request: LogprobRequest | NextTokenRequest) -> LogprobRequest | NextTokenRequest:
    """A piece of the request, to compare methods and servers by: the first prompts, or around the first rows.

    Each level token, and each token that follows a row and is thus likely, is a level of its own.
    """
    if isinstance(request, NextTokenRequest):
        chosen_ids = [[token_id] for token_id in request.flat_token_ids]
        return NextTokenRequest(request.prompts[:SAMPLE_ROWS], chosen_ids)
    rows = request.rows[:SAMPLE_ROWS]
    first, end = max(0, rows[0] - SAMPLE_CONTEXT), min(rows[-1] + 2, len(request.token_ids))
    following = {request.token_ids[row + 1] for row in rows}
    chosen = sorted(following | set(request.flat_token_ids))
    return LogprobRequest(
        request.token_ids[first:end], [row - first for row in rows], [[token_id] for token_id in chosen]
    )


def agree(levels: NDArray[np.float64], reference: NDArray[np.float64]) -> bool:
    """Whether two methods or servers give equal probabilities where the reference has any: it may be cut."""
    return bool((np.abs(levels - reference)[reference > 0] < TOLERANCE).all())
