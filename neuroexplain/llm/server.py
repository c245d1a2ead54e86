"""An engine on an OpenAI-compatible vLLM server. Its answers are checked before they are used."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import EngineError, LlmReplyError
from neuroexplain.evidence import Status
from neuroexplain.llm.distributions import (
    NEUTRAL_SAMPLING,
    LogprobMethod,
    LogprobRequest,
    LogprobTokenIds,
    NextTokenMethod,
    NextTokenRequest,
    PromptLogprobTokenIds,
    ReportedUsage,
)
from neuroexplain.llm.engine import Message, Reply, Usage, chat_token_ids, opened_thought
from neuroexplain.llm.gate import FIRST_PAUSE
from neuroexplain.llm.method_choice import PROBES, MethodChoice
from neuroexplain.llm.transport import FAULT_OF_STATUS, REPLY_LENGTH, Transport, reply_text, unusable

ENGINE_OPTIONS = (
    "Give an engine:  --server URL (a running vLLM server) | --vllm MODEL (start one) | "
    "--local MODEL (in this process)"
)
PROMPTS_PER_REQUEST = 32  # of next_distributions: a few hundred tokens beyond what they share


class TextChoice(msgspec.Struct, frozen=True):
    text: str
    finish_reason: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class TextAnswer(msgspec.Struct, frozen=True):
    choices: list[TextChoice]
    usage: ReportedUsage | None = None


_TEXT: msgspec.json.Decoder[TextAnswer] = msgspec.json.Decoder(TextAnswer)
Answer = TypeVar("Answer")


class ServerEngine:
    """One model of one server. Its methods may be called from many threads."""

    engine = "server"

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        max_wait: float = 600.0,
        in_flight: int = 64,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        exit_report: Callable[[], str | None] | None = None,
    ) -> None:
        """Connect to the server and choose one of its models.

        model: its name; not needed if the server has only one. max_wait: seconds to go on trying while the
        server is away or busy. in_flight: most requests at a time; how many it gets depends on its throughput
        (see gate.py). tokenizer: the model's, a hub name or folder; by default it is found by the model's
        name. exit_report: says how the process of a server of our own ended; None while it runs. Raises
        EngineError if the URL lists no models or not this one.
        """
        self.url = normalize_url(url)
        self.in_flight = in_flight
        self.usage = Usage()
        root = self.url.removesuffix("/v1")
        self._transport = Transport(
            root, api_key=api_key, max_wait=max_wait, in_flight=in_flight, exit_report=exit_report
        )
        self._tokenizer_name, self._trust_remote_code = tokenizer, trust_remote_code
        self._method_lock = threading.Lock()
        self._method: LogprobMethod | None = None
        self._next_method: NextTokenMethod | None = None
        try:
            card = self._choose_model(self._list_models(), model)
        except BaseException as error:
            self._transport.close()
            report = exit_report() if exit_report is not None and isinstance(error, EngineError) else None
            if report is not None:
                raise EngineError(report) from error
            raise
        self.model: str = card["id"]
        one_token = {"model": self.model, "prompt": [0], "max_tokens": 1}
        self._transport.one_token_request = ("/v1/completions", msgspec.json.encode(one_token))
        self.revision: str | None = None
        self._server_version = self._find_version()
        context_length = card.get("max_model_len")
        is_length = isinstance(context_length, int) and context_length > 0
        self.context_length: int | None = context_length if is_length else None
        self._model_folder = card.get("root")

    @property
    def version(self) -> str:
        """The server's version, and the log-probability method once it was chosen."""
        methods = [method.name for method in (self._method, self._next_method) if method is not None]
        return ", ".join([self._server_version, *dict.fromkeys(methods)])

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        if self._tokenizer_name is not None:
            from neuroexplain.subject.tokenizer import load_tokenizer

            return load_tokenizer(self._tokenizer_name, trust_remote_code=self._trust_remote_code)
        for name in (self._model_folder, self.model):
            with suppress(OSError, ValueError):  # raised too if the name is too long for a folder
                if isinstance(name, str) and (Path(name).is_dir() or name.count("/") == 1):
                    return AutoTokenizer.from_pretrained(name)
        raise EngineError(
            f"Prompts are built with the tokenizer of {self.model}, and it was found neither in the folder "
            f"{self._model_folder!r} nor on the hub under that name. Name it:  --tokenizer NAME (a folder or "
            "a hub name; for a scorer's own server --simulator-tokenizer)"
        )

    def generate(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float, seed: int
    ) -> Reply:
        began = time.perf_counter()
        ids = chat_token_ids(self.tokenizer, messages)
        self._check_length(len(ids) + max_tokens)
        sampling = {"max_tokens": max_tokens, **NEUTRAL_SAMPLING, "temperature": temperature, "seed": seed}
        answer, raw = self._post("/v1/completions", {"prompt": ids, **sampling}, _TEXT, len(ids))
        choice = _check_text(answer, raw, max_tokens)
        n_completion_tokens = (answer.usage.completion_tokens if answer.usage is not None else None) or 0
        text = opened_thought(self.tokenizer, ids) + choice.text
        return Reply(text, len(ids), n_completion_tokens, time.perf_counter() - began)

    def level_distributions(
        self,
        token_ids: Sequence[int],
        rows: Sequence[int],
        level_token_ids: Sequence[Sequence[int]],
        shared: int = 0,
    ) -> NDArray[np.float64]:  # the server's cache finds `shared` itself
        self._check_length(len(token_ids) + 1)
        if len(rows) == 0:
            return np.zeros((0, len(level_token_ids)))
        request = LogprobRequest(token_ids, rows, level_token_ids)
        return self._send(self.find_method(request), request)

    def find_method(self, request: LogprobRequest | NextTokenRequest) -> LogprobMethod | NextTokenMethod:
        """The best log-probability method that the server offers, chosen once by a piece of this request.

        Rows of a prompt and tokens that follow prompts have a method each. Raises EngineError if the server
        offers none.
        """
        with self._method_lock:
            choice = MethodChoice(self._send, self.url)
            if isinstance(request, NextTokenRequest):
                self._next_method = self._next_method or choice.for_next_tokens(request)
                return self._next_method
            if self._method is None:
                self._method = choice.for_rows(request, self._find_cache_block_size())
            return self._method

    def next_distributions(
        self,
        prompts: Sequence[Sequence[int]],
        level_token_ids: Sequence[Sequence[int]],
        shared: int = 0,
        *,
        exact: bool = False,
    ) -> NDArray[np.float64]:  # the server's cache finds `shared` itself
        self._check_length(max(map(len, prompts), default=0) + 1)
        levels = [np.zeros((0, len(level_token_ids)))]
        for first in range(0, len(prompts), PROMPTS_PER_REQUEST):
            request = NextTokenRequest(prompts[first : first + PROMPTS_PER_REQUEST], level_token_ids)
            method = self.find_method(request)
            if exact and not isinstance(method, LogprobTokenIds):
                raise EngineError(
                    f"The server at {self.url} gives only the most likely tokens ({method.name}), and the "
                    "probabilities of chosen ones are needed. Start vLLM 0.32 or newer, or name a model for "
                    "this process:  --simulator-local MODEL"
                )
            levels.append(self._send(method, request))
        return np.concatenate(levels)

    def close(self) -> None:
        self._transport.close()

    def _find_cache_block_size(self) -> float | None:
        """Tokens in a block of the prefix cache: infinite without a cache, None if unknown."""
        try:
            metrics = self._get("/metrics").text
        except httpx.HTTPError:
            return None
        labels = re.search(r"^vllm:cache_config_info\{(.*)\}", metrics, re.MULTILINE)
        block_size = re.search(r'\bblock_size="(\d+)"', labels[1]) if labels is not None else None
        if labels is None or block_size is None:
            return None
        return float(block_size[1]) if 'enable_prefix_caching="True"' in labels[1] else math.inf

    def _send(self, method: Any, request: Any) -> NDArray[np.float64]:
        """The answer of a log-probability method: probabilities [rows or prompts, n_levels]."""
        answer, raw = self._post_request(method, request)
        if isinstance(method, PromptLogprobTokenIds) and answer.prompt_token_id_logprobs is None:
            # Rows that the prefix cache holds have no probabilities, so the prompt is computed again.
            method = PromptLogprobTokenIds(read_cache=False)
            answer, raw = self._post_request(method, request)
        try:
            levels: NDArray[np.float64] = method.read(answer, request)
        except ValueError as error:
            raise unusable(str(error), raw) from error
        return levels

    def _post_request(self, method: Any, request: Any) -> tuple[Any, bytes]:
        body, n_tokens = method.body(request), method.n_prompt_tokens(request)
        return self._post(
            method.path, body, method.decoder, n_tokens, reports_cached_tokens=method.reports_cached_tokens
        )

    def _post(
        self,
        path: str,
        body: Mapping[str, Any],
        decoder: msgspec.json.Decoder[Answer],
        n_prompt_tokens: int,
        *,
        reports_cached_tokens: bool = True,
    ) -> tuple[Answer, bytes]:
        """POST a request of so many prompt tokens, and count it; the answer, decoded and raw.

        Raises LlmReplyError if the server counts another number of prompt tokens.
        """
        answer, raw = self._transport.post(path, {"model": self.model, **body}, decoder)
        usage = getattr(answer, "usage", None) or ReportedUsage()
        cached_tokens = usage.cached_tokens if reports_cached_tokens else None
        self.usage.add(n_prompt_tokens, cached_tokens, usage.completion_tokens)
        if usage.prompt_tokens not in (None, n_prompt_tokens):
            reason = (
                f"the server read {usage.prompt_tokens} prompt tokens of {n_prompt_tokens} that were sent"
            )
            raise unusable(reason, raw)
        return answer, raw

    def _list_models(self) -> list[dict[str, Any]]:
        try:
            response = self._get("/v1/models")
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            UnicodeError,
        ) as error:  # UnicodeError: an impossible host name
            route = self._transport.route
            raise EngineError(
                f"There is no server at {self.url}{route}: {error}.\n{ENGINE_OPTIONS}"
            ) from error
        status = response.status_code
        if status in (401, 403):
            raise EngineError(
                f"The server at {self.url}{self._transport.route} wants a key (status {status}). "
                "Set NEUROEXPLAIN_API_KEY."
            )
        if status == 407:
            raise EngineError(
                f"The proxy wants a password (status {status}){self._transport.route}. Put it into the "
                "proxy's URL, or name the server in NO_PROXY."
            )
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            models = response.json()["data"]
            # encode raises ValueError for half a surrogate pair, which JSON can hold and no model's name does
            if response.is_success and models and all(card["id"].encode() for card in models):
                return list(models)
        raise EngineError(
            f"The server at {self.url}{self._transport.route} lists no models (status {status}).\n"
            f"{ENGINE_OPTIONS}"
        )

    def _get(self, path: str) -> httpx.Response:
        """A page of the server; a busy server is asked again. Raises httpx.HTTPError or httpx.InvalidURL."""
        for _ in range(PROBES - 1):
            with suppress(httpx.ReadError, httpx.RemoteProtocolError):
                response = self._transport.get(path)
                if response.status_code not in FAULT_OF_STATUS:
                    return response
            time.sleep(FIRST_PAUSE)
        return self._transport.get(path)

    def _choose_model(self, models: list[dict[str, Any]], name: str | None) -> dict[str, Any]:
        names = [card["id"] for card in models]
        if name is None and len(models) == 1:
            return models[0]
        if name is None:
            raise EngineError(
                f"The server at {self.url} serves {', '.join(names)}. Name one:  --model {names[0]}"
            )
        if name not in names:
            raise EngineError(
                f"The server at {self.url} does not serve {name!r}: it serves {', '.join(names)}."
            )
        return models[names.index(name)]

    def _find_version(self) -> str:
        try:
            response = self._get("/version")
            return f"vllm {response.json()['version']}" if response.is_success else "unknown"
        except (httpx.HTTPError, ValueError, KeyError, TypeError, RecursionError):
            return "unknown"

    def _check_length(self, n_tokens: int) -> None:
        if self.context_length is not None and n_tokens > self.context_length:
            reason = f"{n_tokens:,} tokens, and {self.model} reads {self.context_length:,}"
            raise LlmReplyError(Status.CONTEXT_TOO_LONG, reason)


def _check_text(answer: TextAnswer, raw: bytes, max_tokens: int) -> TextChoice:
    """The only choice of an answer. Raises LlmReplyError if its text is empty, cut off or too long."""
    if len(answer.choices) != 1:
        raise unusable(f"{len(answer.choices)} choices for one prompt", raw)
    choice = answer.choices[0]
    if choice.finish_reason not in (None, "stop", "length"):
        raise unusable(f"the server ended it for another reason: {choice.finish_reason!r}", raw)
    if len(choice.text) > REPLY_LENGTH:
        raise unusable(f"the answer has {len(choice.text):,} characters, of at most {max_tokens} tokens", raw)
    n_tokens = answer.usage.completion_tokens if answer.usage is not None else None
    if n_tokens is not None and n_tokens > max_tokens:
        raise unusable(f"{n_tokens} tokens were generated, and at most {max_tokens} requested", raw)
    if not choice.text.strip():
        fault = "holds only reasoning" if choice.reasoning or choice.reasoning_content else "is empty"
        length = f" after {max_tokens} tokens" if choice.finish_reason == "length" else ""
        raise LlmReplyError(Status.PARSE_ERROR, f"the answer {fault}{length}", reply_text(raw))
    return choice


def normalize_url(url: str) -> str:
    """The URL that ends with /v1, however it was typed."""
    url = url.strip().rstrip("/").removesuffix("/models")
    if "://" not in url:
        url = f"http://{url}"
    return url if url.endswith("/v1") else f"{url}/v1"
