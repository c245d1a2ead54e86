"""Two explainers, models or runs side by side, as the viewer's page shows them (pure)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from neuroexplain.comparing import describe
from neuroexplain.comparison import Compared, ComparedRow, Comparison, Mean
from neuroexplain.errors import NeuroexplainError
from neuroexplain.formatting import (
    explained_by,
    headline_name,
    interval,
    number,
    percent,
    printable,
    rule_first,
    signed,
)
from neuroexplain.runs import Run
from neuroexplain.units import UnitId
from neuroexplain.web.urls import UrlBuilder


@dataclass(frozen=True, slots=True)
class MeanView:
    """A mean over units; `name` says of what, and is empty for the difference."""

    mean: str
    interval: str
    name: str


@dataclass(frozen=True, slots=True)
class ComparedRowView:
    """A unit with both explanations."""

    label: str
    first: str
    second: str
    first_score: str
    second_score: str
    first_interval: str
    second_interval: str
    difference: str
    first_url: str  # empty if its page is not there
    second_url: str


@dataclass(frozen=True, slots=True)
class CompareView:
    """The figures of all units, and some units."""

    n: str
    n_unscored: str  # empty if there is none
    score: str
    first: MeanView
    second: MeanView
    difference: MeanView
    share: str
    notes: tuple[str, ...]
    rows: tuple[ComparedRowView, ...]


UnitUrl = Callable[[Run, UnitId], str]  # the address of a unit's page in a run; empty if it has none


def live_url(run: Run, unit: UnitId) -> str:
    return UrlBuilder(run.id).unit(unit)


def compare_view(
    comparison: Comparison, rows: Sequence[ComparedRow], unit_url: UnitUrl = live_url
) -> CompareView:
    c, s = comparison, comparison.summary
    d = s.difference
    bounds = "" if d.ci_low is None else f"{signed(d.ci_low)} to {signed(d.ci_high)}"
    scorer = explained_by(c.scorer, c.scorer_model)
    return CompareView(
        n=f"{s.n:,}",
        n_unscored=f"{s.n_unscored:,}" if s.n_unscored else "",
        score=f"{headline_name(c.headline)} by {scorer}",
        first=_mean_view(s.first, describe(c.first)),
        second=_mean_view(s.second, describe(c.second)),
        difference=MeanView(signed(d.value), bounds, ""),
        share=percent(s.share_second_higher),
        notes=tuple(map(printable, c.notes)),
        rows=row_views(c, rows, unit_url),
    )


def _mean_view(mean: Mean, name: str) -> MeanView:
    return MeanView(number(mean.value), interval(mean.ci_low, mean.ci_high), name)


def row_views(
    comparison: Comparison, rows: Sequence[ComparedRow], unit_url: UnitUrl
) -> tuple[ComparedRowView, ...]:
    return tuple(_row_view(comparison, row, unit_url) for row in rows)


def _row_view(comparison: Comparison, row: ComparedRow, unit_url: UnitUrl) -> ComparedRowView:
    a, b = row.first, row.second
    return ComparedRowView(
        label=a.label + (", negative side" if a.side == "negative" else ""),
        first=rule_first(a.explanation, a.rule, a.examples),
        second=rule_first(b.explanation, b.rule, b.examples),
        first_score=number(a.score),
        second_score=number(b.score),
        first_interval=interval(a.ci_low, a.ci_high),
        second_interval=interval(b.ci_low, b.ci_high),
        difference=signed(row.difference),
        first_url=unit_url(comparison.first.run, a.unit),
        second_url=unit_url(comparison.second.run, b.unit),
    )


def compared_key(compared: Compared) -> str:
    """How addresses name one of the two: `1/category/MODEL`."""
    return f"{compared.run.id}/{compared.explainer}/{compared.model}"


def parse_compared(key: str) -> tuple[int, str, str]:
    """The run's id, the explainer and the model of compared_key. Raises NeuroexplainError."""
    run, _, rest = key.partition("/")
    explainer, _, model = rest.partition("/")
    if not (run.isascii() and run.isdigit() and len(run) < 10 and explainer and model):
        raise NeuroexplainError(f"{key!r} is no explainer of a run: write it like 1/category/MODEL.")
    return int(run), explainer, model
