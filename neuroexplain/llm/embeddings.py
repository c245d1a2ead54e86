"""Vectors of texts by an OpenAI-compatible server's /v1/embeddings. Its answers are checked."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urldefrag, urlsplit

import httpx
import msgspec
import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import EngineError, LlmReplyError
from neuroexplain.llm.server_list import normalize_url
from neuroexplain.llm.transport import Transport

TEXTS_A_REQUEST = 128
IN_FLIGHT = 1
MAX_WAIT = 60.0  # seconds to go on trying while the server is away: a person waits for the answer


class Embedding(msgspec.Struct, frozen=True):
    index: int
    embedding: list[float]


class EmbeddingAnswer(msgspec.Struct, frozen=True):
    data: list[Embedding]


class ModelCard(msgspec.Struct, frozen=True):
    id: str


class ModelList(msgspec.Struct, frozen=True):
    data: list[ModelCard]


_ANSWER: msgspec.json.Decoder[EmbeddingAnswer] = msgspec.json.Decoder(EmbeddingAnswer)
_MODELS: msgspec.json.Decoder[ModelList] = msgspec.json.Decoder(ModelList)


class ServerEmbedder:
    """One embedding model of one server."""

    revision = None

    def __init__(self, url: str, *, api_key: str | None = None, max_wait: float = MAX_WAIT) -> None:
        """url: with or without /v1 or /v1/embeddings; `URL#MODEL` if the server has several models.

        Raises EngineError if the URL lists no models, several, or not the one that is named.
        """
        address, name = urldefrag(url)
        if urlsplit(address).scheme not in ("http", "https") or "@" in urlsplit(address).netloc:
            raise EngineError(
                f"--embedding takes a URL like http://127.0.0.1:8000/v1, without a name or key in it. "
                f"Its key: NEUROEXPLAIN_API_KEY. Found: {urlsplit(address).scheme}://..."
            )
        self.url = normalize_url(address.rstrip("/").removesuffix("/embeddings"))
        root = self.url.removesuffix("/v1")
        self._transport = Transport(root, api_key=api_key, max_wait=max_wait, in_flight=IN_FLIGHT)
        try:
            self._name = self._choose_model(name)
        except BaseException:
            self._transport.close()
            raise
        self.model = f"server {self._name}"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The texts' vectors, float32 [n, dimensions]. Raises EngineError if one is missing or not finite."""
        parts = [
            self._embed(texts[first : first + TEXTS_A_REQUEST])
            for first in range(0, len(texts), TEXTS_A_REQUEST)
        ]
        if len({part.shape[1] for part in parts}) > 1:
            raise EngineError(f"{self._name} at {self.url} gave vectors of different lengths.")
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    def close(self) -> None:
        self._transport.close()

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        body = {"model": self._name, "input": list(texts), "encoding_format": "float"}
        try:
            answer, _ = self._transport.post("/v1/embeddings", body, _ANSWER)
        except LlmReplyError as error:
            raise EngineError(
                f"{self._name} at {self.url} did not embed: {error}\n"
                "Is it an embedding model? vLLM serves one with  vllm serve NAME --runner pooling"
            ) from error
        rows = {row.index: row.embedding for row in answer.data}
        lengths = {len(row) for row in rows.values()}
        if sorted(rows) != list(range(len(texts))) or len(answer.data) != len(rows) or len(lengths) != 1:
            raise EngineError(
                f"{self._name} at {self.url} was asked for {len(texts)} vectors and gave {len(answer.data)}, "
                f"of {len(lengths)} lengths."
            )
        with np.errstate(over="ignore"):
            vectors = np.array([rows[i] for i in range(len(texts))], np.float64).astype(np.float32)
        if not vectors.size or not np.isfinite(vectors).all():
            raise EngineError(f"{self._name} at {self.url} gave a vector that is empty or not finite.")
        return vectors

    def _choose_model(self, name: str) -> str:
        try:
            models = _MODELS.decode(self._transport.get("/v1/models").content)
        except (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EngineError(
                f"There is no server that lists models at {self.url}/models{self._transport.route}: {error}"
            ) from error
        names = [card.id for card in models.data]
        if (not name and len(names) == 1) or name in names:
            return name or names[0]
        listed = ", ".join(names) or "no model"
        raise EngineError(
            f"The server at {self.url} serves {listed}. Name one:  --embedding {self.url}#MODEL"
        )
