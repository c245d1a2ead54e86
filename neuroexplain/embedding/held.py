"""The vectors of the runs that a process searches by meaning."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from neuroexplain.embedding.base import Embedder
from neuroexplain.runs import Run
from neuroexplain.store.engine import Store

if TYPE_CHECKING:
    from neuroexplain.embedding.index import MeaningIndex
    from neuroexplain.embedding.ranking import Similarities

N_RUNS = 2  # whose vectors stay in memory: 240 MB for 917,000 explanations and 256 dimensions


class MeaningIndexes:
    """Searches runs of one store by one embedder, which is opened at the first search. For many threads."""

    def __init__(self, store: Store, open_embedder: Callable[[], Embedder]) -> None:
        self._store, self._open_embedder = store, open_embedder
        self._embedder: Embedder | None = None
        self._indexes: dict[int, MeaningIndex] = {}
        self._lock = threading.Lock()

    def similarities(self, run: Run, text: str) -> Similarities:
        """The cosines of a run's explanations, as they are stored now, with a text.

        Raises NeuroexplainError: see MeaningIndex.
        """
        index = self._find_index(run)
        index.refresh()
        return index.similarities(text)

    def _find_index(self, run: Run) -> MeaningIndex:
        from neuroexplain.embedding.index import MeaningIndex

        with self._lock:
            if self._embedder is None:
                self._embedder = self._open_embedder()
            index = self._indexes.pop(run.id, None) or MeaningIndex(self._store, run, self._embedder)
            self._indexes[run.id] = index  # the last one is the one that was searched last
            for run_id in list(self._indexes)[:-N_RUNS]:
                del self._indexes[run_id]
        return index
