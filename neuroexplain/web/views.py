"""Objects -> what a page shows (pure). Templates draw it; the live viewer, the static site and notebooks share both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray

from neuroexplain.present import interval, number, printable, short_name
from neuroexplain.types import (
    CROP_LENGTH,
    SCORE_KINDS,
    Exemplar,
    Explanation,
    NeuronId,
    NeuronPage,
    QueryRow,
    Run,
    SimulatedRecord,
    Simulation,
    StoredScore,
)

HERE = Path(__file__).resolve().parent
SHADES = 20  # steps of a colour; each has a class, since the Content-Security-Policy allows no style attribute
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'"
)
EMPTY_SEARCH = dict.fromkeys(("q", "token", "layer", "min_score", "max_score", "simulator"), "") | {"sort": "score"}
BINS = 40  # of the histogram of scores, over -1..1


@dataclass(frozen=True, slots=True)
class RecordView:
    """One record as a page draws it."""

    kind: str
    rank: int
    activation: str
    split: str
    where: str  # document and place
    tokens: Markup  # drawn by draw_tokens
    is_simulated: bool


@dataclass(frozen=True)
class Links:
    """Where a page's links lead: routes of the live viewer, or files of the static site."""

    run_id: int | None = None  # None: the latest run, which needs no mention
    is_site: bool = False

    def start(self) -> str:
        return "index.html" if self.is_site else self._with("/", {})

    def neuron(self, neuron: NeuronId) -> str:
        if self.is_site:
            return f"neuron.html?at={neuron}"
        return self._with(f"/{neuron.layer}/{neuron.neuron}", {})

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
    simulated: SimulatedRecord | None = None,
    top_level: float = 0.0,
) -> Markup:
    """A line of boxes, one a token, coloured by activation: the one way in which a record is drawn.

    The largest value is outlined. Under the crop that was scored stand the simulated levels, coloured relative to `top_level`;
    the style shows them on demand. Colours are classes: p and n for positive and negative values, s for simulated ones.
    """
    peak = int(values.argmax()) if len(values) else -1
    under = [""] * len(texts)
    said = [""] * len(texts)
    crop = range(0)
    if simulated is not None:
        crop = range(simulated.first, min(simulated.first + CROP_LENGTH, len(texts)))
        levels = simulated.expected_levels
        for at, step, level in zip(
            crop, shades(np.maximum(np.nan_to_num(levels), 0), top_level), levels.tolist(), strict=False
        ):
            number = "" if math.isnan(level) else f"{level:.2f}"
            under[at] = f'<i class="s{step}">{number}</i>'
            said[at] = f" · simulated {number}" if number else ""
    boxes = []
    for at, (text, value, step) in enumerate(zip(texts, values.tolist(), shades(values, strongest), strict=True)):
        classes = f"t {'n' if step < 0 else 'p'}{abs(step)}"
        if at == peak:
            classes += " peak"
        if special is not None and special[at]:
            classes += " special"
        if at in crop:
            classes += " crop"
        boxes.append(f'<span class="{classes}" data-v="{value:.4g}{said[at]}">{_escaped(text)}{under[at]}</span>')
    return Markup("".join(boxes))


def record_view(
    page: NeuronPage, x: Exemplar, strongest: float, simulated: SimulatedRecord | None, top_level: float
) -> RecordView:
    """One record; `top_level` is the level that gets the simulated row's strongest colour."""
    tokens = [page.tokens[i] for i in x.token_ids.tolist()]
    place = f"segment {x.segment}" if x.document is None else f"document {x.document}, token {x.token_offset}"
    split = page.splits[x.kind, x.rank] or "in no split"
    drawn = draw_tokens(
        [t.text for t in tokens],
        x.activations,
        strongest,
        special=[t.special for t in tokens],
        simulated=simulated,
        top_level=top_level,
    )
    return RecordView(x.kind, x.rank, f"{x.activation:.4g}", split, place, drawn, simulated is not None)


@dataclass(frozen=True, slots=True)
class ScoreView:
    """One score's line."""

    kind: str
    split: str
    by: str
    correlation: str
    interval: str
    said: str  # records, null, or the reason why there is none
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
    headline_interval: str
    scores: tuple[ScoreView, ...]
    provenance: tuple[tuple[str, str], ...]
    prompt_sha256: str | None
    simulators: tuple[tuple[str, str], ...]  # (id of the simulation, its name)


@dataclass(frozen=True)
class NeuronView:
    """A neuron's page."""

    id: NeuronId
    run: Run
    status: str
    explanations: tuple[ExplanationView, ...]
    records: Mapping[str, tuple[RecordView, ...]]
    statistics: tuple[tuple[str, str], ...]
    histogram: Mapping[str, Any] | None
    promoted: tuple[tuple[str, str], ...]
    suppressed: tuple[tuple[str, str], ...]
    previous: NeuronId | None
    next: NeuronId | None
    simulated_by: str
    links: Links = field(default_factory=Links)


def neuron_view(
    page: NeuronPage,
    links: Links,
    simulation_id: int | None = None,
    *,
    neighbours: Sequence[NeuronId] | None = None,
    place: int = 0,
) -> NeuronView:
    """What a neuron's page shows; without a simulation's id, the best explanation's first one stands under the true values.

    Previous and next are the layer's neighbours, or those in `neighbours`, where the neuron is at `place`.
    """
    neuron = page.neuron
    strongest = max((abs(x.activation) for x in neuron.exemplars), default=0.0)
    usable = [s for s in page.simulations if s.records]
    chosen = next((s for s in usable if s.id == simulation_id), usable[0] if usable else None)
    simulated = {(r.kind, r.rank): r for r in chosen.records} if chosen else {}
    top_level = max(
        (float(np.nanmax(r.expected_levels)) for r in simulated.values() if not np.isnan(r.expected_levels).all()), default=0.0
    )
    records = {
        kind: tuple(
            record_view(page, x, strongest, simulated.get((x.kind, x.rank)), top_level)
            for x in neuron.exemplars
            if x.kind == kind
        )
        for kind in ("top", "bottom", "random")
    }
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
    here, last = neuron.id, page.run.d_mlp - 1
    before = NeuronId(here.layer, here.neuron - 1) if here.neuron else None
    after = NeuronId(here.layer, here.neuron + 1) if here.neuron < last else None
    if neighbours is not None:
        before = neighbours[place - 1] if place else None
        after = neighbours[place + 1] if place + 1 < len(neighbours) else None
    return NeuronView(
        id=here,
        run=page.run,
        status=neuron.status,
        explanations=tuple(_explanation_view(e, page.scores, page.simulations) for e in page.explanations),
        records={kind: found for kind, found in records.items() if found},
        statistics=statistics,
        histogram=_histogram(neuron.exemplars),
        promoted=tuple((visible(page.tokens[i].text), f"{logit:+.2f}") for i, logit in neuron.promoted),
        suppressed=tuple((visible(page.tokens[i].text), f"{logit:+.2f}") for i, logit in neuron.suppressed),
        previous=before,
        next=after,
        simulated_by="" if chosen is None else f"{chosen.simulator}, {short_name(chosen.provenance.model)}",
        links=links,
    )


def _explanation_view(e: Explanation, scores: Iterable[StoredScore], simulations: Iterable[Simulation]) -> ExplanationView:
    own = sorted(
        (s for s in scores if s.explanation_id == e.id),
        key=lambda s: (s.score.split != "report", s.simulator, s.simulator_model, SCORE_KINDS.index(s.score.kind)),
    )
    lines = []
    for s in own:
        said = f"{s.score.n_records} records, {s.score.n_tokens} tokens"
        if s.score.status != "ok":
            said = f"{s.score.status}: {s.score.reason}"
        elif s.score.other_correlation is not None:
            said += f"; another neuron's explanation {number(s.score.other_correlation)}"
        headline = s.score.split == "report" and s.score.kind == "top_and_random"
        by = f"{s.simulator}, {short_name(s.simulator_model)}"
        between = interval(s.score.ci_low, s.score.ci_high)
        lines.append(
            ScoreView(s.score.kind, s.score.split, by, number(s.score.correlation), between, printable(said), headline)
        )
    best = next((line for line in lines if line.is_headline), None)
    p = e.provenance
    provenance = [("explainer", e.explainer), ("model", p.model), ("revision", p.model_revision or ""), ("engine", p.engine)]
    provenance += [
        ("engine version", p.engine_version or ""),
        ("sampling", ", ".join(f"{k} {v}" for k, v in p.sampling.items())),
    ]
    provenance += [
        ("prompt tokens", str(p.prompt_tokens)),
        ("completion tokens", str(p.completion_tokens)),
        ("seconds", f"{p.seconds:.1f}"),
    ]
    by = f"{e.explainer}, {short_name(p.model)}" if e.explainer != p.model else e.explainer
    return ExplanationView(
        id=e.id or 0,
        text=printable(e.text or ""),
        status=e.status,
        reason=printable(e.reason or ""),
        by=printable(by),
        chosen=e.chosen,
        headline="-" if best is None else best.correlation,
        headline_interval="" if best is None else best.interval,
        scores=tuple(lines),
        provenance=tuple((name, printable(value)) for name, value in provenance if value),
        prompt_sha256=p.prompt_sha256,
        simulators=tuple(
            (str(s.id), printable(f"{s.simulator}, {short_name(s.provenance.model)}"))
            for s in simulations
            if s.explanation_id == e.id and s.records
        ),
    )


def _histogram(exemplars: Sequence[Exemplar]) -> Mapping[str, Any] | None:
    """The random records' activations in 40 bins: what a chart is drawn from."""
    values = [x.activations for x in exemplars if x.kind == "random"]
    if not values:
        return None
    counts, edges = np.histogram(np.concatenate(values), bins=40)
    return {
        "type": "bar",
        "x": "activation",
        "y": "tokens",
        "log": True,
        "labels": [f"{(a + b) / 2:.3g}" for a, b in pairwise(edges)],
        "series": [{"label": "random records", "data": counts.tolist()}],
    }


def score_charts(scores: Sequence[tuple[int, str, str, float]]) -> tuple[Mapping[str, Any], ...]:
    """The start page's two charts, from (layer, explainer, simulator, correlation): the distribution, and by layer."""
    if not scores:
        return ()
    names = sorted({f"{explainer}, {simulator}" for _, explainer, simulator, _ in scores})
    edges = np.linspace(-1, 1, BINS + 1)
    distribution, by_layer = [], []
    layers = sorted({layer for layer, *_ in scores})
    for name in names:
        own = [(layer, r) for layer, explainer, simulator, r in scores if f"{explainer}, {simulator}" == name]
        distribution.append({"label": printable(name), "data": np.histogram([r for _, r in own], edges)[0].tolist()})
        grouped: dict[int, list[float]] = {}
        for layer, r in own:
            grouped.setdefault(layer, []).append(r)
        means = [round(float(np.mean(grouped[layer])), 4) if layer in grouped else None for layer in layers]
        by_layer.append({"label": printable(name), "data": means})
    middles = [f"{(a + b) / 2:.2f}" for a, b in pairwise(edges)]
    return (
        {
            "title": "Distribution of scores",
            "type": "bar",
            "x": "score",
            "y": "explanations",
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

    neuron: NeuronId
    explanation: str
    score: str
    interval: str
    by: str
    simulator: str
    max_activation: str


def row_view(row: QueryRow) -> RowView:
    by = f"{row.explainer}, {short_name(row.model)}" if row.explainer != row.model else row.explainer
    return RowView(
        neuron=row.neuron,
        explanation=printable(row.explanation),
        score=number(row.correlation),
        interval=interval(row.ci_low, row.ci_high),
        by=printable(by),
        simulator=printable(f"{row.simulator}, {short_name(row.simulator_model or '')}") if row.simulator else "",
        max_activation="" if row.max_activation is None else f"{row.max_activation:.3g}",
    )


def printable_lines(text: str) -> str:
    """Several lines, each made harmless."""
    return "\n".join(printable(line) for line in text.split("\n"))


def corpus_name(run: Run) -> str:
    """What the run read, in a few words."""
    named = run.config.get("dataset") or run.config.get("folder") or ""
    names = [named] if isinstance(named, str) else list(named)
    return ", ".join(Path(str(name)).name if str(name).startswith("/") else str(name) for name in names[:3])


def notebook_neuron(page: NeuronPage, top: int = 8) -> str:
    """A neuron for a notebook: its explanations and strongest records, drawn as in the viewer, with the style along."""
    n = neuron_view(page, Links())
    css = (HERE / "static" / "tokens.css").read_text(encoding="utf-8")
    return render("notebook_neuron.html", n=n, records=n.records.get("top", ())[:top], css=Markup(css))


def notebook_rows(rows: Sequence[QueryRow]) -> str:
    """Search results for a notebook."""
    return render("notebook_rows.html", rows=[row_view(row) for row in rows])
