"""Read explanations, predictions and scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

from neuroexplain.evidence import (
    HUMAN,
    Explanation,
    Prediction,
    StoredScore,
    TextPart,
)
from neuroexplain.store.engine import Store
from neuroexplain.store.rows import chunks, decode_explanation, decode_prediction, decode_score, sql_in
from neuroexplain.units import UnitId


def list_explanations(
    store: Store,
    run_id: int,
    unit: UnitId | None = None,
    *,
    layer: int | None = None,
    explainer: str | None = None,
    model: str | None = None,
    status: str | None = None,
    units: Iterable[UnitId] | None = None,
) -> list[Explanation]:
    """A run's explanations and failed attempts that meet all conditions, by layer, unit and id.

    Ids ascend in the order in which the explanations were first stored.
    """
    conditions = {"explainer": explainer, "model": model, "status": status, "layer": layer}
    if unit is not None:
        conditions |= {"layer": unit.layer, "unit": unit.index}
    values = {name: value for name, value in conditions.items() if value is not None}
    where = "".join(f" AND {name} = :{name}" for name in values)
    if units is not None:
        of_layers = groupby(sorted(units), key=lambda unit: unit.layer)
        parts = (f"layer = {int(n)} AND unit {sql_in(unit.index for unit in own)}" for n, own in of_layers)
        where += f" AND ({' OR '.join(parts) or 'false'})"
    with store.read() as reader:
        rows = reader.rows(
            f"SELECT * FROM explanations WHERE run_id = :run{where} ORDER BY layer, unit, id",
            run=run_id,
            **values,
        )
    return [decode_explanation(row) for row in rows]


# The tables of what is predicted and scored from each part of an explanation, and the column of the part.
PREDICTION_TABLES: Mapping[TextPart, str] = {"whole": "predictions", "rule": "rule_predictions"}
SCORE_TABLES: Mapping[TextPart, str] = {"whole": "scores", "rule": "rule_scores"}
TEXT_COLUMNS: Mapping[TextPart, str] = {"whole": "text", "rule": "rule"}


def list_predictions(
    store: Store, explanation_ids: Iterable[int], part: TextPart = "whole"
) -> list[Prediction]:
    """All predictions from the explanations or their rules, ordered by explanation, scorer and model."""
    predictions, text = [], TEXT_COLUMNS[part]
    with store.read() as reader:
        for ids in chunks(sorted(set(explanation_ids))):
            sql = (
                f"SELECT s.*, e.layer, e.unit, coalesce(e.{text}, '') AS text, c.{text} AS control_text "
                f"FROM {PREDICTION_TABLES[part]} s JOIN explanations e ON e.id = s.explanation_id "
                "LEFT JOIN explanations c ON c.id = s.control_explanation_id "
                f"WHERE s.explanation_id {sql_in(ids)} ORDER BY s.explanation_id, s.scorer, s.model"
            )
            predictions += [decode_prediction(row, part) for row in reader.rows(sql)]
    return predictions


def list_scores(store: Store, explanation_ids: Iterable[int], part: TextPart = "whole") -> list[StoredScore]:
    """All scores of the explanations or their rules.

    Ordered by explanation, scorer, model, split, subset and metric.
    """
    scores = []
    with store.read() as reader:
        for ids in chunks(sorted(set(explanation_ids))):
            sql = (
                f"SELECT * FROM {SCORE_TABLES[part]} WHERE explanation_id {sql_in(ids)} "
                "ORDER BY explanation_id, scorer, scorer_model, split, subset, metric"
            )
            scores += [decode_score(row) for row in reader.rows(sql)]
    return scores


def count_lacking_controls(store: Store, run_id: int) -> list[tuple[str, int]]:
    """(scorer, number of predictions from chosen explanations whose control was never tried)."""
    sql = (
        "SELECT s.scorer, count(*) FROM predictions s JOIN explanations e ON e.id = s.explanation_id "
        "WHERE s.run_id = :run AND s.status = 'ok' AND s.control_explanation_id IS NULL AND s.reason IS NULL "
        f"AND e.chosen AND e.explainer != '{HUMAN}' GROUP BY s.scorer ORDER BY s.scorer"
    )
    with store.read() as reader:
        return [(row[0], row[1]) for row in reader.rows(sql, run=run_id)]
