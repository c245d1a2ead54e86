"""Objects -> JSON values and CSV (pure): what commands print with --json, and the API and exports hold.

Keys of earlier versions stay beside the new ones, such as `neuron` beside `unit`. web/answers.py describes
these objects for the API.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from neuroexplain.evidence import (
    Exemplar,
    Explanation,
    PredictedRecord,
    Prediction,
    Stats,
    Status,
    StoredScore,
    Unit,
)
from neuroexplain.histogram import EDGES
from neuroexplain.runs import QueryRow, Run, UnitPage
from neuroexplain.units import CROP_LENGTH, KINDS, Source, UnitId

if TYPE_CHECKING:  # `query` starts sooner without numpy
    import numpy as np
    from numpy.typing import NDArray

    from neuroexplain.comparison import Compared, ComparedRow, Comparison
    from neuroexplain.store.score_summaries import ScoreSummary

ROW_COLUMNS = (  # fields of QueryRow
    *("source", "side", "explanation", "explanation_id", "score", "metric", "subset"),
    *("scorer", "scorer_model", "correlation", "ci_low", "ci_high", "explainer", "model", "max_activation"),
    *("beyond_words", "rule", "examples", "rule_score", "intruder"),
    *("intruder_low", "intruder_high", "hard", "hard_low", "hard_high"),
)
QUERY_COLUMNS = ("layer", "unit", "neuron", *ROW_COLUMNS)


def unit_json(page: UnitPage) -> dict[str, Any]:
    """`show --json`, and the API's answer for one unit."""
    unit, run = page.unit, page.run
    source = run.source(unit.id.layer)
    return {
        "run": run_json(run),
        "source": None if source is None else source_json(source),
        **unit_id_json(unit.id),
        "status": unit.status,
        "stats": dict.fromkeys(Stats.__dataclass_fields__) if unit.stats is None else asdict(unit.stats),
        "histogram": histogram_json(unit),
        "nearest": [{"unit": index, "cosine": cosine} for index, cosine in unit.nearest],
        "promoted_tokens": [[page.tokens[token_id].text, logit] for token_id, logit in unit.promoted],
        "suppressed_tokens": [[page.tokens[token_id].text, logit] for token_id, logit in unit.suppressed],
        "exemplars": [exemplar_json(page, exemplar) for exemplar in unit.exemplars],
        "samples": samples_json(page),
        "explanations": [explanation_json(page, explanation) for explanation in page.explanations],
        "checks": [asdict(check) for check in page.checks],
    }


def histogram_json(unit: Unit) -> dict[str, Any] | None:
    """A sparse unit's activations above 0: the number in each bin, and the edges between bins."""
    return None if unit.histogram is None else {"edges": list(EDGES), "counts": list(unit.histogram)}


def unit_id_json(unit: UnitId) -> dict[str, int]:
    """The keys that name a unit; `neuron` is the old name of `unit`."""
    return {"layer": unit.layer, "unit": unit.index, "neuron": unit.index}


def exemplar_json(page: UnitPage, exemplar: Exemplar) -> dict[str, Any]:
    """One record with its split, how it was drawn, its tokens and activations.

    A random record of a run with two sides has a second probability, that of the negative side.
    """
    token_ids = exemplar.token_ids.tolist()
    has_second = exemplar.kind == "random" and len(page.run.sides) > 1
    return {
        "kind": exemplar.kind,
        "rank": exemplar.rank,
        "split": page.splits[exemplar.key],
        "segment": exemplar.segment,
        "start": exemplar.start,
        "document": exemplar.document,
        "token_offset": exemplar.token_offset,
        "activation": exemplar.activation,
        "side": exemplar.side,
        "size": exemplar.size,
        "probability": page.probability(exemplar),
        "probability_negative": page.probability(exemplar, "negative") if has_second else None,
        "token_ids": token_ids,
        "tokens": page.texts(exemplar),
        "activations": exemplar.activations.tolist(),
    }


def samples_json(page: UnitPage) -> list[dict[str, Any]]:
    """What the probabilities of sampled records follow from, for each side and split."""
    return [
        {
            "side": side,
            "split": split,
            "threshold": threshold,
            "n_segments": page.run.split_segments.get(split),
        }
        for (side, split), threshold in page.unit.thresholds.items()
    ]


def explanation_json(page: UnitPage, explanation: Explanation) -> dict[str, Any]:
    """One explanation with its scores and predictions; what is of its rule is null if it has none."""
    e = explanation
    return {
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
        "rule": e.rule,
        "examples": None if e.examples is None else list(e.examples),
        "scores": _scores_of(e, page.scores),
        "predictions": _predictions_of(page, e, page.predictions),
        "rule_scores": None if e.rule is None else _scores_of(e, page.rule_scores),
        "rule_predictions": None if e.rule is None else _predictions_of(page, e, page.rule_predictions),
    }


def _scores_of(explanation: Explanation, scores: Sequence[StoredScore]) -> list[dict[str, Any]]:
    return [score_json(stored) for stored in scores if stored.explanation_id == explanation.id]


def _predictions_of(
    page: UnitPage, explanation: Explanation, predictions: Sequence[Prediction]
) -> list[dict[str, Any]]:
    """What was predicted of the unit's records, without those of a background and of look-alikes."""
    own = (p for p in predictions if p.explanation_id == explanation.id)
    return [prediction_json(page, p, record) for p in own for record in p.records if record.kind in KINDS]


def score_json(stored: StoredScore) -> dict[str, Any]:
    """One score. A missing interval or control has its reason, also if the metric never has one."""
    score = asdict(stored.score)
    if stored.score.status == Status.OK:
        for value, reason in (("ci_low", "ci_reason"), ("control", "control_reason")):
            if score[value] is None and score[reason] is None:
                score[reason] = f"not computed for {stored.score.metric}"
    return {"scorer": stored.scorer, "scorer_model": stored.scorer_model, **score}


def prediction_json(page: UnitPage, prediction: Prediction, record: PredictedRecord) -> dict[str, Any]:
    """The prediction of one record; the scorer's codec names its numbers. A missing number is null."""
    from neuroexplain.scoring.codecs import CODECS

    codec, arrays = CODECS[prediction.codec], (record.values, record.detail, record.control)
    numbers: dict[str, Any] = {
        name: None if values is None else _without_nan(values)
        for name, values in zip(codec.names, arrays, strict=True)
    }
    n_scored = len(record.values)
    if codec.n_of_window is not None:
        n_scored = CROP_LENGTH
    if codec.n_of_window == 1:
        numbers = {name: values and values[0] for name, values in numbers.items()}
    return {
        "scorer": prediction.scorer,
        "scorer_model": prediction.provenance.model,
        "kind": record.kind,
        "rank": record.rank,
        "split": page.splits.get(record.key),
        "n_background": prediction.n_background,
        "scored": [record.first, record.first + n_scored],
        **numbers,
    }


def run_json(run: Run) -> dict[str, Any]:
    """One run; its greatest width is also `d_mlp`, the key of earlier versions, if its units are neurons."""
    widths = {source.width for source in run.sources}
    old_width = {"d_mlp": max(widths)} if run.kind == "mlp" and widths else {}
    sources = [source_json(source) for source in run.sources]
    lists = {"layers": list(run.layers), "barred_ids": list(run.barred_ids), "sources": sources}
    return {**asdict(run), **lists, **old_width}


def source_json(source: Source) -> dict[str, Any]:
    """Where a layer's units are read, with the name of their dictionary."""
    return {**asdict(source), "dictionary": source.dictionary}


def summary_json(summary: ScoreSummary) -> dict[str, Any]:
    """The headline scores of one layer, explainer, side and scorer in numbers."""
    return {
        **asdict(summary),
        "n_undefined": summary.n_undefined,
        "share_above_control": summary.share_above_control,
    }


def query_json(rows: Sequence[QueryRow]) -> list[dict[str, Any]]:
    """`query --json`: one object a row, with the keys QUERY_COLUMNS."""
    return [{**unit_id_json(row.unit), **{name: getattr(row, name) for name in ROW_COLUMNS}} for row in rows]


def query_csv(rows: Sequence[QueryRow]) -> str:
    """`query --csv`: a header, and one line a row.

    A text that a spreadsheet would run as a formula gets an apostrophe.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, QUERY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in query_json(rows):
        writer.writerow(
            {
                name: _without_formula(value) if isinstance(value, str) else value
                for name, value in row.items()
            }
        )
    return out.getvalue()


def comparison_json(comparison: Comparison, rows: Sequence[ComparedRow]) -> dict[str, Any]:
    """`query --runs A,B --json`: who is compared, by which score, the figures, and one object a unit."""
    summary = asdict(comparison.summary)
    return {
        "first": _compared_json(comparison.first),
        "second": _compared_json(comparison.second),
        "metric": comparison.headline.metric,
        "subsets": list(comparison.headline.subsets),
        "scorer": comparison.scorer,
        "scorer_model": comparison.scorer_model,
        "notes": list(comparison.notes),
        "summary": {**summary, "share_second_higher": comparison.summary.share_second_higher},
        "rows": [
            {
                **unit_id_json(row.first.unit),
                "side": row.first.side,
                "difference": row.difference,
                "first": query_json([row.first])[0],
                "second": query_json([row.second])[0],
            }
            for row in rows
        ],
    }


def _compared_json(compared: Compared) -> dict[str, Any]:
    return {"run": compared.run.id, "explainer": compared.explainer, "model": compared.model}


def scores_json(scores: Sequence[StoredScore]) -> list[dict[str, Any]]:
    """`score --json`: one object a score."""
    return [
        {**unit_id_json(stored.unit), "explanation_id": stored.explanation_id, **score_json(stored)}
        for stored in scores
    ]


def _without_nan(values: NDArray[np.float32]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _without_formula(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
