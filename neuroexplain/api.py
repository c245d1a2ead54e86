"""A database in Python: `nx.open("demo.db").neuron(15, 16)`. Objects, data frames, and HTML in a notebook."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from neuroexplain.as_json import QUERY_COLUMNS, comparison_json, query_json, run_json, unit_json
from neuroexplain.comparing import compare, load_rows
from neuroexplain.comparison import ComparedRow, Comparison, ComparisonSummary
from neuroexplain.config import find_api_key
from neuroexplain.embedding.base import DEFAULT_EMBEDDING, open_embedder
from neuroexplain.evidence import Exemplar, Explanation, Status, StoredScore
from neuroexplain.formatting import number, printable
from neuroexplain.lookup import find_explanations, load_page
from neuroexplain.runs import QueryRow, Run, UnitPage
from neuroexplain.status_words import status_words
from neuroexplain.store.engine import Store, open_store
from neuroexplain.store.runs import list_runs, load_run
from neuroexplain.units import UnitId

if TYPE_CHECKING:
    import pandas as pd

    from neuroexplain.embedding.held import MeaningIndexes


class QueryRows(list[QueryRow]):
    """The rows of a query, best first. A notebook draws them as a table."""

    def to_frame(self) -> pd.DataFrame:
        """One row an explanation: the columns of `query --json`."""
        import pandas as pd

        return pd.DataFrame(query_json(self), columns=list(QUERY_COLUMNS))

    def _repr_html_(self) -> str:
        from neuroexplain.web.notebook import notebook_rows

        return notebook_rows(self)


class ComparedRows(list[ComparedRow]):
    """Units with two explanations each, and the figures of all units that both explain."""

    def __init__(self, comparison: Comparison, rows: Sequence[ComparedRow]) -> None:
        super().__init__(rows)
        self.comparison = comparison

    @property
    def summary(self) -> ComparisonSummary:
        """Means, the paired difference with its interval, and how often the second is higher."""
        return self.comparison.summary

    def to_dict(self) -> dict[str, Any]:
        """The object that `query --runs A,B --json` prints."""
        return comparison_json(self.comparison, self)

    def to_frame(self) -> pd.DataFrame:
        """One row a unit: both explanations and scores, and their difference."""
        import pandas as pd

        return pd.DataFrame(
            {
                "layer": row.first.unit.layer,
                "unit": row.first.unit.index,
                "side": row.first.side,
                "difference": row.difference,
                **{
                    f"{name}_{field}": getattr(its_row, field)
                    for name, its_row in (("first", row.first), ("second", row.second))
                    for field in ("score", "ci_low", "ci_high", "explanation", "explanation_id")
                },
            }
            for row in self
        )


@dataclass(frozen=True)
class UnitReading:
    """One unit with all that is known about it. A notebook draws its explanations and coloured records."""

    page: UnitPage

    @property
    def id(self) -> UnitId:
        return self.page.unit.id

    @property
    def explanations(self) -> tuple[Explanation, ...]:
        """Best first."""
        return self.page.explanations

    @property
    def scores(self) -> tuple[StoredScore, ...]:
        """Of all explanations, by all scorers."""
        return self.page.scores

    @property
    def exemplars(self) -> tuple[Exemplar, ...]:
        """Top, bottom and random records, each in rank order; activations [64] float32."""
        return self.page.unit.exemplars

    def tokens(self, exemplar: Exemplar) -> list[str]:
        """The record's 64 tokens as strings."""
        return self.page.texts(exemplar)

    def to_dict(self) -> dict[str, Any]:
        """The object that `show --json` prints."""
        return unit_json(self.page)

    def to_frame(self) -> pd.DataFrame:
        """One row a record, with its tokens and activations as lists."""
        import pandas as pd

        return pd.DataFrame(unit_json(self.page)["exemplars"])

    def __repr__(self) -> str:
        """The unit with its best headline score and best explanation, or else why there is none."""
        run = self.page.run
        scores = [stored.score.value for stored in self.scores if run.headline.is_of(stored.score)]
        values = [value for value in scores if value is not None]
        words = [number(max(values))] if values else []
        for explanation in self.explanations[:1]:
            text = explanation.text
            words.append(status_words(explanation.status) if text is None else repr(printable(text)))
        if not words:
            dead = self.page.unit.status == Status.DEAD
            words.append(status_words(Status.DEAD) if dead else "not explained yet")
        return f"<{run.kind} unit {run.label(self.id)}: {' '.join(words)}>"

    def _repr_html_(self) -> str:
        from neuroexplain.web.notebook import notebook_unit

        return notebook_unit(self.page)


class Database:
    """An open database, read only. Use it as a context manager, or close it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._meanings: dict[str, MeaningIndexes] = {}  # by embedding

    def runs(self) -> list[Run]:
        """All runs, oldest first."""
        return list_runs(self._store)

    def neuron(self, layer: int, neuron: int, run: int | None = None) -> UnitReading:
        """A unit of the latest finished run, or of `run`, by layer and index.

        Raises NotInStore if the run does not hold the unit.
        """
        return UnitReading(load_page(self._store, load_run(self._store, run), UnitId(layer, neuron)))

    def unit(self, name: str, run: int | None = None) -> UnitReading:
        """A unit by its name: `15:16`, or `15:3.40` if it belongs to a group such as a head.

        Raises ValueError if this is no name of a unit, and NotInStore if the run does not hold the unit.
        """
        its_run = load_run(self._store, run)
        return UnitReading(load_page(self._store, its_run, its_run.find_unit(name)))

    def query(
        self,
        text: str | None = None,
        *,
        like: str | None = None,
        embedding: str = DEFAULT_EMBEDDING,
        layers: Collection[int] | None = None,
        min_score: float | None = None,
        max_score: float | None = None,
        metric: str | None = None,
        scorer: str | None = None,
        peak_token: str | None = None,
        sort: str | None = None,
        chosen_only: bool = True,
        limit: int = 100,
        run: int | None = None,
    ) -> QueryRows:
        """Explanations by words, meaning, layers, score, scorer and peak token, best first.

        like: a text; the nearest explanations by meaning come first. embedding: `wordllama`, a model of
        sentence-transformers, or the URL of a server with /v1/embeddings. Vectors that the database lacks are
        computed for this object alone, which keeps all of them in memory. Raises NeuroexplainError if more
        than 50,000 are lacking: `neuroexplain query --like` stores them.
        """
        its_run = load_run(self._store, run)
        rows = find_explanations(
            self._store,
            its_run,
            text=text,
            like=None if like is None else self._find_meanings(embedding).similarities(its_run, like),
            layers=layers,
            min_score=min_score,
            max_score=max_score,
            metric=metric,
            scorer=scorer,
            sort=sort,
            peak_token=peak_token,
            chosen_only=chosen_only,
            limit=limit,
        )
        return QueryRows(rows)

    def compare(
        self,
        *,
        runs: Sequence[int | None] = (None,),
        explainers: Sequence[str] = (),
        models: Sequence[str] = (),
        limit: int = 100,
        **filters: Any,
    ) -> ComparedRows:
        """Two runs, explainers or models unit by unit, where the second gains most first.

        Each of the three holds one value for both sides, or one for each: `compare(explainers=("pairs",
        "category"))`. filters: text, layers, units, peak_token, metric, scorer and sort (`second`, `first` or
        `unit`). Raises NeuroexplainError if the two have no unit, scorer or metric in common.
        """
        comparison = compare(self._store, runs=runs, explainers=explainers, models=models, **filters)
        return ComparedRows(comparison, load_rows(self._store, comparison, limit))

    def _find_meanings(self, embedding: str) -> MeaningIndexes:
        if embedding not in self._meanings:
            from neuroexplain.embedding.held import MeaningIndexes

            self._meanings[embedding] = MeaningIndexes(
                self._store, lambda: open_embedder(embedding, find_api_key())
            )
        return self._meanings[embedding]

    def runs_frame(self) -> pd.DataFrame:
        """One row a run, with the fields that a run has in `runs --json`."""
        import pandas as pd

        return pd.DataFrame([run_json(run) for run in self.runs()])

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(db: str = "neuroexplain.db") -> Database:
    """Open a database to read: a file or an SQLAlchemy URL.

    Raises NeuroexplainError if it does not exist or is not a database of neuroexplain.
    """
    return Database(open_store(str(db), read_only=True))
