"""Two explainers, models or runs side by side, over the units that both explain: types and figures (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from neuroexplain.evidence import Headline
from neuroexplain.runs import QueryRow, Run
from neuroexplain.store.score_summaries import interval_of_mean
from neuroexplain.units import Side, UnitId


@dataclass(frozen=True, slots=True)
class Compared:
    """One of the two: the explanations of a run by one explainer and model."""

    run: Run
    explainer: str
    model: str


class Pair(NamedTuple):
    """The explanations of one side of a unit, with their scores by one scorer and model."""

    unit: UnitId
    side: Side
    first_id: int
    second_id: int
    first: float
    second: float

    @property
    def difference(self) -> float:
        return self.second - self.first


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over units with its 95% interval, which needs two of them."""

    value: float | None
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True, slots=True)
class ComparisonSummary:
    """Scores of the same units in numbers. Units without a score on either side are counted apart."""

    n: int  # units (or sides of units) with a score of both
    n_unscored: int  # explained by both, and a score lacks or is undefined
    first: Mean
    second: Mean
    difference: Mean  # second less first, unit by unit
    n_second_higher: int
    n_equal: int

    @property
    def share_second_higher(self) -> float | None:
        return self.n_second_higher / self.n if self.n else None


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A unit's two explanations with their scores."""

    first: QueryRow
    second: QueryRow
    difference: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sets of explanations over the units that both explain."""

    first: Compared
    second: Compared
    headline: Headline  # the score that both have
    scorer: str
    scorer_model: str
    notes: tuple[str, ...]  # what a person should know before the figures are read
    summary: ComparisonSummary
    pairs: Sequence[Pair]  # in the order asked for


def summarize_pairs(pairs: Sequence[Pair], n_explained: int) -> ComparisonSummary:
    """The figures of all pairs with two scores; `n_explained` counts those without them, too.

    The interval of the difference is paired: it is that of the mean of the units' differences.
    """
    return ComparisonSummary(
        n=len(pairs),
        n_unscored=n_explained - len(pairs),
        first=mean_of([pair.first for pair in pairs]),
        second=mean_of([pair.second for pair in pairs]),
        difference=mean_of([pair.difference for pair in pairs]),
        n_second_higher=sum(pair.second > pair.first for pair in pairs),
        n_equal=sum(pair.second == pair.first for pair in pairs),
    )


def mean_of(values: Sequence[float]) -> Mean:
    if not values:
        return Mean(None, None, None)
    total = sum(values)
    return Mean(total / len(values), *interval_of_mean(len(values), total, sum(v * v for v in values)))


ORDERS = {  # of a comparison, and how forms name them
    "second": "where the second is higher",
    "first": "where the first is higher",
    "unit": "unit",
}


def sort_pairs(pairs: Sequence[Pair], order: str) -> list[Pair]:
    """Pairs in one of ORDERS; ties go by unit and side."""
    sign = {"second": -1.0, "first": 1.0, "unit": 0.0}[order]
    return sorted(pairs, key=lambda pair: (sign * pair.difference, pair.unit, pair.side))
