"""An OpenAI-compatible vLLM server over HTTP: what it serves, requests with retries, answers checked before use."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import EngineError, EngineLost, LlmReplyError
from neuroexplain.llm.engine import Message, Reply, chat_token_ids

DEFAULT_SERVER = "http://127.0.0.1:8000/v1"  # where `vllm serve` listens
THREE_WAYS = (
    "Give an engine:  --server URL (a running vLLM server) | --vllm MODEL (start one) | --local MODEL (in this process)"
)
TOP_LOGPROBS = 20  # what a server gives of each distribution unless it was started with more
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # statuses worth another try
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0  # seconds between tries


class ServerEngine:
    """One model of one server. Methods may be called from many threads."""

    engine = "server"

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        max_wait: float = 600.0,
        timeout: float = 600.0,
        in_flight: int = 32,
    ) -> None:
        """Connect, and find out what is served.

        max_wait: seconds that a request goes on trying while the server is away or busy. Raises EngineError where nothing
        lists models at the URL, or the model asked for is not among them.
        """
        self.url = _base_url(url)
        self.in_flight = in_flight
        self._max_wait = max_wait
        self._closing = threading.Event()
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout, connect=10.0), limits=limits)
        try:
            card = self._choose(self._list_models(), model)
        except BaseException:
            self._client.close()
            raise
        self.model: str = card["id"]
        self.revision: str | None = None
        self.version = self._find_version()
        self.context_length: int | None = card.get("max_model_len")
        self._root = card.get("root")

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        for name in (self._root, self.model):
            if isinstance(name, str) and (Path(name).is_dir() or name.count("/") == 1):
                try:
                    return AutoTokenizer.from_pretrained(name)
                except (OSError, ValueError):
                    continue
        raise EngineError(
            f"The tokenizer of {self.model} is needed to build prompts, and neither a folder {self._root!r} nor a hub model of "
            "that name was found. Serve the model under its hub name, or run where its folder is."
        )

    def generate(self, messages: Sequence[Message], *, max_tokens: int, temperature: float, seed: int) -> Reply:
        began = time.perf_counter()
        ids = chat_token_ids(self.tokenizer, messages)
        self._check_length(len(ids) + max_tokens)
        asked = {"prompt": ids, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        answer = self._post("completions", asked)
        text, used = _choice(answer).get("text"), answer.get("usage")
        if not isinstance(text, str):
            raise LlmReplyError("llm_error", "the answer holds no text", json.dumps(answer)[:2000])
        completion = used.get("completion_tokens", 0) if isinstance(used, dict) else 0
        return Reply(text, len(ids), completion if isinstance(completion, int) else 0, time.perf_counter() - began)

    def level_distributions(
        self, token_ids: Sequence[int], rows: Sequence[int], level_token_ids: Sequence[Sequence[int]]
    ) -> NDArray[np.float64]:
        self._check_length(len(token_ids) + 1)
        ids = [int(i) for i in token_ids]
        answer = self._post(
            "completions", {"prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": TOP_LOGPROBS}
        )
        return read_prompt_logprobs(_choice(answer).get("prompt_logprobs"), ids, rows, level_token_ids)

    def close(self) -> None:
        self._closing.set()
        self._client.close()

    def _list_models(self) -> list[dict[str, Any]]:
        try:
            answer = self._client.get(f"{self.url}/models")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EngineError(f"There is no server at {self.url}: {error}.\n{THREE_WAYS}") from error
        if answer.status_code in (401, 403):
            raise EngineError(f"The server at {self.url} wants a key ({answer.status_code}). Set NEUROEXPLAIN_API_KEY.")
        try:
            models = answer.json()["data"]
            if answer.is_success and models and all(isinstance(card["id"], str) for card in models):
                return list(models)
        except (ValueError, KeyError, TypeError):
            pass
        raise EngineError(f"What answers at {self.url} lists no models (status {answer.status_code}).\n{THREE_WAYS}")

    def _choose(self, models: list[dict[str, Any]], wanted: str | None) -> dict[str, Any]:
        names = [card["id"] for card in models]
        if wanted is None and len(models) == 1:
            return models[0]
        if wanted is None:
            raise EngineError(f"The server at {self.url} serves {', '.join(names)}. Name one:  --model {names[0]}")
        if wanted not in names:
            raise EngineError(f"The server at {self.url} does not serve {wanted!r}: it serves {', '.join(names)}.")
        return models[names.index(wanted)]

    def _find_version(self) -> str:
        try:
            answer = self._client.get(self.url.removesuffix("/v1") + "/version")
            return f"vllm {answer.json()['version']}" if answer.is_success else "unknown"
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return "unknown"

    def _post(self, path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """One request; tried again while the server is away, restarting or busy, not when the request itself is at fault."""
        deadline = time.monotonic() + self._max_wait
        pause = FIRST_PAUSE
        while True:
            try:
                answer = self._client.post(f"{self.url}/{path}", json={"model": self.model, **asked})
            except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed meanwhile
                if self._closing.is_set():
                    raise EngineLost("The run was stopped.") from error
                why = str(error) or type(error).__name__
            else:
                if answer.is_success:
                    return _json_object(answer)
                if answer.status_code not in TRANSIENT:
                    raise LlmReplyError(*_refusal(answer))
                why = f"status {answer.status_code}"
            if time.monotonic() + pause > deadline:
                raise EngineLost(
                    f"The server at {self.url} did not answer for {self._max_wait:.0f} seconds ({why}). "
                    "What was finished is kept; run the same command again when it is back."
                )
            if self._closing.wait(pause):
                raise EngineLost("The run was stopped.")
            pause = min(pause * 2, LONGEST_PAUSE)

    def _check_length(self, n_tokens: int) -> None:
        if self.context_length is not None and n_tokens > self.context_length:
            raise LlmReplyError("context_too_long", f"{n_tokens:,} tokens, and {self.model} reads {self.context_length:,}")


def read_prompt_logprobs(
    found: Any, token_ids: Sequence[int], rows: Sequence[int], level_token_ids: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """The probability of each level after each row, [rows, n_levels], from vLLM's `prompt_logprobs`; 0 for what was cut.

    Entry i is the distribution before token i, with that token always in it, which shows a shift. Raises LlmReplyError for
    other lengths, missing entries, a shift and values that are no log-probabilities.
    """
    if not isinstance(found, list) or len(found) != len(token_ids):
        what = f"{len(found)} entries" if isinstance(found, list) else type(found).__name__
        raise LlmReplyError("llm_error", f"prompt_logprobs: {what} for {len(token_ids)} tokens")
    probabilities = np.zeros((len(rows), len(level_token_ids)))
    for place, row in enumerate(rows):
        entry = found[row + 1]
        if not isinstance(entry, dict) or str(token_ids[row + 1]) not in entry:
            raise LlmReplyError("llm_error", f"prompt_logprobs: entry {row + 1} does not hold the prompt's token: shifted?")
        for level, ids in enumerate(level_token_ids):
            for token_id in ids:
                if (one := entry.get(str(token_id))) is not None:
                    probabilities[place, level] += _probability(one)
    return probabilities


def _probability(entry: Any) -> float:
    logprob = entry.get("logprob") if isinstance(entry, dict) else None
    if not isinstance(logprob, int | float) or math.isnan(logprob) or logprob > 1e-3:
        raise LlmReplyError("llm_error", f"{logprob!r} is no log-probability")
    return math.exp(min(0.0, logprob))


def _base_url(url: str) -> str:
    url = url.rstrip("/")
    if "://" not in url:
        url = f"http://{url}"
    return url if url.endswith("/v1") else f"{url}/v1"


def _json_object(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError as error:
        raise LlmReplyError("llm_error", f"the answer is no JSON: {error}", answer.text[:2000]) from error
    if not isinstance(found, dict):
        raise LlmReplyError("llm_error", "the answer is no JSON object", answer.text[:2000])
    return found


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise LlmReplyError("llm_error", "the answer does not hold one choice", json.dumps(answer)[:2000])
    return choices[0]


def _refusal(answer: httpx.Response) -> tuple[str, str, str]:
    """Status, reason and reply of a request that the server will not answer."""
    try:
        said = answer.json()
        said = said.get("error", said) if isinstance(said, dict) else said
        said = said.get("message", said) if isinstance(said, dict) else said
    except ValueError:
        said = answer.text
    too_long = "maximum context length" in str(said) or "max_model_len" in str(said)
    return "context_too_long" if too_long else "llm_error", f"{answer.status_code}: {str(said)[:500]}", answer.text[:2000]
