"""An explanation as a unit's page shows it, with its scores, its provenance and its simulations."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from neuroexplain.evidence import Explanation, Provenance, Status, StoredScore
from neuroexplain.formatting import (
    beginning,
    check_text,
    explained_by,
    headline_name,
    interval,
    number,
    printable,
    rule_comparison,
    score_name,
    score_order,
    short_name,
)
from neuroexplain.runs import Run, UnitPage
from neuroexplain.score_words import SCORE_NAMES
from neuroexplain.status_words import status_words
from neuroexplain.units import KINDS
from neuroexplain.web.record_view import SPLITS, LazySection, simulated_views, simulations
from neuroexplain.web.urls import UrlBuilder

SIMULATION_NOTE = (
    "Above the true activation; below, in blue, the simulated level of the 32 underlined tokens, which the "
    "simulator saw and is scored on."
)


@dataclass(frozen=True, slots=True)
class ScoreView:
    """One score's line."""

    metric: str
    subset: str
    split: str
    scorer: str  # with its model
    value: str
    interval: str
    remark: str  # counts and the control, or the reason why there is no value
    is_headline: bool


@dataclass(frozen=True, slots=True)
class MeasureView:
    """A score that is read first: the headline, or one that stands beside it."""

    name: str
    meaning: str  # in plain words; empty for a score without a name
    value: str
    interval: str
    control: str
    why_undefined: str  # empty if there is a value
    is_headline: bool


@dataclass(frozen=True, slots=True)
class ScorerView:
    """The scores of one scorer that are read first, the headline first."""

    name: str  # with its model
    trust: str  # how well it does on known neurons; empty if that was not measured
    measures: tuple[MeasureView, ...]


@dataclass(frozen=True, slots=True)
class ExplanationView:
    """One explanation with its scores, the headline first."""

    id: int
    text: str  # the rule alone, where examples stand behind it
    examples: str  # empty without examples
    rule_comparison: str  # the score of the rule alone, and what the examples add; empty if not known
    failure: str  # how the attempt ended, in words; empty if there is an explanation
    reason: str
    reply: str  # the beginning of an answer that could not be used; empty without one
    author: str  # explainer and model; candidate and side where they matter
    chosen: bool
    headline: str
    headline_name: str  # empty without a headline score
    scorers: tuple[ScorerView, ...]
    scores: tuple[ScoreView, ...]
    provenance: tuple[tuple[str, str], ...]
    prompt_sha256: str | None
    simulations: tuple[LazySection, ...]  # true over simulated, by simulator


def explanation_view(
    page: UnitPage, explanation: Explanation, urls: UrlBuilder, open_simulations: Collection[int]
) -> ExplanationView:
    """`open_simulations` are ids of predictions whose records come with the page."""
    scores = _score_views(page, explanation)
    headline = next((score for score in scores if score.is_headline), None)
    provenance = explanation.provenance
    return ExplanationView(
        id=explanation.id or 0,
        text=printable(explanation.rule or explanation.text or ""),
        examples=printable(", ".join(explanation.examples or ())),
        rule_comparison=rule_comparison(page, explanation) or "",
        failure="" if explanation.status == Status.OK else status_words(explanation.status),
        reason=printable(explanation.reason or ""),
        reply=beginning(explanation.reply or ""),
        author=_author(page.run, explanation),
        chosen=explanation.chosen,
        headline="-" if headline is None else headline.value,
        headline_name="" if headline is None else headline_name(page.run.headline),
        scorers=_scorer_views(page, explanation),
        scores=scores,
        provenance=_provenance_lines(explanation.explainer, provenance),
        prompt_sha256=provenance.prompt_sha256,
        simulations=_simulation_sections(page, explanation, urls, open_simulations),
    )


def _author(run: Run, explanation: Explanation) -> str:
    author = explained_by(explanation.explainer, explanation.provenance.model)
    if explanation.candidate:
        author += f", candidate {explanation.candidate + 1}"
    if len(run.sides) > 1 or explanation.side == "negative":
        author += f", {explanation.side} side"
    return author


def _sorted_scores(page: UnitPage, explanation: Explanation) -> list[StoredScore]:
    scores = [score for score in page.scores if score.explanation_id == explanation.id]
    return sorted(scores, key=lambda score: score_order(page.run, score))


def _score_views(page: UnitPage, explanation: Explanation) -> tuple[ScoreView, ...]:
    return tuple(_score_view(page.run, score) for score in _sorted_scores(page, explanation))


def _scorer_views(page: UnitPage, explanation: Explanation) -> tuple[ScorerView, ...]:
    """The headline of each scorer, and the scores of SCORE_NAMES, on `report`."""
    by_scorer: dict[tuple[str, str], list[MeasureView]] = {}
    for stored in _sorted_scores(page, explanation):
        score, is_headline = stored.score, page.run.headline.is_of(stored.score)
        key = score.metric, score.subset
        if score.split == "report" and (is_headline or key in SCORE_NAMES):
            undefined = f"{status_words(score.status)}: {score.reason or ''}"
            measure = MeasureView(
                name=printable(score_name(score)),
                meaning=SCORE_NAMES[key][1] if key in SCORE_NAMES else "",
                value=number(score.value),
                interval=interval(score.ci_low, score.ci_high),
                control="" if score.control is None else number(score.control),
                why_undefined="" if score.status == Status.OK else printable(undefined),
                is_headline=is_headline,
            )
            by_scorer.setdefault((stored.scorer, stored.scorer_model), []).append(measure)
    return tuple(
        ScorerView(
            name=printable(f"{scorer}, {short_name(model)}"),
            trust="" if (check := page.check_of(scorer, model)) is None else check_text(check),
            measures=tuple(measures),
        )
        for (scorer, model), measures in by_scorer.items()
    )


def _score_view(run: Run, stored: StoredScore) -> ScoreView:
    score = stored.score
    remark = f"{score.n_records} records, {score.n_tokens} tokens"
    if score.effective_records is not None:
        remark = f"{score.n_records} records that tell as much as {score.effective_records:.1f} equal ones"
    if score.status != Status.OK:
        remark = f"{status_words(score.status)}: {score.reason}"
    elif score.control is not None:
        remark += f"; another unit's explanation {number(score.control)}"
    return ScoreView(
        metric=printable(score.metric.replace("_", " ")),
        subset=printable(score.subset.replace("_", " ")),
        split=SPLITS[score.split],
        scorer=printable(f"{stored.scorer}, {short_name(stored.scorer_model)}"),
        value=number(score.value),
        interval=interval(score.ci_low, score.ci_high),
        remark=printable(remark),
        is_headline=run.headline.is_of(score),
    )


def _provenance_lines(explainer: str, provenance: Provenance) -> tuple[tuple[str, str], ...]:
    """Names and values, without empty values."""
    lines = {
        "explainer": explainer,
        "model": provenance.model,
        "revision": provenance.model_revision or "",
        "engine": provenance.engine,
        "engine version": provenance.engine_version or "",
        "sampling": ", ".join(f"{name} {value}" for name, value in provenance.sampling.items()),
        "prompt tokens": str(provenance.prompt_tokens),
        "completion tokens": str(provenance.completion_tokens),
        "seconds": f"{provenance.seconds:.1f}",
    }
    return tuple((name, printable(value)) for name, value in lines.items() if value)


def _simulation_sections(
    page: UnitPage, explanation: Explanation, urls: UrlBuilder, open_simulations: Collection[int]
) -> tuple[LazySection, ...]:
    sections = []
    for prediction in simulations(page):
        if prediction.explanation_id != explanation.id:
            continue
        simulator = printable(f"{prediction.scorer}, {short_name(prediction.provenance.model)}")
        is_open = prediction.id in open_simulations
        n_records = sum(record.kind in KINDS for record in prediction.records)
        sections.append(
            LazySection(
                id=f"simulation-{prediction.id}",
                title=f"true over simulated: {n_records} records, {simulator}",
                note=SIMULATION_NOTE,
                state=f"simulation={prediction.id}",
                records=simulated_views(page, prediction) if is_open else None,
                source=urls.section(page.unit.id, f"simulations/{prediction.id}"),
                link=urls.unit(page.unit.id, simulation=prediction.id) + f"#simulation-{prediction.id}",
            )
        )
    return tuple(sections)
