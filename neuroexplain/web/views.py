"""Objects -> what a page shows (pure). Templates draw it; the live viewer, the static site and notebooks share both."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray

from neuroexplain.evidence import Exemplar, Explanation, PredictedRecord, Prediction, Status
from neuroexplain.formatting import (
    explained_by,
    interval,
    number,
    printable,
    random_histogram,
    score_order,
    short_name,
)
from neuroexplain.runs import QueryRow, Run, UnitPage
from neuroexplain.units import UnitId

HERE = Path(__file__).resolve().parent
SPLITS = {
    "explain": "shown to explainers",
    "select": "kept for choosing",
    "report": "kept for the score",
}
SHADES = (
    20  # steps of a colour; each has a class, since the Content-Security-Policy allows no style attribute
)
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'"
)
CLASSES = {step: f"{'n' if step < 0 else 'p'}{abs(step)}" for step in range(-SHADES, SHADES + 1)}
EMPTY_SEARCH = dict.fromkeys(("q", "token", "layer", "min_score", "max_score", "scorer", "metric"), "") | {
    "sort": "score"
}
BINS = 40  # of the histogram of scores, over -1..1


CHUNK = 8  # neurons in one file of the static site


@dataclass(frozen=True, slots=True)
class RecordView:
    """One record as a page draws it."""

    name: str  # kind and place
    activation: str
    split: str
    where: str  # document and place
    tokens: Markup  # drawn by draw_tokens


@dataclass(frozen=True, slots=True)
class Folded:
    """A part of a neuron's page that is drawn when it is opened: with the page where the address asks for it, else fetched."""

    id: str
    title: str
    state: str  # what the address says when it is open
    records: tuple[RecordView, ...] | None  # None: to be fetched
    source: str  # from here
    link: str  # to the page with it, for who has no JavaScript


@dataclass(frozen=True)
class Links:
    """Where a page's links lead: routes of the live viewer, or files of the static site."""

    run_id: int | None = None  # None: the latest run, which needs no mention
    is_site: bool = False

    def start(self) -> str:
        return "index.html" if self.is_site else self._with("/", {})

    def neuron(self, neuron: UnitId, **state: Any) -> str:
        if self.is_site:
            return f"neuron.html?at={neuron}"
        return self._with(f"/{neuron.layer}/{neuron.index}", state)

    def fragment(self, neuron: UnitId, name: str) -> str:
        """Where a part of a neuron's page is fetched from: `records/random`, `simulations/7`. On the site: a key in a file."""
        if self.is_site:
            return f"data/fragments/{chunk_name(neuron)}.json#{neuron}/{name}"
        return self._with(f"/{neuron.layer}/{neuron.index}/{name}", {})

    def search(self, **state: Any) -> str:
        return self._with("search.html" if self.is_site else "/search", state)

    def random(self) -> str:
        return "neuron.html?at=random" if self.is_site else self._with("/random", {})

    def prompt(self, sha256: str) -> str | None:
        return None if self.is_site else self._with(f"/prompts/{sha256}", {})

    def token(self, text: str) -> str:
        return self.search(token=text)

    def static(self, name: str) -> str:
        return f"static/{name}" if self.is_site else f"/static/{name}"

    def _with(self, path: str, state: Mapping[str, Any]) -> str:
        kept = {name: value for name, value in state.items() if value not in (None, "")}
        if self.run_id is not None:
            kept["run"] = self.run_id
        return f"{path}?{urlencode(kept)}" if kept else path


@cache
def templates() -> Environment:
    """The templates, escaping everything; an unknown name is an error."""
    env = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)
    env.trim_blocks = env.lstrip_blocks = True
    env.filters |= {"printable": printable, "number": number, "short_name": short_name}
    env.globals["interval"] = interval
    return env


def render(name: str, **values: Any) -> str:
    return templates().get_template(name).render(**values)


def chunk_name(neuron: UnitId) -> str:
    """The file of the static site that holds a neuron's page."""
    return f"{neuron.layer}-{neuron.index // CHUNK}"


def visible(text: str) -> str:
    """A token's text with white space shown and nothing in it that a browser would act on or hide."""
    shown = printable(text)
    return "␣" * len(shown) if shown and not shown.strip() else shown


@lru_cache(maxsize=200_000)
def _escaped(text: str) -> str:
    return str(escape(visible(text)))


def shades(values: NDArray[Any], strongest: float) -> list[int]:
    """Each value's step of colour, 0..20 on a log scale; negative values have negative steps. See present.strength."""
    if strongest <= 0:
        return [0] * len(values)
    share = np.minimum(np.abs(values) / strongest, 1.0)
    steps = np.where(values == 0, 0, np.rint((0.05 + 0.95 * np.log10(1 + 9 * share)) * SHADES)).astype(int)
    found: list[int] = np.where(values < 0, -steps, steps).tolist()
    return found


def draw_tokens(
    texts: Sequence[str],
    values: NDArray[Any],
    strongest: float,
    *,
    special: Sequence[bool] | None = None,
    simulated: PredictedRecord | None = None,
    top_level: float = 0.0,
) -> Markup:
    """A line of boxes, one a token, coloured by activation: the one way in which a record is drawn.

    The largest value is outlined. Under the crop that was scored stand the simulated levels, coloured relative to `top_level`.
    Colours are classes: p and n for positive and negative values, s for simulated ones.
    """
    classes = [CLASSES[step] for step in shades(values, strongest)]
    under, said = [""] * len(texts), [""] * len(texts)
    if len(texts):
        classes[int(values.argmax())] += " peak"
    if special is not None:
        classes = [
            one + " special" if is_special else one for one, is_special in zip(classes, special, strict=True)
        ]
    if simulated is not None:
        levels = simulated.values
        steps = shades(np.maximum(np.nan_to_num(levels), 0), top_level)
        for at, (step, level) in enumerate(zip(steps, levels.tolist(), strict=True), simulated.first):
            number = "no prediction" if math.isnan(level) else f"{level:.2f}"
            classes[at] += " crop"
            under[at] = f'<i class="s{step}">{"" if math.isnan(level) else number}</i>'
            said[at] = f" · simulated {number}"
    drawn = zip(texts, values.tolist(), classes, under, said, strict=True)
    boxes = [
        f'<span class="t {c}" data-v="{value:.4g}{s}">{_escaped(text)}{u}</span>'
        for text, value, c, u, s in drawn
    ]
    return Markup("".join(boxes))


def record_views(page: UnitPage, kind: str) -> tuple[RecordView, ...]:
    """A neuron's records of one kind, in rank order."""
    strongest = _strongest(page)
    return tuple(_record_view(page, x, strongest) for x in page.unit.exemplars if x.kind == kind)


def simulated_views(page: UnitPage, prediction: Prediction) -> tuple[RecordView, ...]:
    """The records that were simulated, true over simulated, in the order of kinds and ranks."""
    strongest = _strongest(page)
    by_place = {(r.kind, r.rank): r for r in prediction.records}
    predicted = [r.values[~np.isnan(r.values)] for r in prediction.records]
    top_level = max((float(levels.max()) for levels in predicted if len(levels)), default=0.0)
    shown = (x for x in page.unit.exemplars if (x.kind, x.rank) in by_place)
    return tuple(_record_view(page, x, strongest, by_place[x.kind, x.rank], top_level) for x in shown)


def find_prediction(page: UnitPage, simulation_id: int) -> Prediction | None:
    """One of the neuron's simulations that has records."""
    return next(
        (s for s in page.predictions if s.id == simulation_id and s.records and s.codec == "levels"), None
    )


def _strongest(page: UnitPage) -> float:
    return max((abs(x.activation) for x in page.unit.exemplars), default=0.0)


def _record_view(
    page: UnitPage,
    x: Exemplar,
    strongest: float,
    simulated: PredictedRecord | None = None,
    top_level: float = 0.0,
) -> RecordView:
    """One record; `top_level` is the level that gets the simulated row's strongest colour."""
    tokens = [page.tokens[i] for i in x.token_ids.tolist()]
    drawn = draw_tokens(
        [t.text for t in tokens],
        x.activations,
        strongest,
        special=[t.special for t in tokens],
        simulated=simulated,
        top_level=top_level,
    )
    place = f"segment {x.segment}" if x.document is None else f"document {x.document}, token {x.token_offset}"
    split = SPLITS.get(page.splits[x.kind, x.rank] or "", "in no split")
    return RecordView(f"{x.kind} {x.rank}", f"{x.activation:.4g}", split, place, drawn)


@dataclass(frozen=True, slots=True)
class ScoreView:
    """One score's line."""

    metric: str
    subset: str
    split: str
    by: str
    value: str
    interval: str
    about: str  # records, control, or the reason why there is no value
    is_headline: bool


@dataclass(frozen=True, slots=True)
class ExplanationView:
    """One explanation with its scores, the headline first."""

    id: int
    text: str
    status: str
    reason: str
    by: str
    chosen: bool
    headline: str
    headline_name: str  # metric and subset
    headline_interval: str
    scores: tuple[ScoreView, ...]
    provenance: tuple[tuple[str, str], ...]
    prompt_sha256: str | None
    simulated: tuple[Folded, ...]  # true over simulated, by simulator


@dataclass(frozen=True)
class NeuronView:
    """A neuron's page."""

    id: UnitId
    label: str
    run: Run
    status: str
    explanations: tuple[ExplanationView, ...]
    others: tuple[ExplanationView, ...]  # candidates that were not chosen
    top: tuple[RecordView, ...]
    more: tuple[Folded, ...]  # bottom and random records
    statistics: tuple[tuple[str, str], ...]
    histogram: Mapping[str, Any] | None
    promoted: tuple[tuple[str, str], ...]
    suppressed: tuple[tuple[str, str], ...]
    previous: UnitId | None
    next: UnitId | None


def neuron_view(
    page: UnitPage,
    links: Links,
    *,
    shown: Collection[str] = (),
    predictions: Collection[int] = (),
    neighbours: Sequence[UnitId] | None = None,
    place: int = 0,
) -> NeuronView:
    """What a neuron's page shows. Of the folded parts, the kinds in `shown` and the ids in `simulations` are drawn at once.

    Previous and next are the layer's neighbours, or those in `neighbours`, where the neuron is at `place`.
    """
    neuron = page.unit
    held = Counter(x.kind for x in neuron.exemplars)
    more = tuple(
        Folded(
            id=kind,
            title=f"{held[kind]} {kind} records",
            state=f"show={kind}",
            records=record_views(page, kind) if kind in shown else None,
            source=links.fragment(neuron.id, f"records/{kind}"),
            link=links.neuron(neuron.id, show=kind) + f"#{kind}",
        )
        for kind in ("bottom", "random")
        if held[kind]
    )
    explanations = [_explanation_view(page, e, links, predictions) for e in page.explanations]
    all_alike = len({e.chosen for e in explanations}) < 2  # none was chosen over another
    s = neuron.stats
    statistics = (
        ()
        if s is None
        else (
            ("mean", f"{s.mean:.4g}"),
            ("standard deviation", f"{s.std:.4g}"),
            ("minimum", f"{s.min:.4g}"),
            ("maximum", f"{s.max:.4g}"),
            ("share of tokens above 0", f"{s.share_positive:.1%}"),
        )
    )
    here, last = neuron.id, page.run.width(neuron.id.layer) - 1
    before = UnitId(here.layer, here.index - 1) if here.index else None
    after = UnitId(here.layer, here.index + 1) if here.index < last else None
    if neighbours is not None:
        before = neighbours[place - 1] if place else None
        after = neighbours[place + 1] if place + 1 < len(neighbours) else None
    return NeuronView(
        id=here,
        label=page.run.label(here),
        run=page.run,
        status=neuron.status,
        explanations=tuple(e for e in explanations if e.chosen or all_alike),
        others=tuple(e for e in explanations if not (e.chosen or all_alike)),
        top=record_views(page, "top"),
        more=more,
        statistics=statistics,
        histogram=_histogram(neuron.exemplars),
        promoted=tuple((visible(page.tokens[i].text), f"{logit:+.2f}") for i, logit in neuron.promoted),
        suppressed=tuple((visible(page.tokens[i].text), f"{logit:+.2f}") for i, logit in neuron.suppressed),
        previous=before,
        next=after,
    )


def _explanation_view(
    page: UnitPage, e: Explanation, links: Links, open_simulations: Collection[int]
) -> ExplanationView:
    lines = []
    for s in sorted(
        (s for s in page.scores if s.explanation_id == e.id), key=lambda s: score_order(page.run, s)
    ):
        score = s.score
        about = f"{score.n_records} records, {score.n_tokens} tokens"
        if score.status != Status.OK:
            about = f"{score.status}: {score.reason}"
        elif score.control is not None:
            about += f"; another unit's explanation {number(score.control)}"
        lines.append(
            ScoreView(
                metric=printable(score.metric.replace("_", " ")),
                subset=printable(score.subset.replace("_", " ")),
                split=SPLITS[score.split],
                by=printable(f"{s.scorer}, {short_name(s.scorer_model)}"),
                value=number(score.value),
                interval=interval(score.ci_low, score.ci_high),
                about=printable(about),
                is_headline=page.run.headline.is_of(score),
            )
        )
    best = next((line for line in lines if line.is_headline), None)
    p = e.provenance
    provenance = [
        ("explainer", e.explainer),
        ("model", p.model),
        ("revision", p.model_revision or ""),
        ("engine", p.engine),
    ]
    provenance += [
        ("engine version", p.engine_version or ""),
        ("sampling", ", ".join(f"{k} {v}" for k, v in p.sampling.items())),
    ]
    provenance += [
        ("prompt tokens", str(p.prompt_tokens)),
        ("completion tokens", str(p.completion_tokens)),
        ("seconds", f"{p.seconds:.1f}"),
    ]
    simulated = []
    for one in page.predictions:
        if one.explanation_id == e.id and one.records and one.id is not None and one.codec == "levels":
            is_open, name = (
                one.id in open_simulations,
                printable(f"{one.scorer}, {short_name(one.provenance.model)}"),
            )
            simulated.append(
                Folded(
                    id=f"simulation-{one.id}",
                    title=f"true over simulated: {len(one.records)} records, {name}",
                    state=f"simulation={one.id}",
                    records=simulated_views(page, one) if is_open else None,
                    source=links.fragment(page.unit.id, f"simulations/{one.id}"),
                    link=links.neuron(page.unit.id, simulation=one.id) + f"#simulation-{one.id}",
                )
            )
    return ExplanationView(
        id=e.id or 0,
        text=printable(e.text or ""),
        status=e.status,
        reason=printable(e.reason or ""),
        by=explained_by(e.explainer, p.model)
        + (f", candidate {e.candidate + 1}" if e.candidate else "")
        + (f", {e.side} side" if len(page.run.sides) > 1 or e.side == "negative" else ""),
        chosen=e.chosen,
        headline="-" if best is None else best.value,
        headline_name="" if best is None else f"{best.metric}, {best.subset}",
        headline_interval="" if best is None else best.interval,
        scores=tuple(lines),
        provenance=tuple((name, printable(value)) for name, value in provenance if value),
        prompt_sha256=p.prompt_sha256,
        simulated=tuple(simulated),
    )


def _histogram(exemplars: Sequence[Exemplar]) -> Mapping[str, Any] | None:
    """The random records' activations in bins: what a chart is drawn from."""
    counts, middles = random_histogram(exemplars)
    if not counts:
        return None
    return {
        "type": "bar",
        "x": "activation",
        "y": "tokens",
        "log": True,
        "labels": [f"{middle:.3g}" for middle in middles],
        "series": [{"label": "random records", "data": counts}],
    }


def score_charts(scores: Sequence[tuple[int, str, str, float]]) -> tuple[Mapping[str, Any], ...]:
    """The start page's two charts, from (layer, explainer, scorer, score): the distribution, and by layer."""
    if not scores:
        return ()
    names = sorted({f"{explainer}, {scorer}" for _, explainer, scorer, _ in scores})
    edges = np.linspace(-1, 1, BINS + 1)
    distribution, by_layer = [], []
    layers = sorted({layer for layer, *_ in scores})
    for name in names:
        own = [(layer, r) for layer, explainer, scorer, r in scores if f"{explainer}, {scorer}" == name]
        distribution.append(
            {"label": printable(name), "data": np.histogram([r for _, r in own], edges)[0].tolist()}
        )
        grouped: dict[int, list[float]] = {}
        for layer, r in own:
            grouped.setdefault(layer, []).append(r)
        means = [round(float(np.mean(grouped[layer])), 4) if layer in grouped else None for layer in layers]
        by_layer.append({"label": printable(name), "data": means})
    middles = [round((a + b) / 2, 4) for a, b in pairwise(edges.tolist())]
    return (
        {
            "title": "Distribution of scores",
            "type": "bar",
            "x": "score",
            "y": "explanations",
            "range": [-1, 1],
            "labels": middles,
            "series": distribution,
        },
        {
            "title": "Mean score by layer",
            "type": "line",
            "x": "layer",
            "y": "mean score",
            "labels": [str(n) for n in layers],
            "series": by_layer,
        },
    )


@dataclass(frozen=True, slots=True)
class RowView:
    """One line of search results."""

    unit: UnitId
    label: str
    explanation: str
    score: str
    interval: str
    by: str
    scorer: str
    max_activation: str


def row_view(row: QueryRow) -> RowView:
    return RowView(
        unit=row.unit,
        label=row.label,
        explanation=printable(row.explanation),
        score=number(row.score),
        interval=interval(row.ci_low, row.ci_high),
        by=explained_by(row.explainer, row.model) + (", negative side" if row.side == "negative" else ""),
        scorer=printable(f"{row.scorer}, {short_name(row.scorer_model or '')}") if row.scorer else "",
        max_activation="" if row.max_activation is None else f"{row.max_activation:.3g}",
    )


def printable_lines(text: str) -> str:
    """Several lines, each made harmless."""
    return "\n".join(printable(line) for line in text.split("\n"))


def notebook_neuron(page: UnitPage, top: int = 8) -> str:
    """A neuron for a notebook: its explanations and strongest records, drawn as in the viewer, with the style along."""
    n = neuron_view(page, Links())
    css = (HERE / "static" / "tokens.css").read_text(encoding="utf-8")
    return render("notebook_neuron.html", n=n, records=n.top[:top], css=Markup(css))


def notebook_rows(rows: Sequence[QueryRow]) -> str:
    """Search results for a notebook."""
    return render("notebook_rows.html", rows=[row_view(row) for row in rows])
