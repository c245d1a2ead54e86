"""What routes read from the store. Vocabularies and summaries, which many pages need, are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neuroexplain.comparing import compare, load_rows
from neuroexplain.comparison import ComparedRow, Comparison
from neuroexplain.embedding.base import Embedder, open_embedder
from neuroexplain.embedding.held import MeaningIndexes
from neuroexplain.lookup import Vocabulary, find_explanations, load_page
from neuroexplain.probe import Probe
from neuroexplain.runs import QueryRow, Run, SimulatorCheck, UnitPage
from neuroexplain.runtime.single_flight import SingleFlight
from neuroexplain.scorers.base import main_metrics
from neuroexplain.selection import parse_layers
from neuroexplain.store.engine import Store
from neuroexplain.store.failures import count_failures
from neuroexplain.store.runs import count_explanations, count_units, list_checks, load_run
from neuroexplain.store.score_summaries import ScoreSummary, count_scores_by_layer, join_counts
from neuroexplain.store.search import list_headline_scores
from neuroexplain.units import UnitId
from neuroexplain.web.charts import Chart, score_charts
from neuroexplain.web.compare_view import parse_compared

PAGE_SIZE = 50  # results of a search
SUMMARY_SECONDS = 60.0  # after which the start page's summary is computed anew
N_VOCABULARIES = 2  # runs whose vocabulary stays in memory: 24 MB for 128,000 tokens
N_SUMMARIES = 8  # runs
N_COMPARISONS = 2  # some 300 bytes a unit


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers, for the start page."""

    charts: tuple[Chart, ...]
    n_explanations: Sequence[tuple[str, str, str, int]]  # explainer, model, status and their number
    n_units: Mapping[str, int]  # by status
    failures: Mapping[str, int] = field(default_factory=dict)  # by status: those of the page of failures
    totals: Sequence[ScoreSummary] = ()  # of all layers together
    scores: Sequence[ScoreSummary] = ()  # by layer
    checks: Sequence[SimulatorCheck] = ()


class StoreReader:
    """An open store, and the model that reads texts of a reader's own; None: texts are refused."""

    def __init__(
        self, store: Store, probe: Probe | None, open_embedder: Callable[[], Embedder] = open_embedder
    ) -> None:
        self.store, self.probe = store, probe
        self._meanings = MeaningIndexes(store, open_embedder)
        self._vocabularies = SingleFlight[Vocabulary](N_VOCABULARIES)
        self._comparisons = SingleFlight[Comparison](N_COMPARISONS)
        self._summaries = SingleFlight[Summary](N_SUMMARIES)

    def load_page(self, run_id: int | None, unit: UnitId) -> UnitPage:
        """All about one unit. Raises NotInStore."""
        run = load_run(self.store, run_id)
        vocabulary, _ = self._vocabularies.get(run.id, lambda: Vocabulary.load(self.store, run.id))
        return load_page(self.store, run, unit, vocabulary)

    def search(
        self,
        run: Run,
        page: int,
        *,
        text: str | None,
        layers: str | None,
        like: str | None,
        sort: str | None,
        **filters: Any,
    ) -> tuple[list[QueryRow], bool]:
        """One page of explanations, counted from 0, and whether there are more.

        `layers` is written `15` or `3-5`; `like` is a text to search by meaning, in place of `sort`; the
        further filters are those of find_explanations. Raises NeuroexplainError.
        """
        rows = find_explanations(
            self.store,
            run,
            text=text or None,
            layers=parse_layers(layers) if layers and layers.strip() else None,
            limit=PAGE_SIZE + 1,
            offset=page * PAGE_SIZE,
            like=self._meanings.similarities(run, like) if like and like.strip() else None,
            sort=None if like and like.strip() else sort,
            **filters,
        )
        return rows[:PAGE_SIZE], len(rows) > PAGE_SIZE

    def compare(
        self, first: str, second: str, page: int, *, layers: str | None, **filters: Any
    ) -> tuple[Comparison, list[ComparedRow], bool]:
        """Two side by side with one page of units, counted from 0, and whether there are more.

        The two are named as by compared_key; the filters are those of comparing.compare. The comparison is at
        most SUMMARY_SECONDS old. Raises NeuroexplainError.
        """
        sides = [parse_compared(key) for key in (first, second)]
        numbers = parse_layers(layers) if layers and layers.strip() else None
        period = int(time.monotonic() / SUMMARY_SECONDS)
        key = (first, second, numbers, *sorted(filters.items()), period)
        comparison, _ = self._comparisons.get(
            key,
            lambda: compare(
                self.store,
                runs=[run for run, _, _ in sides],
                explainers=[explainer for _, explainer, _ in sides],
                models=[model for _, _, model in sides],
                layers=numbers,
                **filters,
            ),
        )
        rows = load_rows(self.store, comparison, PAGE_SIZE, page * PAGE_SIZE)
        return comparison, rows, len(comparison.pairs) > (page + 1) * PAGE_SIZE

    def summary(self, run: Run) -> Summary:
        """At most SUMMARY_SECONDS old."""
        period = int(time.monotonic() / SUMMARY_SECONDS)
        summary, _ = self._summaries.get((run.id, period), lambda: summarize(self.store, run))
        return summary


def summarize(store: Store, run: Run) -> Summary:
    """Reads every headline score of the run."""
    counts = count_scores_by_layer(store, run)
    return Summary(
        charts=score_charts(list_headline_scores(store, run)),
        n_explanations=count_explanations(store, run.id),
        n_units=count_units(store, run.id),
        failures=count_failures(store, run, main_metrics()),
        totals=join_counts(run, counts, all_layers=True),
        scores=join_counts(run, counts),
        checks=list_checks(store, run.id),
    )
