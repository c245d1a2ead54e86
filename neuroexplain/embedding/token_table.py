"""A text's vector as the mean of its tokens' vectors, from the table that the package wordllama ships.

The table and its tokenizer are read from the package's files. The package itself is not imported: it would
set up logging, read its training configurations and bring a client that downloads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neuroexplain.embedding.base import DEFAULT_EMBEDDING
from neuroexplain.errors import NeuroexplainError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TABLE = "weights/l2_supercat_256.safetensors"
TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"
TEXTS_AT_ONCE = 1_024  # bounds memory: 1 kB a token


class TokenTable:
    """A vector for each token of a tokenizer."""

    def __init__(self, model: str, tokenizer: Tokenizer, table: NDArray[np.floating]) -> None:
        """table: [tokens, dimensions]."""
        self.model = model
        self._tokenizer, self._table = tokenizer, table
        tokenizer.no_padding()
        tokenizer.no_truncation()

    @classmethod
    def load(cls) -> TokenTable:
        """The table of the installed package. Raises NeuroexplainError if it is not installed or changed."""
        spec = find_spec("wordllama")
        if spec is None or spec.origin is None:
            raise NeuroexplainError(
                "Search by meaning needs the vectors of the package wordllama, and it is not installed.\n"
                "Install it:  pip install 'neuroexplain[search]'   "
                "or name another:  --embedding NAME (sentence-transformers) | URL (a server)"
            )
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        folder = Path(spec.origin).parent
        if not (folder / TABLE).is_file() or not (folder / TOKENIZER).is_file():
            raise NeuroexplainError(
                f"The installed wordllama {version('wordllama')} has no {TABLE} or no {TOKENIZER}.\n"
                "Install a version that has them:  pip install 'neuroexplain[search]'"
            )
        (table,) = load_file(folder / TABLE).values()
        model = f"{DEFAULT_EMBEDDING} {version('wordllama')}, {table.shape[1]} dimensions"
        return cls(model, Tokenizer.from_file(str(folder / TOKENIZER)), table)

    @cached_property
    def revision(self) -> str:
        """The sha256 of the table's bytes and the tokenizer's JSON."""
        digest = hashlib.sha256(np.ascontiguousarray(self._table).tobytes())
        digest.update(self._tokenizer.to_str().encode())
        return digest.hexdigest()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The means of the tokens' vectors, float32 [n, dimensions]; zeros for a text without a token."""
        vectors = np.zeros((len(texts), self._table.shape[1]), np.float32)
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            batch = list(texts[first : first + TEXTS_AT_ONCE])
            token_ids = [e.ids for e in self._tokenizer.encode_batch(batch, add_special_tokens=False)]
            lengths = np.array([len(ids) for ids in token_ids])
            filled = np.flatnonzero(lengths)
            if not filled.size:
                continue
            rows = np.concatenate([token_ids[i] for i in filled]).astype(np.int64)
            begins = np.cumsum(lengths[filled]) - lengths[filled]
            sums = np.add.reduceat(self._table[rows].astype(np.float32), begins, axis=0)
            vectors[first + filled] = sums / lengths[filled, None].astype(np.float32)
        return vectors
