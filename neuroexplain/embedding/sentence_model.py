"""A model of sentence-transformers in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import NeuroexplainError


class SentenceModel:
    """A model by its name on the hub, or by its folder."""

    def __init__(self, name: str) -> None:
        """Raises NeuroexplainError if the package is missing or the model cannot be loaded."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise NeuroexplainError(
                f"--embedding {name} is a model of sentence-transformers, which is not installed.\n"
                "Install it:  pip install sentence-transformers   or leave --embedding out."
            ) from error
        try:
            self._model = SentenceTransformer(name)
        except (OSError, ValueError) as error:
            raise NeuroexplainError(
                f"--embedding {name} cannot be loaded: {error}\n"
                "Give a name on the hub, a folder, or the URL of a server."
            ) from error
        self.model = f"sentence-transformers {name}"

    @cached_property
    def revision(self) -> str:
        """The sha256 of its weights, as float32, by their names."""
        digest = hashlib.sha256()
        for name, weights in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(weights.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The texts' vectors, float32 [n, dimensions]. Raises NeuroexplainError if one is not finite."""
        encoded = self._model.encode(list(texts), show_progress_bar=False, convert_to_numpy=True)
        vectors = np.asarray(encoded, np.float32)
        if not np.isfinite(vectors).all():
            raise NeuroexplainError(f"{self.model} gave a vector that is not finite. Name another model.")
        return vectors
