"""Read what became of a run's units: their chosen explanations, and the headline scores of these."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from neuroexplain.evidence import HUMAN, Headline
from neuroexplain.store.engine import Store
from neuroexplain.store.rows import sql_in
from neuroexplain.store.search import headline_values, of_headline


def list_explained(store: Store, run_id: int, layers: Collection[int] | None = None) -> Sequence[Any]:
    """The chosen explanations and failed attempts in the order of their ids, without those of people.

    Each has id, layer, unit, side, explainer, model and status.
    """
    sql = (
        "SELECT id, layer, unit, side, explainer, model, status FROM explanations "
        "WHERE run_id = :run AND chosen AND explainer <> :human"
    )
    if layers is not None:
        sql += f" AND layer {sql_in(layers)}"
    with store.read() as reader:
        return reader.rows(f"{sql} ORDER BY id", run=run_id, human=HUMAN)


def list_outcomes(
    store: Store, run_id: int, headline: Headline, layers: Collection[int] | None = None
) -> Sequence[Any]:
    """The headline scores, defined or not, of chosen explanations.

    Each has explanation_id, scorer, scorer_model, status and value.
    """
    sql = (
        "SELECT s.explanation_id, s.scorer, s.scorer_model, s.status, s.value FROM scores s "
        "JOIN explanations e ON e.id = s.explanation_id "
        f"WHERE s.run_id = :run AND {of_headline(headline)} AND e.chosen"
    )
    if layers is not None:
        sql += f" AND s.layer {sql_in(layers)}"
    with store.read() as reader:
        return reader.rows(sql, run=run_id, **headline_values(headline))
