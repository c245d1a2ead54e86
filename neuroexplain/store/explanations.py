"""Read explanations, predictions, scores, and what failed."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from neuroexplain.evidence import (
    FINE,
    Explanation,
    Failure,
    Prediction,
    Status,
    StoredScore,
)
from neuroexplain.store.engine import Store
from neuroexplain.store.rows import chunks, decode_explanation, decode_prediction, decode_score, sql_in
from neuroexplain.units import UnitId


def list_explanations(
    store: Store,
    run_id: int,
    neuron: UnitId | None = None,
    *,
    layer: int | None = None,
    explainer: str | None = None,
    model: str | None = None,
    status: str | None = None,
) -> list[Explanation]:
    """A run's or a neuron's explanations and failed attempts, in the order of neurons, then of asking."""
    asked = {"explainer": explainer, "model": model, "status": status, "layer": layer}
    if neuron is not None:
        asked |= {"layer": neuron.layer, "unit": neuron.index}
    values = {name: value for name, value in asked.items() if value is not None}
    where = "".join(f" AND {name} = :{name}" for name in values)
    with store.read() as reader:
        rows = reader.rows(
            f"SELECT * FROM explanations WHERE run_id = :run{where} ORDER BY layer, unit, id",
            run=run_id,
            **values,
        )
    return [decode_explanation(row) for row in rows]


def list_predictions(store: Store, explanation_ids: Iterable[int]) -> list[Prediction]:
    """All predictions of the explanations, by explanation, scorer and model."""
    found = []
    with store.read() as reader:
        for some in chunks(sorted(set(explanation_ids))):
            sql = (
                "SELECT s.*, e.layer, e.unit FROM predictions s JOIN explanations e ON e.id = s.explanation_id "
                f"WHERE s.explanation_id {sql_in(some)} ORDER BY s.explanation_id, s.scorer, s.model"
            )
            found += [decode_prediction(row) for row in reader.rows(sql)]
    return found


def list_scores(store: Store, explanation_ids: Iterable[int]) -> list[StoredScore]:
    """All scores of the explanations, by explanation, scorer, model, split, subset and metric."""
    found = []
    with store.read() as reader:
        for some in chunks(sorted(set(explanation_ids))):
            sql = (
                f"SELECT * FROM scores WHERE explanation_id {sql_in(some)} "
                "ORDER BY explanation_id, scorer, scorer_model, split, subset, metric"
            )
            found += [decode_score(row) for row in reader.rows(sql)]
    return found


def list_failures(store: Store, run_id: int, layers: Collection[int] | None, limit: int) -> list[Failure]:
    """Explanations and predictions that failed, in the order of neurons."""
    fine = ", ".join(f"'{status}'" for status in FINE)
    here = "" if layers is None else f" AND e.layer {sql_in(layers)}"
    sql = (
        "SELECT e.layer, e.unit, e.explainer AS what, e.status, e.reason, e.reply FROM explanations e "
        f"WHERE e.run_id = :run AND e.status NOT IN ({fine}){here} "
        "UNION ALL SELECT e.layer, e.unit, s.scorer AS what, s.status, s.reason, s.reply "
        "FROM predictions s JOIN explanations e ON e.id = s.explanation_id "
        f"WHERE s.run_id = :run AND s.status NOT IN ({fine}){here} ORDER BY layer, unit LIMIT :n"
    )
    with store.read() as reader:
        rows = reader.rows(sql, run=run_id, n=limit)
    return [
        Failure(UnitId(row.layer, row.unit), row.what, Status(row.status), row.reason, row.reply)
        for row in rows
    ]
