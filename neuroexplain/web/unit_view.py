"""All that a unit's page shows, from what the store knows of the unit (pure); `_unit.html` draws it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuroexplain.evidence import Stats, Status
from neuroexplain.formatting import density, dictionary_text
from neuroexplain.runs import Run, UnitPage
from neuroexplain.score_words import CONTROL_MEANING, INTERVAL_MEANING
from neuroexplain.status_words import status_words
from neuroexplain.units import Kind, UnitId
from neuroexplain.web.charts import activation_chart
from neuroexplain.web.explanation_view import ExplanationView, explanation_view
from neuroexplain.web.record_view import LazySection, RecordView, record_views
from neuroexplain.web.tokens import visible
from neuroexplain.web.urls import UrlBuilder

# Kinds of records that are drawn when a reader opens them; the top records always come with the page.
LAZY_KINDS: tuple[Kind, ...] = ("bottom", "sampled", "random")
NOTES: Mapping[str, str] = {
    "sampled": "Segments drawn with a chance that grows with the unit's squared activation in them, strong "
    "and weak ones. Each says how many segments of the corpus it stands for.",
    "random": "The same segments for every unit, whatever it does there.",
}


@dataclass(frozen=True, slots=True)
class UnitView:
    """A unit's page."""

    id: UnitId
    label: str
    run: Run
    failure: str  # why there is nothing to explain, in words; empty if there is
    explanations: tuple[ExplanationView, ...]
    meanings: tuple[tuple[str, str], ...]  # of the scores on the page: name and words
    other_candidates: tuple[ExplanationView, ...]  # candidates that were not chosen
    top_records: tuple[RecordView, ...]
    lazy_records: tuple[LazySection, ...]  # bottom and random records
    dictionary: str | None  # its name and how well it fits; None without one
    statistics: tuple[tuple[str, str], ...]
    histogram: Mapping[str, Any] | None
    promoted: tuple[tuple[str, str], ...]  # token and logit
    suppressed: tuple[tuple[str, str], ...]
    nearest: tuple[tuple[str, str | None, str], ...]  # latents: name, address if there is a page, cosine
    previous: UnitId | None
    next: UnitId | None


def unit_view(
    page: UnitPage,
    urls: UrlBuilder,
    *,
    open_kinds: Collection[str] = (),
    open_simulations: Collection[int] = (),
    neighbours: tuple[UnitId | None, UnitId | None] | None = None,
    has_page: Callable[[UnitId], bool] = lambda unit: True,
) -> UnitView:
    """Lazy sections in `open_kinds` and, by prediction id, in `open_simulations` come with their records.

    `neighbours` are the units that previous and next lead to; without them, they are the layer's neighbours.
    `has_page` tells which units have a page to link to.
    """
    unit, run = page.unit, page.run
    explanations = [
        explanation_view(page, explanation, urls, open_simulations) for explanation in page.explanations
    ]
    has_choice = len({explanation.chosen for explanation in explanations}) == 2
    previous, following = neighbours or _neighbours(unit.id, run.width(unit.id.layer))
    return UnitView(
        id=unit.id,
        label=run.label(unit.id),
        run=run,
        failure="" if unit.status == Status.OK else status_words(unit.status),
        explanations=tuple(e for e in explanations if e.chosen or not has_choice),
        meanings=_meanings(explanations),
        other_candidates=tuple(e for e in explanations if has_choice and not e.chosen),
        top_records=record_views(page, "top"),
        lazy_records=_lazy_records(page, urls, open_kinds),
        dictionary=dictionary_text(run, unit.id.layer),
        statistics=_statistics_lines(unit.stats),
        histogram=activation_chart(unit),
        promoted=_vocabulary_lines(page, unit.promoted),
        suppressed=_vocabulary_lines(page, unit.suppressed),
        nearest=_nearest_lines(page, urls, has_page),
        previous=previous,
        next=following,
    )


def _meanings(explanations: Sequence[ExplanationView]) -> tuple[tuple[str, str], ...]:
    """Each score's name with its meaning, in the order of the page, then those of interval and control."""
    measures = [m for e in explanations for scorer in e.scorers for m in scorer.measures]
    meanings = {measure.name: measure.meaning for measure in measures if measure.meaning}
    if any(measure.interval for measure in measures):
        meanings["95% interval"] = INTERVAL_MEANING
    if any(measure.control for measure in measures):
        meanings["control"] = CONTROL_MEANING
    return tuple(meanings.items())


def _neighbours(unit: UnitId, width: int) -> tuple[UnitId | None, UnitId | None]:
    """The units before and after this one in its layer; None at the layer's ends."""
    previous = UnitId(unit.layer, unit.index - 1) if unit.index else None
    following = UnitId(unit.layer, unit.index + 1) if unit.index + 1 < width else None
    return previous, following


def _lazy_records(page: UnitPage, urls: UrlBuilder, open_kinds: Collection[str]) -> tuple[LazySection, ...]:
    n_records = Counter(record.kind for record in page.unit.exemplars)
    return tuple(
        LazySection(
            id=kind,
            title=f"{n_records[kind]} {kind} records",
            note=NOTES.get(kind, ""),
            state=f"show={kind}",
            records=record_views(page, kind) if kind in open_kinds else None,
            source=urls.section(page.unit.id, f"records/{kind}"),
            link=urls.unit(page.unit.id, show=kind) + f"#{kind}",
        )
        for kind in LAZY_KINDS
        if n_records[kind]
    )


def _statistics_lines(stats: Stats | None) -> tuple[tuple[str, str], ...]:
    if stats is None:
        return ()
    return (
        ("mean", f"{stats.mean:.4g}"),
        ("standard deviation", f"{stats.std:.4g}"),
        ("minimum", f"{stats.min:.4g}"),
        ("maximum", f"{stats.max:.4g}"),
        ("share of tokens above 0", density(stats.share_positive)),
    )


def _nearest_lines(
    page: UnitPage, urls: UrlBuilder, has_page: Callable[[UnitId], bool]
) -> tuple[tuple[str, str | None, str], ...]:
    units = [(UnitId(page.unit.id.layer, index), cosine) for index, cosine in page.unit.nearest]
    return tuple(
        (page.run.label(unit), urls.unit(unit) if has_page(unit) else None, f"{cosine:.2f}")
        for unit, cosine in units
    )


def _vocabulary_lines(page: UnitPage, logits: Sequence[tuple[int, float]]) -> tuple[tuple[str, str], ...]:
    return tuple((visible(page.tokens[token_id].label), f"{logit:+.2f}") for token_id, logit in logits)
