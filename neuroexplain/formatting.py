"""Objects -> JSON values, CSV and safe text (pure): what the terminal, the viewer, notebooks and exports have in common."""

from __future__ import annotations

import csv
import io
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroexplain.evidence import SUBSETS, Exemplar, PredictedRecord, Prediction, Stats, Status, StoredScore
from neuroexplain.runs import QueryRow, Run, Session, UnitPage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUMMED = (
    "seconds",
    "n_neurons",
    "n_failed",
    "prompt_tokens",
    "completion_tokens",
    "scorer_prompt_tokens",
    "scored_tokens",
)
_SHOWN = {"\n": "↵", "\r": "␍", "\t": "→", "\0": "␀"}
_HIDDEN = {
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Zl",
    "Zp",
}  # controls, bidirectional and zero-width marks, surrogates, separators


def printable(text: str) -> str:
    """The text on one line with nothing in it that a terminal would act on or hide: white space shown, controls as U+XXXX."""
    if text.isprintable():  # none of those categories
        return text
    return "".join(
        _SHOWN.get(c) or (f"<U+{ord(c):04X}>" if unicodedata.category(c) in _HIDDEN else c) for c in text
    )


def strength(value: float, strongest: float) -> float:
    """How strongly a token is coloured, 0..1, on a log scale: `0.05 + 0.95 * log10(1 + 9 r)`, r relative to the strongest."""
    if strongest <= 0 or not value:
        return 0.0
    return 0.05 + 0.95 * math.log10(1 + 9 * min(1.0, abs(value) / strongest))


def show_json(page: UnitPage) -> dict[str, Any]:
    """One neuron as `show --json` prints it and the API answers."""
    unit, run = page.unit, page.run
    scores = {e.id: [s for s in page.scores if s.explanation_id == e.id] for e in page.explanations}
    predictions = {e.id: [s for s in page.predictions if s.explanation_id == e.id] for e in page.explanations}
    return {
        "run": run_json(run),
        "source": asdict(source) if (source := run.source(unit.id.layer)) is not None else None,
        "layer": unit.id.layer,
        "unit": unit.id.index,
        "neuron": unit.id.index,  # its name in earlier versions
        "status": unit.status,
        "stats": dict.fromkeys(Stats.__dataclass_fields__) if unit.stats is None else asdict(unit.stats),
        "promoted_tokens": [[page.tokens[i].text, logit] for i, logit in unit.promoted],
        "suppressed_tokens": [[page.tokens[i].text, logit] for i, logit in unit.suppressed],
        "exemplars": [
            {
                "kind": x.kind,
                "rank": x.rank,
                "split": page.splits[x.kind, x.rank],
                "segment": x.segment,
                "start": x.start,
                "document": x.document,
                "token_offset": x.token_offset,
                "activation": x.activation,
                "token_ids": x.token_ids.tolist(),
                "tokens": [page.tokens[i].text for i in x.token_ids.tolist()],
                "activations": x.activations.tolist(),
            }
            for x in unit.exemplars
        ],
        "explanations": [
            {
                "id": e.id,
                "text": e.text,
                "explainer": e.explainer,
                "model": e.provenance.model,
                "prompt_sha256": e.provenance.prompt_sha256,
                "status": e.status,
                "reason": e.reason,
                "candidate": e.candidate,
                "chosen": e.chosen,
                "side": e.side,
                "covers": None if e.covers is None else list(e.covers),
                "parts": None if e.parts is None else list(e.parts),
                "scores": [score_json(s) for s in scores[e.id]],
                "predictions": [
                    {
                        "scorer": p.scorer,
                        "scorer_model": p.provenance.model,
                        "kind": r.kind,
                        "rank": r.rank,
                        "split": page.splits.get((r.kind, r.rank)),
                        "scored": [r.first, r.first + len(r.values)],
                        **prediction_json(p, r),
                    }
                    for p in predictions[e.id]
                    for r in p.records
                ],
            }
            for e in page.explanations
        ],
    }


def score_json(stored: StoredScore) -> dict[str, Any]:
    """One metric's object. Why there is no interval and no control is said, also where the metric never has one."""
    score = asdict(stored.score)
    if stored.score.status == Status.OK:
        for value, reason in (("ci_low", "ci_reason"), ("control", "control_reason")):
            if score[value] is None and score[reason] is None:
                score[reason] = f"not computed for {stored.score.metric}"
    return {"scorer": stored.scorer, "scorer_model": stored.scorer_model, **score}


def score_order(run: Run, stored: StoredScore) -> tuple[object, ...]:
    """A key that sorts a unit's scores for reading: the headline first, then by scorer, metric and subset."""
    subsets = [subset for side in SUBSETS.values() for subset in side]
    score = stored.score
    place = subsets.index(score.subset) if score.subset in subsets else len(subsets)
    headline = run.headline
    by = (
        score.split != "report",
        stored.scorer,
        stored.scorer_model,
        score.metric != headline.metric,
        score.metric,
    )
    return not headline.is_of(score), *by, place, score.subset


def prediction_json(prediction: Prediction, record: PredictedRecord) -> dict[str, Any]:
    """What was predicted of one record, under the names of the scorer's codec."""
    from neuroexplain.scoring.codecs import CODECS

    arrays = (record.values, record.detail, record.control)
    names = zip(CODECS[prediction.codec].names, arrays, strict=True)
    return {name: None if values is None else _without_nan(values) for name, values in names}


def run_json(run: Run) -> dict[str, Any]:
    widths = {source.width for source in run.sources}
    neurons = {"d_mlp": max(widths)} if run.kind == "mlp" and widths else {}  # as earlier versions said it
    sources = [asdict(source) for source in run.sources]
    return {**asdict(run), "layers": list(run.layers), "sources": sources, **neurons}


QUERY_COLUMNS = (
    *(
        "layer",
        "unit",
        "neuron",
        "source",
        "side",
        "explanation",
        "explanation_id",
        "score",
        "metric",
        "subset",
    ),
    *("scorer", "scorer_model", "correlation", "ci_low", "ci_high", "explainer", "model", "max_activation"),
)


def query_json(rows: Sequence[QueryRow]) -> list[dict[str, Any]]:
    """`query --json`: one object a row, best first; `neuron` is the old name of `unit`."""
    own = QUERY_COLUMNS[3:]
    return [
        {"layer": row.unit.layer, "unit": row.unit.index, "neuron": row.unit.index}
        | {name: getattr(row, name) for name in own}
        for row in rows
    ]


def query_csv(rows: Sequence[QueryRow]) -> str:
    """`query --csv`: a header and one line a row; a cell that a spreadsheet would run as a formula gets an apostrophe."""
    out = io.StringIO()
    objects = query_json(rows)
    writer = csv.DictWriter(out, QUERY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for one in objects:
        writer.writerow(
            {name: _defused(value) if isinstance(value, str) else value for name, value in one.items()}
        )
    return out.getvalue()


def scores_json(scores: Sequence[StoredScore]) -> list[dict[str, Any]]:
    """`score --json`: one object a metric."""
    return [
        {
            "layer": s.unit.layer,
            "unit": s.unit.index,
            "neuron": s.unit.index,
            "explanation_id": s.explanation_id,
            **score_json(s),
        }
        for s in scores
    ]


def session_text(session: Session) -> str:
    """What a command that explained or scored did and cost, in a line."""
    minutes = session.seconds / 60
    said = f"{session.n_neurons:,} neurons in {minutes:.1f} minutes"
    if minutes > 0:
        said += f", {session.n_neurons / minutes:,.1f} a minute"
    cached = "" if session.cached_tokens is None else f" ({session.cached_tokens:,} of them cached)"
    said += f"; {session.prompt_tokens:,} prompt{cached} and {session.completion_tokens:,} completion tokens"
    if session.scored_tokens and session.scorer_prompt_tokens >= 0.05 * session.scored_tokens:
        said += f", {session.scorer_prompt_tokens / session.scored_tokens:.1f} prompt tokens per scored token"
    return said + (f"; {session.n_failed:,} failed" if session.n_failed else "") + "."


def join_sessions(sessions: Iterable[Session]) -> list[Session]:
    """The sessions of the same explainer, scorer and models added up, in the order of the first."""
    joined: dict[tuple[str | None, ...], Session] = {}
    for one in sessions:
        by = (one.explainer, one.model, one.scorer, one.scorer_model)
        before = joined.get(by)
        if before is None:
            joined[by] = one
            continue
        sums = {name: getattr(before, name) + getattr(one, name) for name in SUMMED}
        known = [s.cached_tokens for s in (before, one) if s.cached_tokens is not None]
        joined[by] = replace(before, **sums, cached_tokens=sum(known) if known else None)
    return list(joined.values())


def random_histogram(exemplars: Sequence[Exemplar], bins: int = 40) -> tuple[list[int], list[float]]:
    """How many tokens of the random records lie in each bin of activations, and the bins' middles; both empty without them."""
    import numpy as np

    values = [x.activations for x in exemplars if x.kind == "random"]
    if not values:
        return [], []
    counts, edges = np.histogram(np.concatenate(values), bins=bins)
    return counts.tolist(), ((edges[:-1] + edges[1:]) / 2).tolist()


def corpus_name(run: Run) -> str:
    """What the run read, in a few words."""
    named = run.config.get("dataset") or run.config.get("folder") or ""
    names = [named] if isinstance(named, str) else list(named)
    return ", ".join(Path(str(name)).name if str(name).startswith("/") else str(name) for name in names[:3])


def short_name(model: str) -> str:
    """A model file by its name alone; hub names and folders as they are."""
    return model.rsplit("/", 1)[-1].removesuffix(".gguf") if model.endswith(".gguf") else model


def explained_by(explainer: str, model: str) -> str:
    """An explainer and its model, harmless; the baseline and people have no model of another name."""
    return printable(f"{explainer}, {short_name(model)}" if explainer != model else explainer)


def number(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def _without_nan(values: NDArray[np.float32]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _defused(text: str) -> str:
    return "'" + text if text[:1] in "=+-@\t\r" and text else text
