"""Read the explanations and scores of two explainers, models or runs, unit by unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from neuroexplain.comparison import Compared, ComparedRow, Pair
from neuroexplain.evidence import HUMAN, Headline
from neuroexplain.runs import QueryRow
from neuroexplain.store.dialect import matching_ids
from neuroexplain.store.engine import Store
from neuroexplain.store.reader import Reader
from neuroexplain.store.rows import chunks, sql_in
from neuroexplain.store.search import (
    ITS_UNIT,
    QUERY_COLUMNS,
    Search,
    explanation_conditions,
    headline_values,
    of_headline,
    query_rows,
)
from neuroexplain.units import UnitId


def list_explainers(store: Store, run_id: int) -> list[tuple[str, str]]:
    """(explainer, model) of the run's chosen explanations, without those that people wrote."""
    sql = (
        "SELECT DISTINCT explainer, model FROM explanations WHERE run_id = :run AND status = 'ok' AND chosen "
        "AND explainer <> :human ORDER BY explainer, model"
    )
    with store.read() as reader:
        rows = reader.rows(sql, run=run_id, human=HUMAN)
    return [(row.explainer, row.model) for row in rows]


def list_scorers(store: Store, compared: Compared, headline: Headline) -> dict[tuple[str, str], int]:
    """The number of scores of one of the two, by scorer and its model; those without a value left out."""
    sql = (
        "SELECT s.scorer, s.scorer_model, count(*) AS n FROM explanations e "
        f"JOIN scores s ON s.explanation_id = e.id AND {of_headline(headline)} AND s.value IS NOT NULL "
        f"WHERE e.run_id = :run AND {_is_of('')} GROUP BY s.scorer, s.scorer_model"
    )
    with store.read() as reader:
        rows = reader.rows(sql, **_values(compared, ""), run=compared.run.id, **headline_values(headline))
    return {(row.scorer, row.scorer_model): row.n for row in rows}


def list_pairs(
    store: Store, first: Compared, second: Compared, scorer: tuple[str, str], search: Search
) -> tuple[list[Pair], int]:
    """The units that both explain and score, in ascending order, and how many both explain.

    `search` has the headline, the scorer and the conditions: layers, units and peak tokens of the first run,
    and words that one of the two texts must hold. Of several explanations by one explainer and model the
    newest counts.
    """
    with store.read() as reader:
        conditions = explanation_conditions(replace(search, words=None), None, reader.dialect)
        newest = "SELECT max(e.id) AS id, e.layer, e.unit, e.side FROM explanations e WHERE e.run_id ="
        group = "GROUP BY e.layer, e.unit, e.side"
        where = " AND ".join([_is_of("_a"), *conditions])
        score = f"s.scorer = :scorer AND s.scorer_model = :scorer_model AND {of_headline(search.headline)}"
        value = f"(SELECT s.value FROM scores s WHERE s.explanation_id = {{}}.id AND {score})"
        sql = (
            f"WITH a AS ({newest} :run AND {where} {group}), "
            f"b AS ({newest} :other AND {_is_of('_b')} {group}) "
            f"SELECT a.layer, a.unit, a.side, a.id AS a_id, b.id AS b_id, {value.format('a')} AS a_value, "
            f"{value.format('b')} AS b_value FROM a JOIN b ON b.layer = a.layer AND b.unit = a.unit "
            "AND b.side = a.side"
        )
        if search.words is not None:
            ids = matching_ids(reader.dialect)
            sql += f" WHERE a.id IN ({ids}) OR b.id IN ({ids})"
        rows = reader.rows(
            f"{sql} ORDER BY a.layer, a.unit, a.side",
            **search.values,
            **_values(first, "_a"),
            **_values(second, "_b"),
            other=second.run.id,
            scorer_model=scorer[1],
        )
    pairs = [
        Pair(UnitId(row.layer, row.unit), row.side, row.a_id, row.b_id, row.a_value, row.b_value)
        for row in rows
        if row.a_value is not None and row.b_value is not None
    ]
    return pairs, len(rows)


def load_compared_rows(
    store: Store,
    first: Compared,
    second: Compared,
    scorer: tuple[str, str],
    headline: Headline,
    pairs: Sequence[Pair],
) -> list[ComparedRow]:
    """The explanations of some pairs, in their order."""
    with store.read() as reader:
        firsts = _rows_by_id(reader, first, scorer, headline, [pair.first_id for pair in pairs])
        seconds = _rows_by_id(reader, second, scorer, headline, [pair.second_id for pair in pairs])
    return [ComparedRow(firsts[p.first_id], seconds[p.second_id], p.difference) for p in pairs]


def _rows_by_id(
    reader: Reader, compared: Compared, scorer: tuple[str, str], headline: Headline, ids: Sequence[int]
) -> dict[int, QueryRow]:
    rows: list[Any] = []
    for batch in chunks(ids):
        sql = (
            f"SELECT {QUERY_COLUMNS} FROM explanations e JOIN units n ON {ITS_UNIT} "
            f"JOIN scores s ON s.explanation_id = e.id AND {of_headline(headline)} "
            f"WHERE e.id {sql_in(batch)} AND s.scorer = :scorer AND s.scorer_model = :scorer_model"
        )
        values = {"scorer": scorer[0], "scorer_model": scorer[1], **headline_values(headline)}
        rows += reader.rows(sql, **values)
    return {row.explanation_id: row for row in query_rows(reader, compared.run, headline, rows)}


def _is_of(name: str) -> str:
    """The condition that explanation `e` is by one of the two."""
    return f"e.explainer = :explainer{name} AND e.model = :model{name} AND e.chosen AND e.status = 'ok'"


def _values(compared: Compared, name: str) -> dict[str, str]:
    return {f"explainer{name}": compared.explainer, f"model{name}": compared.model}
