"""Embedding: how similar are explanation and window by their vectors? It asks no LLM.

The windows are those of detection, and the value of a window is the cosine of its vector and that of the
explanation. A cosine is no probability, so there are AUROC and AUPRC alone: nothing is said at a threshold.
An explanation that talks about text ("the beginning of a sentence") is not similar to text of that kind: this
scorer is for topics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.embedding.base import Embedder
from neuroexplain.errors import EngineError, LlmReplyError
from neuroexplain.evidence import Status, Tokens, texts_in_context
from neuroexplain.runs import Run
from neuroexplain.runtime.single_flight import SingleFlight
from neuroexplain.scorers._windows import WindowScorer, require_samples
from neuroexplain.scorers.base import NoEngine, OpenScorer, PredictedTrial, Predictions
from neuroexplain.scoring.population_scores import AUPRC
from neuroexplain.scoring.side_evidence import Trial

VECTORS_KEPT = 20_000  # of texts, 1 kB each by the default table: the random windows are those of every unit

Vector = NDArray[np.float32]


class EmbeddingEngine(NoEngine):
    """An embedder in the place of an engine: its name and the hash of its weights."""

    engine = "embedding"

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder.model)
        self.revision = embedder.revision


class Embedding(WindowScorer):
    """The similarity of vectors; no LLM is asked, and neither place nor word order is seen."""

    name = "embedding"
    needs = "vectors"
    metrics = (AUPRC,)
    codec = "cosines"
    asks_per_record = False

    def open(self, engine: Any, run: Run) -> OpenEmbedding:
        """Raises NeuroexplainError for a run without sampled records, and if the embedder embeds nothing."""
        require_samples(self.name, run)
        return OpenEmbedding(engine)


class OpenEmbedding(OpenScorer):
    """The scorer with its embedder."""

    def __init__(self, embedder: Embedder) -> None:
        """Raises NeuroexplainError if the embedder gives no vector for a simple text."""
        embedder.embed(["a text"])
        self.scorer = SCORER
        self.engine = EmbeddingEngine(embedder)
        self._embedder = embedder
        self._vectors: SingleFlight[Vector] = SingleFlight(VECTORS_KEPT)

    def run(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> Predictions:
        """The cosine of each window with the explanation; NaN where either has no vector."""
        texts = [plain_text(explanation), *(window_of(trial, tokens) for trial in trials)]
        own, *windows = self._unit_vectors(texts)
        cosines = [float(own.astype(np.float64) @ window) for window in windows]
        return Predictions([PredictedTrial(np.array([np.clip(c, -1, 1)], np.float32)) for c in cosines])

    def _unit_vectors(self, texts: Sequence[str]) -> list[Vector]:
        """The texts' vectors, scaled to the length 1; NaN for a text without a vector."""

        def embed(missing: list[str]) -> list[Vector]:
            try:
                vectors = self._embedder.embed([text or " " for text in missing])
            except EngineError as error:  # an answer that cannot be used; a lost server is EngineLost
                raise LlmReplyError(Status.LLM_ERROR, str(error).splitlines()[0]) from error
            lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
            lengths[(lengths == 0) | np.array([not text for text in missing])] = np.nan
            return list((vectors / lengths[:, None]).astype(np.float32))

        vectors, _ = self._vectors.get_many(texts, embed)
        return vectors


def window_of(trial: Trial, tokens: Tokens) -> str:
    """A window's text."""
    return plain_text("".join(texts_in_context([tokens[token_id] for token_id in trial.token_ids])))


def plain_text(text: str) -> str:
    """A text on one line, in characters that every tokenizer takes."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


SCORER = Embedding()
