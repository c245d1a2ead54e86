"""An OpenAI-compatible vLLM server over HTTP: what it serves, and its answers, checked before use."""

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
    BY_PREFERENCE,
    NEUTRAL,
    AtNext,
    AtRows,
    Question,
    Spent,
    TopOfPrompt,
    Way,
)
from neuroexplain.llm.engine import Message, Reply, Usage, chat_token_ids, opened_thought
from neuroexplain.llm.gate import FIRST_PAUSE
from neuroexplain.llm.transport import FAULTS, KEPT, Refused, Transport, unusable

THREE_WAYS = "Give an engine:  --server URL (a running vLLM server) | --vllm MODEL (start one) | --local MODEL (in this process)"
PROBES = 3  # of a way that answers what cannot be true, before it counts as not offered
NEAR = 0.05  # by how much two ways may differ in a probability: in bfloat16 a server repeats itself to 0.01 or so


class TextChoice(msgspec.Struct, frozen=True):
    text: str
    finish_reason: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class TextAnswer(msgspec.Struct, frozen=True):
    choices: list[TextChoice]
    usage: Spent | None = None


_TEXT: msgspec.json.Decoder[TextAnswer] = msgspec.json.Decoder(TextAnswer)
Answer = TypeVar("Answer")


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
        in_flight: int = 64,
        fate: Callable[[], str | None] | None = None,
    ) -> None:
        """Connect, and find out what is served.

        max_wait: seconds that a run goes on trying while the server is away or busy. in_flight: requests at a time at most;
        how many there are is found out on the way. fate: of a server of our own, how it ended, None while it runs. Raises
        EngineError where nothing lists models at the URL, or the model asked for is not among them.
        """
        self.url = _base_url(url)
        self.in_flight = in_flight
        self.used = Usage()
        root = self.url.removesuffix("/v1")
        self._transport = Transport(root, api_key=api_key, max_wait=max_wait, in_flight=in_flight, fate=fate)
        self._finding = threading.Lock()
        self._way: Way | None = None
        try:
            card = self._choose(self._list_models(), model)
        except BaseException as error:
            self._transport.close()
            ended = fate() if fate is not None and isinstance(error, EngineError) else None
            if ended is not None:
                raise EngineError(ended) from error
            raise
        self.model: str = card["id"]
        one_token = {"model": self.model, "prompt": [0], "max_tokens": 1}
        self._transport.smallest = ("/v1/completions", msgspec.json.encode(one_token))
        self.revision: str | None = None
        self._server_version = self._find_version()
        longest = card.get("max_model_len")
        self.context_length: int | None = longest if isinstance(longest, int) and longest > 0 else None
        self._root = card.get("root")

    @property
    def version(self) -> str:
        """The server's, and once it is found out the way in which it gives distributions."""
        return self._server_version if self._way is None else f"{self._server_version}, {self._way.name}"

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        for name in (self._root, self.model):
            with suppress(OSError, ValueError):  # also of a name too long for a folder's
                if isinstance(name, str) and (Path(name).is_dir() or name.count("/") == 1):
                    return AutoTokenizer.from_pretrained(name)
        raise EngineError(
            f"The tokenizer of {self.model} is needed to build prompts, and neither a folder {self._root!r} nor a hub model of "
            "that name was found. Serve the model under its hub name, or run where its folder is."
        )

    def generate(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float, seed: int
    ) -> Reply:
        began = time.perf_counter()
        ids = chat_token_ids(self.tokenizer, messages)
        self._check_length(len(ids) + max_tokens)
        asked = {"prompt": ids, "max_tokens": max_tokens, **NEUTRAL, "temperature": temperature, "seed": seed}
        answer, raw = self._post("/v1/completions", asked, _TEXT, len(ids))
        if len(answer.choices) != 1:
            raise unusable(f"{len(answer.choices)} choices for one prompt", raw)
        choice = answer.choices[0]
        if choice.finish_reason not in (None, "stop", "length"):
            raise unusable(f"the server ended it for another reason: {choice.finish_reason!r}", raw)
        if len(choice.text) > KEPT:
            raise unusable(
                f"the answer has {len(choice.text):,} characters, of at most {max_tokens} tokens", raw
            )
        completion = answer.usage.completion_tokens if answer.usage is not None else None
        if completion is not None and not 0 <= completion <= max_tokens:
            raise unusable(f"{completion} tokens were generated, and at most {max_tokens} asked for", raw)
        if not choice.text.strip():
            thought = choice.reasoning or choice.reasoning_content
            why = "holds only reasoning" if thought else "is empty"
            cut = f" after {max_tokens} tokens" if choice.finish_reason == "length" else ""
            raise LlmReplyError(
                Status.PARSE_ERROR, f"the answer {why}{cut}", raw.decode("utf-8", "replace")[:KEPT]
            )
        text = opened_thought(self.tokenizer, ids) + choice.text
        return Reply(text, len(ids), completion or 0, time.perf_counter() - began)

    def level_distributions(
        self,
        token_ids: Sequence[int],
        rows: Sequence[int],
        level_token_ids: Sequence[Sequence[int]],
        shared: int = 0,
    ) -> NDArray[np.float64]:  # vLLM's prefix cache finds what is shared
        self._check_length(len(token_ids) + 1)
        if len(rows) == 0:
            return np.zeros((0, len(level_token_ids)))
        return self._ask(
            self.find_way(token_ids, rows, level_token_ids), Question(token_ids, rows, level_token_ids)
        )

    def find_way(
        self, token_ids: Sequence[int], rows: Sequence[int], level_token_ids: Sequence[Sequence[int]]
    ) -> Way:
        """The best way in which this server gives distributions, found out once with a short piece of this prompt.

        A way must answer what is possible, and must agree with the most likely tokens where the server gives those. Exact
        ways go first, but for cut prompts where the server's cache has such large blocks that it would compute more than
        the whole prompt. Raises EngineError where no way works.
        """
        with self._finding:
            if self._way is None:
                self._way = self._probe(
                    _short_question(token_ids, rows, level_token_ids), len(rows), len(token_ids)
                )
            return self._way

    def close(self) -> None:
        self._transport.close()

    def _ask(self, way: Way, question: Question) -> NDArray[np.float64]:
        answer, raw = self._post(way.path, way.asked(question), way.decoder, way.n_prompt_tokens(question))
        if (
            isinstance(way, AtRows) and answer.prompt_token_id_logprobs is None
        ):  # the rows themselves were cached
            way = AtRows(cached=False)
            answer, raw = self._post(
                way.path, way.asked(question), way.decoder, way.n_prompt_tokens(question)
            )
        try:
            return way.read(answer, question)
        except ValueError as error:
            raise unusable(str(error), raw) from error

    def _post(
        self, path: str, asked: Mapping[str, Any], decoder: msgspec.json.Decoder[Answer], n_prompt_tokens: int
    ) -> tuple[Answer, bytes]:
        """An answer to exactly the tokens that were sent, and the answer as it came."""
        answer, raw = self._transport.post(path, {"model": self.model, **asked}, decoder)
        spent = getattr(answer, "usage", None) or Spent()
        cached = None if path == AtNext.path and "logprob_token_ids" in asked else spent.cached_tokens
        self.used.add(n_prompt_tokens, cached, spent.completion_tokens)
        if spent.prompt_tokens is not None and spent.prompt_tokens != n_prompt_tokens:
            raise unusable(
                f"the server read {spent.prompt_tokens} prompt tokens of {n_prompt_tokens} that were sent",
                raw,
            )
        return answer, raw

    def _probe(self, question: Question, n_rows: int, n_tokens: int) -> Way:
        refused: dict[str, str] = {}
        top = next(
            (found for k in (20, 5) if (found := self._try(TopOfPrompt(k), question, refused)) is not None),
            None,
        )
        ways = list(BY_PREFERENCE)
        block = self._cache_block()
        if top is not None and block is not None and n_rows * (block + 1) / 2 > n_tokens:
            ways.sort(
                key=lambda way: isinstance(way, AtNext)
            )  # to compute more than the whole prompt: the last resort
        for way in ways:
            found = self._try(way, question, refused)
            if found is not None and (top is None or _agree(found, top)):
                return way
            refused.setdefault(way.name, "its answers differ from the most likely tokens")
        said = "".join(f"\n  {name}: {why}" for name, why in refused.items())
        raise EngineError(
            f"The server at {self.url} gives no probabilities of chosen tokens, which --simulator digits needs:{said}\n"
            "Start vLLM 0.32 or newer (with a GPU best with --enable-scale-out), give another server for the simulation with "
            "--simulator-server, or take --simulator lexical."
        )

    def _cache_block(self) -> float | None:
        """Tokens in a block of the server's prefix cache, infinite without a cache; None where it does not say."""
        try:
            said = self._get("/metrics").text
        except httpx.HTTPError:
            return None
        labels = re.search(r"^vllm:cache_config_info\{(.*)\}", said, re.MULTILINE)
        block = re.search(r'\bblock_size="(\d+)"', labels[1]) if labels is not None else None
        if labels is None or block is None:
            return None
        return float(block[1]) if 'enable_prefix_caching="True"' in labels[1] else math.inf

    def _try(self, way: Way, question: Question, refused: dict[str, str]) -> NDArray[np.float64] | None:
        """The way's answer; None, and why in `refused`, where the server does not give it."""
        for _ in range(PROBES):
            try:
                return self._ask(way, question)
            except LlmReplyError as error:
                refused[way.name] = error.reason
                if isinstance(error, Refused):
                    break
        return None

    def _list_models(self) -> list[dict[str, Any]]:
        try:
            answer = self._get("/v1/models")
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            UnicodeError,
        ) as error:  # UnicodeError: a host that cannot be one
            raise EngineError(f"There is no server at {self.url}: {error}.\n{THREE_WAYS}") from error
        if answer.status_code in (401, 403):
            raise EngineError(
                f"The server at {self.url} wants a key ({answer.status_code}). Set NEUROEXPLAIN_API_KEY."
            )
        try:
            models = answer.json()["data"]
            if answer.is_success and models and all(card["id"].encode() for card in models):
                return list(models)
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ):  # ValueError: also half a character
            pass
        raise EngineError(
            f"What answers at {self.url} lists no models (status {answer.status_code}).\n{THREE_WAYS}"
        )

    def _get(self, path: str) -> httpx.Response:
        """A page of the server; asked for again where it is there but busy. Raises httpx.HTTPError, httpx.InvalidURL."""
        for _ in range(PROBES - 1):
            with suppress(httpx.ReadError, httpx.RemoteProtocolError):
                answer = self._transport.get(path)
                if answer.status_code not in FAULTS:
                    return answer
            time.sleep(FIRST_PAUSE)
        return self._transport.get(path)

    def _choose(self, models: list[dict[str, Any]], wanted: str | None) -> dict[str, Any]:
        names = [card["id"] for card in models]
        if wanted is None and len(models) == 1:
            return models[0]
        if wanted is None:
            raise EngineError(
                f"The server at {self.url} serves {', '.join(names)}. Name one:  --model {names[0]}"
            )
        if wanted not in names:
            raise EngineError(
                f"The server at {self.url} does not serve {wanted!r}: it serves {', '.join(names)}."
            )
        return models[names.index(wanted)]

    def _find_version(self) -> str:
        try:
            answer = self._get("/version")
            return f"vllm {answer.json()['version']}" if answer.is_success else "unknown"
        except (httpx.HTTPError, ValueError, KeyError, TypeError, RecursionError):
            return "unknown"

    def _check_length(self, n_tokens: int) -> None:
        if self.context_length is not None and n_tokens > self.context_length:
            raise LlmReplyError(
                Status.CONTEXT_TOO_LONG,
                f"{n_tokens:,} tokens, and {self.model} reads {self.context_length:,}",
            )


def _short_question(
    token_ids: Sequence[int], rows: Sequence[int], level_token_ids: Sequence[Sequence[int]]
) -> Question:
    """A piece of a prompt around its first rows; each chosen token, and what follows the rows, by itself."""
    first, last = max(0, rows[0] - 32), min(rows[:3][-1] + 2, len(token_ids))
    shown = rows[:3]
    following = {token_ids[row + 1] for row in shown}
    chosen = sorted(following | {token_id for ids in level_token_ids for token_id in ids})
    return Question(
        token_ids[first:last], [row - first for row in shown], [[token_id] for token_id in chosen]
    )


def _agree(found: NDArray[np.float64], top: NDArray[np.float64]) -> bool:
    """Whether probabilities of the same tokens agree wherever the token is among the most likely."""
    return bool((np.abs(found - top)[top > 0] < NEAR).all())


def _base_url(url: str) -> str:
    url = url.strip().rstrip("/").removesuffix("/models")
    if "://" not in url:
        url = f"http://{url}"
    return url if url.endswith("/v1") else f"{url}/v1"
