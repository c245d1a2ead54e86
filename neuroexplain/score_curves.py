"""Database -> the scores of runs as curves: which share of the units scores above each value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from neuroexplain.comparing import text_read
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Headline, Status
from neuroexplain.formatting import explained_by, headline_name, short_name
from neuroexplain.runs import Run
from neuroexplain.scorers.base import choose_headline
from neuroexplain.store.engine import Store
from neuroexplain.store.runs import load_run
from neuroexplain.store.score_outcomes import list_explained, list_outcomes
from neuroexplain.units import ranges_text

By: TypeAlias = tuple[str, str]  # an explainer, or a scorer, and its model


@dataclass(frozen=True)
class ScoreCurve:
    """The scores of a run's units by one explainer and one scorer. Sides of a unit count apart."""

    run: Run
    explained_by: By
    scored_by: By
    scores: tuple[float, ...]
    without: Mapping[str, int] = field(default_factory=dict)  # units tried without a score, by status
    n_not_scored: int = 0  # explained, and never given to this scorer: no part of the curve

    @property
    def n(self) -> int:
        """How many units were tried: those without a score are above no value."""
        return len(self.scores) + sum(self.without.values())

    @property
    def name(self) -> str:
        """Whose units they are, and who explained them."""
        return f"{self.run.noun} of run {self.run.id}: {explained_by(*self.explained_by)}"


@dataclass(frozen=True)
class ScoreCurves:
    """Curves that can stand in one picture, since all are of one score."""

    headline: Headline
    curves: tuple[ScoreCurve, ...]
    notes: tuple[str, ...]  # what a person should know before they are compared


def load_curves(
    store: Store,
    run_ids: Sequence[int | None] = (None,),
    *,
    metric: str | None = None,
    scorer: str | None = None,
    layers: Collection[int] | None = None,
) -> ScoreCurves:
    """A curve for each run, explainer and scorer; of several runs only the scorer that all of them have.

    Their units need not be the same. Raises NeuroexplainError if a run is not there, or if the runs have no
    score in common.
    """
    runs = list({run.id: run for run in (load_run(store, run_id) for run_id in run_ids)}.values())
    own = list(dict.fromkeys(choose_headline(run, metric, scorer) for run in runs))
    curves: dict[Headline, list[ScoreCurve]] = {}
    for headline in own:
        by_run = [_curves_of(store, run, headline, scorer, layers) for run in runs]
        curves[headline] = [curve for its_curves in by_run for curve in its_curves]
        if common := _common_scorers(by_run):
            chosen = common if len(runs) == 1 else common[:1]
            drawn = [curve for curve in curves[headline] if curve.scored_by in chosen]
            return ScoreCurves(headline, tuple(drawn), _notes(runs, own, headline, chosen, common))
    raise NeuroexplainError(_why_refused(store, runs, curves, layers))


def _curves_of(
    store: Store, run: Run, headline: Headline, scorer: str | None, layers: Collection[int] | None
) -> list[ScoreCurve]:
    explained = list_explained(store, run.id, layers)
    status_of = {row.id: row.status for row in _newest(explained)}
    by_of = {row.id: (row.explainer, row.model) for row in explained if row.id in status_of}
    rows: dict[tuple[By, By], list[Any]] = {}
    for row in list_outcomes(store, run.id, headline, layers):
        if row.explanation_id in status_of and scorer in (None, row.scorer):
            key = by_of[row.explanation_id], (row.scorer, row.scorer_model)
            rows.setdefault(key, []).append(row)
    curves = []
    for (by, scored_by), its_rows in sorted(rows.items()):
        failed = [status for number, status in status_of.items() if by_of[number] == by and status != "ok"]
        undefined = [row.status for row in its_rows if row.value is None]
        scores = tuple(sorted(row.value for row in its_rows if row.value is not None))
        n_explained = sum(by_of[number] == by and status == "ok" for number, status in status_of.items())
        without = dict(Counter([*failed, *undefined]).most_common())
        curves.append(ScoreCurve(run, by, scored_by, scores, without, n_explained - len(its_rows)))
    return curves


def _newest(explained: Iterable[Any]) -> Collection[Any]:
    """Of each explainer's explanations of a side the newest usable one, or the newest failure if none is."""
    newest: dict[tuple[Any, ...], Any] = {}
    for row in explained:  # in the order of their ids
        key = (row.layer, row.unit, row.side, row.explainer, row.model)
        if key not in newest or row.status == Status.OK or newest[key].status != Status.OK:
            newest[key] = row
    return newest.values()


def _common_scorers(by_run: Sequence[Sequence[ScoreCurve]]) -> list[By]:
    """The scorers that every run has, the one with most scores in the run that has fewest of it first."""
    counts = [Counter[By]() for _ in by_run]
    for its_curves, count in zip(by_run, counts, strict=True):
        for curve in its_curves:
            count[curve.scored_by] += len(curve.scores)
    common = [by for by in counts[0] if all(count[by] for count in counts)]
    return sorted(common, key=lambda by: (-min(count[by] for count in counts), by))


def _notes(
    runs: Sequence[Run],
    own: Sequence[Headline],
    headline: Headline,
    chosen: Sequence[By],
    common: Sequence[By],
) -> tuple[str, ...]:
    notes = []
    if len(own) > 1:
        names = " and ".join(headline_name(h) for h in own)
        notes.append(f"The runs' headlines differ ({names}): drawn by {headline_name(headline)}.")
    if others := [explained_by(*by) for by in common if by not in chosen]:
        notes.append(f"Scored by {', '.join(others)} too: --scorer chooses.")
    if len({short_name(run.subject) for run in runs}) > 1:
        notes.append("The runs are of different models, so a difference may be that of the models.")
    if any(text_read(run) != text_read(runs[0]) for run in runs):
        notes.append("The runs read different text, so a difference may be that of the text.")
    return tuple(notes)


def _why_refused(
    store: Store,
    runs: Sequence[Run],
    curves: Mapping[Headline, Sequence[ScoreCurve]],
    layers: Collection[int] | None,
) -> str:
    """Why there is no curve: the runs have no score in common, or the only one has none."""
    of_layers = "" if layers is None else f" in layer {ranges_text(layers)}"
    if len(runs) == 1:
        return (
            f"Run {runs[0].id} of {store.name} has no {headline_name(next(iter(curves)))}{of_layers}.\n"
            f"Make some:  neuroexplain explain --db {store.name} --layer {runs[0].layers[0]}"
        )
    held = []
    for run in runs:
        scores = {
            f"{headline_name(headline)} by {explained_by(*curve.scored_by)}"
            for headline, its_curves in curves.items()
            for curve in its_curves
            if curve.run.id == run.id and curve.scores
        }
        held.append(f"run {run.id} has {', '.join(sorted(scores)) or 'none'}")
    return (
        f"The runs have no score in common{of_layers}: {'; '.join(held)}.\n"
        "Score all by one scorer:  neuroexplain score UNITS --scorer S --run N"
        + (" --bills" if len(curves) > 1 else "")
    )
