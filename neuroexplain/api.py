"""A database in Python: `nx.open("demo.db").neuron(15, 16)`. Objects, data frames, and pictures in a notebook."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from neuroexplain.evidence import Exemplar, Explanation, StoredScore
from neuroexplain.formatting import QUERY_COLUMNS, number, printable, query_json, run_json, show_json
from neuroexplain.lookup import find_explanations, load_page
from neuroexplain.runs import QueryRow, Run, UnitPage
from neuroexplain.store.engine import Store, open_store
from neuroexplain.store.runs import list_runs, load_run
from neuroexplain.units import UnitId

if TYPE_CHECKING:
    import pandas as pd


class QueryRows(list[QueryRow]):
    """What a query found, best first; a notebook shows it as a table."""

    def to_frame(self) -> pd.DataFrame:
        """One row an explanation: the columns of `query --json`."""
        import pandas as pd

        return pd.DataFrame(query_json(self), columns=list(QUERY_COLUMNS))

    def _repr_html_(self) -> str:
        from neuroexplain.web.views import notebook_rows

        return notebook_rows(self)


@dataclass(frozen=True)
class NeuronReading:
    """One neuron with all that is known about it; a notebook shows its explanations and coloured snippets."""

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
        return self.page.scores

    @property
    def exemplars(self) -> tuple[Exemplar, ...]:
        """Top, bottom and random records, each in rank order; activations [64] float32."""
        return self.page.unit.exemplars

    def tokens(self, exemplar: Exemplar) -> list[str]:
        """The record's 64 tokens as strings."""
        return [self.page.tokens[i].text for i in exemplar.token_ids.tolist()]

    def to_dict(self) -> dict[str, Any]:
        """What `show --json` prints."""
        return show_json(self.page)

    def to_frame(self) -> pd.DataFrame:
        """One row a record, with its tokens and activations as lists."""
        import pandas as pd

        return pd.DataFrame(show_json(self.page)["exemplars"])

    def __repr__(self) -> str:
        scores = [s.score.value for s in self.scores if self.page.run.headline.is_of(s.score)]
        said = (
            [f"{number(max(r for r in scores if r is not None))}"]
            if any(r is not None for r in scores)
            else []
        )
        said += [repr(printable(e.text or "")) for e in self.explanations[:1]]
        return f"<{self.page.run.kind} unit {self.page.run.label(self.id)}: {' '.join(said) or self.page.unit.status}>"

    def _repr_html_(self) -> str:
        from neuroexplain.web.views import notebook_neuron

        return notebook_neuron(self.page)


class Database:
    """An open database, read only. Use it as a context manager, or close it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def runs(self) -> list[Run]:
        """All runs, oldest first."""
        return list_runs(self._store)

    def neuron(self, layer: int, neuron: int, run: int | None = None) -> NeuronReading:
        """One neuron of the latest finished run, or of `run`. Raises NotInStore where it is not held."""
        return NeuronReading(load_page(self._store, load_run(self._store, run), UnitId(layer, neuron)))

    def unit(self, name: str, run: int | None = None) -> NeuronReading:
        """One unit by its name, `15:16` or of heads `15:3.40`. Raises NotInStore or ValueError where there is none."""
        found = load_run(self._store, run)
        return NeuronReading(load_page(self._store, found, found.find_unit(name)))

    def query(
        self,
        text: str | None = None,
        *,
        layers: Collection[int] | None = None,
        min_score: float | None = None,
        max_score: float | None = None,
        metric: str | None = None,
        scorer: str | None = None,
        peak_token: str | None = None,
        sort: str = "score",
        chosen_only: bool = True,
        limit: int = 100,
        run: int | None = None,
    ) -> QueryRows:
        """Explanations by words, layers, score, scorer and peak token, best first."""
        rows = find_explanations(
            self._store,
            load_run(self._store, run),
            text=text,
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

    def runs_frame(self) -> pd.DataFrame:
        """The runs as a data frame."""
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
    """Open a database (a file or an SQLAlchemy URL) to read. Raises NeuroexplainError where there is none of ours."""
    return Database(open_store(str(db), read_only=True))
