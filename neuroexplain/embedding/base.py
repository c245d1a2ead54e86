"""What turns texts into vectors: the table that the extra `search` installs, a model, or a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_EMBEDDING = "wordllama"


class Embedder(Protocol):
    """A model that embeds texts."""

    @property
    def model(self) -> str:
        """The name under which its vectors are stored; models of different vectors have different names."""

    @property
    def revision(self) -> str | None:
        """The sha256 of its weights; None if they are a server's."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The texts' vectors, float32 [n, dimensions], of any length; a text without a token may have zeros.

        Raises NeuroexplainError if a text gets no vector or one that is not finite.
        """


def open_embedder(name: str = DEFAULT_EMBEDDING, api_key: str | None = None) -> Embedder:
    """The embedder of a name: `wordllama`, the URL of a server, or a model of sentence-transformers.

    api_key is the server's. Raises NeuroexplainError if a package is missing, the model cannot be loaded, or
    the server does not list it.
    """
    if name == DEFAULT_EMBEDDING:
        from neuroexplain.embedding.token_table import TokenTable

        return TokenTable.load()
    if "://" in name:
        from neuroexplain.llm.embeddings import ServerEmbedder

        return ServerEmbedder(name, api_key=api_key)
    from neuroexplain.embedding.sentence_model import SentenceModel

    return SentenceModel(name)
