"""A line of search results as pages and notebooks show it."""

from __future__ import annotations

from dataclasses import dataclass

from neuroexplain.evidence import Failure
from neuroexplain.formatting import (
    beginning,
    explained_by,
    interval,
    intruder_text,
    number,
    printable,
    rule_first,
    short_name,
)
from neuroexplain.runs import QueryRow, Run
from neuroexplain.status_words import status_words
from neuroexplain.units import UnitId

# What the search page's form holds: one entry a field.
EMPTY_SEARCH = dict.fromkeys(
    ("q", "like", "token", "layer", "min_score", "max_score", "scorer", "metric"), ""
) | {"sort": "score"}


SORT_LABELS = {  # the orders of a search, and how its form names them
    "score": "score, best first",
    "weakest": "score, weakest first",
    "lower": "lower end of its interval",
    "activation": "greatest activation",
    "unit": "unit",
}


@dataclass(frozen=True, slots=True)
class RowView:
    """One line of search results: an explanation with its score."""

    unit: UnitId
    label: str
    explanation: str
    score: str
    interval: str
    rule_score: str  # of the rule alone; empty if there is none
    beyond_words: str  # the score without the words of the explanation; empty if there is none
    intruder: str  # how often a judge finds the odd one; empty if none was asked
    hard: str  # AUROC among look-alikes; empty if these were not measured
    author: str  # explainer and model
    scorer: str  # with its model; empty without a score
    max_activation: str


@dataclass(frozen=True, slots=True)
class FailureView:
    """One line of the page of failures."""

    label: str
    url: str  # of the unit's page; empty if it has none
    by: str  # explainer or scorer
    words: str  # the status in words
    reason: str
    reply: str  # its beginning


def failure_view(run: Run, failure: Failure, url: str) -> FailureView:
    return FailureView(
        label=run.label(failure.unit),
        url=url,
        by=printable(failure.what),
        words=printable(status_words(failure.status)),
        reason=printable(failure.reason or ""),
        reply=beginning(failure.reply or ""),
    )


def row_view(row: QueryRow) -> RowView:
    side = ", negative side" if row.side == "negative" else ""
    return RowView(
        unit=row.unit,
        label=row.label,
        explanation=rule_first(row.explanation, row.rule, row.examples),
        score=number(row.score),
        interval=interval(row.ci_low, row.ci_high),
        rule_score="" if row.rule_score is None else number(row.rule_score),
        beyond_words="" if row.beyond_words is None else number(row.beyond_words),
        intruder=intruder_text(row),
        hard="" if row.hard is None else number(row.hard),
        author=explained_by(row.explainer, row.model) + side,
        scorer=printable(f"{row.scorer}, {short_name(row.scorer_model or '')}") if row.scorer else "",
        max_activation="" if row.max_activation is None else f"{row.max_activation:.3g}",
    )
