"""One server as it is when it is connected: which model it serves, by which version, and how to reach it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any, TypeVar

import httpx
import msgspec

from neuroexplain.errors import EngineError, LlmReplyError
from neuroexplain.llm.gate import FIRST_PAUSE
from neuroexplain.llm.method_choice import PROBES
from neuroexplain.llm.server_list import normalize_url
from neuroexplain.llm.transport import FAULT_OF_STATUS, Failure, Transport

ENGINE_OPTIONS = (
    "Give an engine:  --server URL (a running vLLM server) | --vllm MODEL (start one) | "
    "--local MODEL (in this process)"
)

Answer = TypeVar("Answer")


class ServerAway(EngineError):
    """No server answers at the URL now. Later there may be one."""


class Server:
    """One model of one server, and the transport of the requests to it."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        max_wait: float = 600.0,
        in_flight: int = 64,
        exit_report: Callable[[], str | None] | None = None,
    ) -> None:
        """Connect to the server and choose one of its models. For the arguments see ServerEngine.

        Raises EngineError if the URL lists no models or not this one, and ServerAway if nothing answers.
        """
        self.url = normalize_url(url)
        root = self.url.removesuffix("/v1")
        self.transport = Transport(
            root, api_key=api_key, max_wait=max_wait, in_flight=in_flight, exit_report=exit_report
        )
        try:
            card = self._choose_model(self._list_models(), model)
        except BaseException as error:
            self.transport.close()
            report = exit_report() if exit_report is not None and isinstance(error, EngineError) else None
            if report is not None:
                raise EngineError(report) from error
            raise
        self.model: str = card["id"]
        one_token = {"model": self.model, "prompt": [0], "max_tokens": 1}
        self.transport.one_token_request = ("/v1/completions", msgspec.json.encode(one_token))
        self.version = self._find_version()
        context_length = card.get("max_model_len")
        is_length = isinstance(context_length, int) and context_length > 0
        self.context_length: int | None = context_length if is_length else None
        self.model_folder = card.get("root")

    def difference(self, first: Server) -> str | None:
        """How the answers of this server may differ from those of `first`; None if they may not.

        A folder of the model may lie elsewhere on each machine, but bears the same name. vLLM does not tell a
        model's revision; the hub's cache has it as the folder's name.
        """
        facts: list[tuple[str, Any, Any]] = [
            ("serves {}", self.model, first.model),
            (f"serves {self.model} from {{!r}}", _folder_name(self), _folder_name(first)),
            ("reads {} tokens", self.context_length, first.context_length),
            ("runs {}", self.version, first.version),
        ]
        for text, own, other in facts:
            if own != other:
                return f"{text.format(own)}, and {first.url} {text.format(other)}"
        return None

    def post_now(
        self, path: str, body: Mapping[str, Any], decoder: msgspec.json.Decoder[Answer]
    ) -> tuple[Answer, bytes]:
        """POST a request outside of the run's own; its answer, decoded and raw.

        Raises LlmReplyError if the server refuses it, and ServerAway if there is no answer after some tries.
        """
        content, reason = msgspec.json.encode(body), ""
        for _ in range(PROBES):
            outcome = self.transport.send(path, content, decoder)
            if isinstance(outcome, LlmReplyError):
                raise outcome
            if not isinstance(outcome, Failure):
                return outcome
            reason = outcome.reason
            time.sleep(FIRST_PAUSE)
        raise ServerAway(f"The server at {self.url} does not answer ({reason}).")

    def find_cache_block_size(self) -> float | None:
        """Tokens in a block of the prefix cache: infinite without a cache, None if unknown."""
        try:
            metrics = self._get("/metrics").text
        except (httpx.HTTPError, RuntimeError):  # RuntimeError: the server was left out meanwhile
            return None
        labels = re.search(r"^vllm:cache_config_info\{(.*)\}", metrics, re.MULTILINE)
        block_size = re.search(r'\bblock_size="(\d+)"', labels[1]) if labels is not None else None
        if labels is None or block_size is None:
            return None
        return float(block_size[1]) if 'enable_prefix_caching="True"' in labels[1] else math.inf

    def _list_models(self) -> list[dict[str, Any]]:
        try:
            response = self._get("/v1/models")
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            UnicodeError,
        ) as error:  # UnicodeError: an impossible host name
            route = self.transport.route
            raise ServerAway(
                f"There is no server at {self.url}{route}: {error}.\n{ENGINE_OPTIONS}"
            ) from error
        status = response.status_code
        if status in (401, 403):
            raise EngineError(
                f"The server at {self.url}{self.transport.route} wants a key (status {status}). "
                "Set NEUROEXPLAIN_API_KEY."
            )
        if status == 407:
            raise EngineError(
                f"The proxy wants a password (status {status}){self.transport.route}. Put it into the "
                "proxy's URL, or name the server in NO_PROXY."
            )
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            models = response.json()["data"]
            # encode raises ValueError for half a surrogate pair, which JSON can hold and no model's name does
            if response.is_success and models and all(card["id"].encode() for card in models):
                return list(models)
        kind = ServerAway if status in FAULT_OF_STATUS else EngineError
        raise kind(
            f"The server at {self.url}{self.transport.route} lists no models (status {status}).\n"
            f"{ENGINE_OPTIONS}"
        )

    def _get(self, path: str) -> httpx.Response:
        """A page of the server; a busy server is asked again. Raises httpx.HTTPError or httpx.InvalidURL."""
        for _ in range(PROBES - 1):
            with suppress(httpx.ReadError, httpx.RemoteProtocolError):
                response = self.transport.get(path)
                if response.status_code not in FAULT_OF_STATUS:
                    return response
            time.sleep(FIRST_PAUSE)
        return self.transport.get(path)

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


def _folder_name(server: Server) -> Any:
    """What the server serves the model from: a name, or a folder's own name."""
    folder = server.model_folder
    return PurePosixPath(folder).name if isinstance(folder, str) and folder.startswith("/") else folder
