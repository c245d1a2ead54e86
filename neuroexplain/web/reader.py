"""What routes read from the store. What every page needs is computed once and kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

from neuroexplain.lookup import Vocabulary, find_explanations, load_page
from neuroexplain.probe import Probe
from neuroexplain.runs import QueryRow, Run, UnitPage
from neuroexplain.selection import parse_layers
from neuroexplain.store.engine import Store
from neuroexplain.store.runs import count_explanations, count_units, load_run
from neuroexplain.store.search import list_headline_scores
from neuroexplain.units import UnitId
from neuroexplain.web.charts import Chart, score_charts

PAGE_SIZE = 50  # results of a search
SUMMARY_SECONDS = 60.0  # after which the start page's summary is computed anew
VOCABULARIES = 2  # runs whose vocabulary stays in memory, some 20 MB each

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers, for the start page."""

    charts: tuple[Chart, ...]
    n_explanations: Sequence[tuple[str, str, str, int]]  # explainer, model, status and their number
    n_units: int


class StoreReader:
    """An open store, and the model that reads texts of a reader's own; None: texts are refused."""

    def __init__(self, store: Store, probe: Probe | None) -> None:
        self.store, self.probe = store, probe
        self._vocabulary = serialized(lru_cache(VOCABULARIES)(self._load_vocabulary))
        self._summary = serialized(lru_cache(maxsize=8)(self._load_summary))

    def load_page(self, run_id: int | None, unit: UnitId) -> UnitPage:
        """All about one unit. Raises NotInStore."""
        run = load_run(self.store, run_id)
        return load_page(self.store, run, unit, self._vocabulary(run.id))

    def search(
        self, run: Run, page: int, *, text: str | None, layers: str | None, **filters: Any
    ) -> tuple[list[QueryRow], bool]:
        """One page of explanations, counted from 0, and whether there are more.

        `layers` is written `15` or `3-5`; the further filters are those of find_explanations. Raises
        NeuroexplainError.
        """
        rows = find_explanations(
            self.store,
            run,
            text=text or None,
            layers=parse_layers(layers) if layers and layers.strip() else None,
            limit=PAGE_SIZE + 1,
            offset=page * PAGE_SIZE,
            **filters,
        )
        return rows[:PAGE_SIZE], len(rows) > PAGE_SIZE

    def summary(self, run: Run) -> Summary:
        """At most SUMMARY_SECONDS old."""
        return self._summary(run.id, int(time.monotonic() / SUMMARY_SECONDS))

    def _load_vocabulary(self, run_id: int) -> Vocabulary:
        return Vocabulary.load(self.store, run_id)

    def _load_summary(self, run_id: int, _age: int) -> Summary:
        return summarize(self.store, load_run(self.store, run_id))


def summarize(store: Store, run: Run) -> Summary:
    """Reads every headline score of the run."""
    return Summary(
        charts=score_charts(list_headline_scores(store, run)),
        n_explanations=count_explanations(store, run.id),
        n_units=sum(count_units(store, run.id).values()),
    )


def serialized(function: Callable[P, T]) -> Callable[P, T]:
    """The function under a lock.

    Requests that need the same cached value at once wait for one of them to compute it; without the lock each
    would compute it.
    """
    lock = threading.Lock()

    @wraps(function)
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        with lock:
            return function(*args, **kwargs)

    return locked
