"""An engine on an OpenAI-compatible vLLM server. Its answers are checked before they are used."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import EngineError, EngineLost, LlmReplyError
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
from neuroexplain.llm.method_choice import MethodChoice, agree, sample_of
from neuroexplain.llm.replicas import Replicas
from neuroexplain.llm.routing import Conversations, prefix_key
from neuroexplain.llm.served import Server, ServerAway
from neuroexplain.llm.server_list import ServerList
from neuroexplain.llm.transport import REPLY_LENGTH, Transport, reply_text, unusable

PROMPTS_PER_REQUEST = 128  # of next_distributions: some ten tokens each beyond what they share
BEFORE_ROW = 4  # tokens of the first record that may stand before the first row; the explanation ends before

Post = Callable[[str, Mapping[str, Any], msgspec.json.Decoder[Any]], tuple[Any, bytes]]


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
    """One model of one server, or of several that answer alike. Methods may be called from many threads."""

    engine = "server"
    revision: str | None = None  # vLLM does not tell it

    def __init__(
        self,
        servers: str | ServerList,
        model: str | None = None,
        *,
        api_key: str | None = None,
        max_wait: float = 600.0,
        in_flight: int = 64,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        exit_report: Callable[[], str | None] | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Connect to a URL, or to a list of them, and choose a model.

        model: its name; not needed if the server has only one. max_wait: seconds to go on trying while the
        server is away or busy. in_flight: most requests at a time to a server; how many it gets depends on
        its throughput (see gate.py). tokenizer: the model's, a hub name or folder; by default it is found by
        the model's name. exit_report: says how the process of a server of our own ended; None while it runs.
        tell: shows a line when a server of a list joins or leaves. Raises EngineError if no server lists
        models or this one, or if those of a list differ.
        """
        self.usage = Usage()
        self._tokenizer_name, self._trust_remote_code = tokenizer, trust_remote_code
        self._method_lock = threading.Lock()
        self._method: LogprobMethod | None = None
        self._next_method: NextTokenMethod | None = None
        connect = partial(Server, api_key=api_key, max_wait=max_wait, in_flight=in_flight)
        self._transport: Transport | Replicas
        url = servers if isinstance(servers, str) else servers.only_url
        if url is not None:
            server = connect(url, model, exit_report=exit_report)
            self._transport = server.transport
        else:
            assert not isinstance(servers, str)
            self._transport = Replicas(
                servers, model, connect, max_wait=max_wait, in_flight=in_flight, tell=tell
            )
            server = self._transport.first
        self._server = server  # the only one, or the first, which all others equal
        self._in_flight = in_flight
        self._conversations = Conversations()
        self.url = server.url
        self.model = server.model
        self.context_length = server.context_length

    @property
    def in_flight(self) -> int:
        """Most requests at a time, to all servers together; a stage keeps what it began with."""
        return self._transport.in_flight if isinstance(self._transport, Replicas) else self._in_flight

    @property
    def n_servers(self) -> tuple[int, int] | None:
        """(servers that answer, servers that are listed); None without a list."""
        return self._transport.n_servers if isinstance(self._transport, Replicas) else None

    @property
    def place(self) -> str:
        """Where requests go, for a person: the URL, or those of the list that answer."""
        return self._transport.describe() if isinstance(self._transport, Replicas) else self.url

    @property
    def version(self) -> str:
        """The server's version, and the log-probability method once it was chosen."""
        methods = [method.name for method in (self._method, self._next_method) if method is not None]
        return ", ".join([self._server.version, *dict.fromkeys(methods)])

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        if self._tokenizer_name is not None:
            from neuroexplain.subject.tokenizer import load_tokenizer

            return load_tokenizer(self._tokenizer_name, trust_remote_code=self._trust_remote_code)
        for name in (self._server.model_folder, self.model):
            with suppress(OSError, ValueError):  # raised too if the name is too long for a folder
                if isinstance(name, str) and (Path(name).is_dir() or name.count("/") == 1):
                    return AutoTokenizer.from_pretrained(name)
        raise EngineError(
            f"Prompts are built with the tokenizer of {self.model}, and it was found neither in the folder "
            f"{self._server.model_folder!r} nor on the hub under that name. Name it:  --tokenizer NAME (a "
            "folder or a hub name; for a scorer's own server --simulator-tokenizer)"
        )

    def generate(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float, seed: int
    ) -> Reply:
        began = time.perf_counter()
        ids = chat_token_ids(self.tokenizer, messages)
        self._check_length(len(ids) + max_tokens)
        sampling = {"max_tokens": max_tokens, **NEUTRAL_SAMPLING, "temperature": temperature, "seed": seed}
        prefix = self._conversations.key(messages) if self._has_replicas else b""
        body = {"prompt": ids, **sampling}
        answer, raw = self._post("/v1/completions", body, _TEXT, len(ids), prefix=prefix)
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
        prefix = prefix_key(token_ids[: max(0, rows[0] - BEFORE_ROW)]) if self._has_replicas else b""
        return self._send(self.find_method(request), request, prefix)

    def find_method(self, request: LogprobRequest | NextTokenRequest) -> LogprobMethod | NextTokenMethod:
        """The best log-probability method that the server offers, chosen once by a piece of this request.

        Rows of a prompt and tokens that follow prompts have a method each. Of several servers all must offer
        it, and answer the same. Raises EngineError if a server does not, and if there is no method.
        """
        with self._method_lock:
            if isinstance(request, NextTokenRequest):
                self._next_method = self._next_method or self._choose_method(request)
                return self._next_method
            self._method = self._method or self._choose_method(request)
            return self._method

    def _choose_method(self, request: LogprobRequest | NextTokenRequest) -> Any:
        """The method by which this request is sent. Of several servers the first chooses, for all of them."""
        if not isinstance(self._transport, Replicas):
            return _choice_of(self._send, self._server, request)
        for server in self._transport.servers:
            send = partial(self._send, post=server.post_now)
            with suppress(ServerAway):
                method = _choice_of(send, server, request)
                self._hold_to(method, sample_of(request), send(method, sample_of(request)))
                return method
        raise EngineLost(f"No server answers any more: {self.place}.")

    def _hold_to(self, method: Any, sample: Any, reference: NDArray[np.float64]) -> None:
        """Require of all servers that they give these probabilities by this method."""
        assert isinstance(self._transport, Replicas)
        name = method.name

        def difference(server: Server) -> str | None:
            try:
                levels = self._send(method, sample, post=server.post_now)
            except LlmReplyError as error:
                return f"gives no probabilities by {name} as the others do ({error.reason})"
            return (
                None if agree(levels, reference) else f"gives other probabilities by {name} than the others"
            )

        self._transport.hold_to(difference)

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
            prefix = prefix_key(prompts[first][: shared or None]) if self._has_replicas else b""
            levels.append(self._send(method, request, prefix))
        return np.concatenate(levels)

    def close(self) -> None:
        self._transport.close()

    @property
    def _has_replicas(self) -> bool:
        return isinstance(self._transport, Replicas)

    def _send(
        self, method: Any, request: Any, prefix: bytes = b"", post: Post | None = None
    ) -> NDArray[np.float64]:
        """The answer of a log-probability method: probabilities [rows or prompts, n_levels].

        post: sends the request in place of the transport's, and it is not counted.
        """
        answer, raw = self._post_request(method, request, prefix, post)
        if isinstance(method, PromptLogprobTokenIds) and answer.prompt_token_id_logprobs is None:
            # Rows that the prefix cache holds have no probabilities, so the prompt is computed again.
            method = PromptLogprobTokenIds(read_cache=False)
            answer, raw = self._post_request(method, request, prefix, post)
        try:
            levels: NDArray[np.float64] = method.read(answer, request)
        except ValueError as error:
            raise unusable(str(error), raw) from error
        return levels

    def _post_request(self, method: Any, request: Any, prefix: bytes, post: Post | None) -> tuple[Any, bytes]:
        body, n_tokens = method.body(request), method.n_prompt_tokens(request)
        if post is not None:
            return post(method.path, {"model": self.model, **body}, method.decoder)
        return self._post(
            method.path,
            body,
            method.decoder,
            n_tokens,
            prefix=prefix,
            reports_cached_tokens=method.reports_cached_tokens,
        )

    def _post(
        self,
        path: str,
        body: Mapping[str, Any],
        decoder: msgspec.json.Decoder[Answer],
        n_prompt_tokens: int,
        *,
        prefix: bytes = b"",
        reports_cached_tokens: bool = True,
    ) -> tuple[Answer, bytes]:
        """POST a request of so many prompt tokens, and count it; the answer, decoded and raw.

        prefix: what the request has in common with others: see routing.py. Raises LlmReplyError if the server
        counts another number of prompt tokens.
        """
        answer, raw = self._transport.post(path, {"model": self.model, **body}, decoder, prefix)
        usage = getattr(answer, "usage", None) or ReportedUsage()
        cached_tokens = usage.cached_tokens if reports_cached_tokens else None
        self.usage.add(n_prompt_tokens, cached_tokens, usage.completion_tokens)
        if usage.prompt_tokens not in (None, n_prompt_tokens):
            reason = (
                f"the server read {usage.prompt_tokens} prompt tokens of {n_prompt_tokens} that were sent"
            )
            raise unusable(reason, raw)
        return answer, raw

    def _check_length(self, n_tokens: int) -> None:
        if self.context_length is not None and n_tokens > self.context_length:
            reason = f"{n_tokens:,} tokens, and {self.model} reads {self.context_length:,}"
            raise LlmReplyError(Status.CONTEXT_TOO_LONG, reason)


def _choice_of(send: Any, server: Server, request: LogprobRequest | NextTokenRequest) -> Any:
    """The method that a server chooses for the request. send: sends by a method to it."""
    choice = MethodChoice(send, server.url)
    if isinstance(request, NextTokenRequest):
        return choice.for_next_tokens(request)
    return choice.for_rows(request, server.find_cache_block_size())


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
