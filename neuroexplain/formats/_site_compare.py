"""The static site's pages of two side by side: one that lists the pairs, and one for each pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from neuroexplain.comparing import compare, describe, list_compared, load_rows
from neuroexplain.comparison import Compared, Comparison, sort_pairs
from neuroexplain.errors import NeuroexplainError
from neuroexplain.runs import Run
from neuroexplain.store.engine import Store
from neuroexplain.units import UnitId
from neuroexplain.web.compare_view import ComparedRowView, CompareView, UnitUrl, compare_view, row_views
from neuroexplain.web.templates import CONTENT_POLICY, render
from neuroexplain.web.urls import UrlBuilder

N_PAIRS = 40  # pairs of which a site has a page: those of the run's own explainers first
N_ROWS = 100  # units of each table of such a page


@dataclass(frozen=True, slots=True)
class PairView:
    """A line of the list of pairs."""

    first: str
    second: str
    view: CompareView | None  # None if the two cannot be compared
    problem: str  # why not
    url: str


def compare_pages(
    store: Store, run: Run, urls: UrlBuilder, holds: Callable[[UnitId], bool]
) -> Iterator[tuple[str, str]]:
    """(name, HTML) of the pages: every pair that has a part of the run. `holds`: the units of the site."""

    def unit_url(other: Run, unit: UnitId) -> str:
        return urls.unit(unit) if other.id == run.id and holds(unit) else ""

    pairs: list[PairView] = []
    for first, second in _pairs(store, run):
        names = describe(first), describe(second)
        try:
            comparison = _compare(store, first, second)
        except NeuroexplainError as error:
            pairs.append(PairView(*names, None, str(error), ""))
            continue
        view = compare_view(comparison, (), unit_url)
        name = f"compare-{1 + sum(pair.view is not None for pair in pairs)}"
        pairs.append(PairView(*names, view, "", f"{name}.html"))
        tables = [
            ("Where the second is higher", _rows(store, comparison, "second", unit_url)),
            ("Where the first is higher", _rows(store, comparison, "first", unit_url)),
        ]
        html = render("site_compared.html", view=view, tables=tables, **_common(urls))
        yield name, html
    yield "compare", render("site_compare.html", pairs=pairs, **_common(urls))


def _pairs(store: Store, run: Run) -> list[tuple[Compared, Compared]]:
    """Pairs within the run, then those of the run with another one."""
    compared = list_compared(store)
    pairs = [pair for pair in combinations(compared, 2) if run.id in (pair[0].run.id, pair[1].run.id)]
    return sorted(pairs, key=lambda pair: pair[0].run.id != pair[1].run.id)[:N_PAIRS]


def _compare(store: Store, first: Compared, second: Compared) -> Comparison:
    return compare(
        store,
        runs=(first.run.id, second.run.id),
        explainers=(first.explainer, second.explainer),
        models=(first.model, second.model),
    )


def _rows(store: Store, comparison: Comparison, order: str, unit_url: UnitUrl) -> tuple[ComparedRowView, ...]:
    """The first units of an order in which the one side is higher."""
    sign = 1 if order == "second" else -1
    pairs = [pair for pair in comparison.pairs if sign * pair.difference > 0]
    ordered = replace(comparison, pairs=sort_pairs(pairs, order)[:N_ROWS])
    return row_views(ordered, load_rows(store, ordered, N_ROWS), unit_url)


def _common(urls: UrlBuilder) -> dict[str, object]:
    return {"urls": urls, "content_policy": CONTENT_POLICY}
