"""Find explanations by words, tokens, layers and scores, best first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from neuroexplain.evidence import (
    Headline,
)
from neuroexplain.runs import QueryRow, Run
from neuroexplain.store.dialect import as_search, explanation_matches, matching_ids, search_words
from neuroexplain.store.engine import Store
from neuroexplain.store.reader import Reader
from neuroexplain.store.rows import chunks, decode_json, sql_in
from neuroexplain.store.units import OF_UNIT
from neuroexplain.units import UnitId

FEW = (
    4_000  # explanations that are fetched by their ids and sorted, rather than taken in the order of an index
)
QUERY_COLUMNS = (
    "e.id, e.layer, e.unit, e.text, e.explainer, e.model, "
    "e.side, s.scorer, s.scorer_model, s.subset, s.value, s.ci_low, s.ci_high, n.max_activation"
)
ITS_UNIT = "n.run_id = e.run_id AND n.layer = e.layer AND n.unit = e.unit"
OF_METRIC = "s.split = 'report' AND s.metric = :metric"
ORDERS = {
    "score": "s.value DESC NULLS LAST, ",
    "activation": "n.max_activation DESC NULLS LAST, ",
    "unit": "",
}


def query_explanations(
    store: Store,
    run: Run,
    *,
    text: str | None = None,
    layers: Collection[int] | None = None,
    units: Collection[UnitId] | None = None,
    min_score: float | None = None,
    max_score: float | None = None,
    sort: str = "score",
    peak_token_ids: Sequence[int] | None = None,
    headline: Headline | None = None,
    scorer: str | None = None,
    chosen_only: bool = True,
    limit: int = 20,
    offset: int = 0,
) -> list[QueryRow]:
    """Explanations with one score each, one row per explanation, scorer and model: the run's headline unless another is given.

    With bounds of the score, or a scorer, those without such a score are left out. Sorted by `score` (highest first,
    unscored last), `activation` (highest first) or `unit`; ties in the order of neurons.
    """
    values: dict[str, Any] = {"run": run.id, "least": min_score, "most": max_score, "scorer": scorer}
    headline = headline or run.headline
    values |= _headline_values(headline)
    of_headline = _of_headline(headline)
    if text is not None:
        values["words"] = as_search(store.dialect, search_words(text))
    limit += offset
    scored_only = min_score is not None or max_score is not None or scorer is not None
    conditions = ["e.status = 'ok'"]
    if layers is not None:
        conditions.append(f"e.layer {sql_in(layers)}")
    if units is not None:
        conditions.append(_among_units(units))
        layers = sorted({unit.layer for unit in units})
    if chosen_only:
        conditions.append("e.chosen")

    def found(tables: str, where: Sequence[str], sort: str, n: int) -> list[Any]:
        order = f"{ORDERS[sort]}e.layer, e.unit, e.id, s.scorer, s.scorer_model"
        sql = f"SELECT {QUERY_COLUMNS} FROM {tables} WHERE {' AND '.join(where)} ORDER BY {order} LIMIT :n"
        return reader.rows(sql, n=n, **values)

    with store.read() as reader:
        ids = _find_few(reader, run.id, values.get("words"), peak_token_ids)
        if ids is not None:  # few: fetched by id, and sorted
            conditions.append(f"e.id {sql_in(ids)}")
        else:  # many: taken in the order of an index until there are enough
            if text is not None:
                conditions.append(explanation_matches(store.dialect))
            if peak_token_ids is not None:
                conditions.append(_peaks_on(peak_token_ids))
        rows: list[Any] = []
        if (ids is None and sort == "score") or scored_only:
            where = ["s.run_id = :run", OF_METRIC, "s.value IS NOT NULL", *conditions]
            if layers is not None:
                where.append(f"s.layer {sql_in(layers)}")
            if scorer is not None:
                where.append("s.scorer = :scorer")
            if min_score is not None:
                where.append("s.value >= :least")
            if max_score is not None:
                where.append("s.value <= :most")
            tables = f"scores s JOIN explanations e ON e.id = s.explanation_id JOIN units n ON {ITS_UNIT}"
            for number in range(len(headline.subsets)):  # each in the order of the index
                rows += found(tables, [*where, f"s.subset = :subset_{number}"], sort, limit)
            if len(headline.subsets) > 1:
                rows = sorted(rows, key=PLACES[sort])[:limit]
            if len(rows) == limit or scored_only:
                return _query_rows(reader, run, headline, rows)[offset:]
            conditions.append("s.value IS NULL")  # the rest has no score
            sort, limit = "unit", limit - len(rows)
        if (
            ids is None and sort == "activation"
        ):  # first the neurons in the order of their index, then their explanations
            has_one = f"SELECT 1 FROM explanations e WHERE {' AND '.join([ITS_UNIT, *conditions])}"
            strongest = reader.rows(
                f"SELECT n.layer, n.unit FROM units n WHERE n.run_id = :run AND EXISTS ({has_one}) "
                "ORDER BY n.max_activation DESC NULLS LAST LIMIT :n",
                n=limit,
                **values,
            )
            its_ids = f"SELECT id FROM explanations WHERE {OF_UNIT}"
            ids = [
                i
                for layer, unit in strongest
                for i in reader.column(its_ids, run=run.id, layer=layer, unit=unit)
            ]
            conditions.append(f"e.id {sql_in(ids)}")
        # With ids at hand, `+ 0` keeps the planner from the index of the whole run.
        conditions.append("e.run_id = :run" if ids is None else "e.run_id + 0 = :run")
        tables = f"explanations e JOIN units n ON {ITS_UNIT} LEFT JOIN scores s ON s.explanation_id = e.id AND {of_headline}"
        rows += found(tables, conditions, sort, limit)
        return _query_rows(reader, run, headline, rows)[offset:]


def _of_headline(headline: Headline) -> str:
    """The condition that score `s` is the headline of its explanation, by one scorer and model."""
    return f"{OF_METRIC} AND s.subset IN ({', '.join(f':subset_{n}' for n in range(len(headline.subsets)))})"


def _headline_values(headline: Headline) -> dict[str, str]:
    return {"metric": headline.metric, **{f"subset_{n}": subset for n, subset in enumerate(headline.subsets)}}


def list_headline_scores(
    store: Store, run: Run, headline: Headline | None = None
) -> list[tuple[int, str, str, float]]:
    """(layer, explainer, scorer, score) of every headline score there is, chosen explanations only."""
    headline = headline or run.headline
    sql = (
        "SELECT s.layer, e.explainer, s.scorer, s.value FROM scores s JOIN explanations e ON e.id = s.explanation_id "
        f"WHERE s.run_id = :run AND {_of_headline(headline)} AND s.value IS NOT NULL AND e.chosen"
    )
    with store.read() as reader:
        rows = reader.rows(sql, run=run.id, **_headline_values(headline))
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def list_best(store: Store, run: Run, neurons: Sequence[UnitId]) -> dict[UnitId, QueryRow]:
    """Each given neuron's chosen explanation with its highest headline score; those without an explanation are left out."""
    sql = (
        f"SELECT {QUERY_COLUMNS} FROM explanations e JOIN units n ON {ITS_UNIT} "
        f"LEFT JOIN scores s ON s.explanation_id = e.id AND {_of_headline(run.headline)} "
        "WHERE e.run_id = :run AND e.status = 'ok' AND e.chosen AND e.layer = :layer AND e.unit = :unit "
        "ORDER BY s.value DESC NULLS LAST LIMIT 1"
    )
    found: dict[UnitId, QueryRow] = {}
    with store.read() as reader:
        for one in dict.fromkeys(neurons):
            values = {"run": run.id, "layer": one.layer, "unit": one.index, **_headline_values(run.headline)}
            for row in _query_rows(reader, run, run.headline, reader.rows(sql, **values)):
                found[one] = row
    return found


def _find_few(
    reader: Reader, run_id: int, words: str | None, peak_token_ids: Sequence[int] | None
) -> list[int] | None:
    """The ids of explanations that hold the words and whose neurons peak on the tokens; None where FEW do not hold them."""
    found: list[int] | None = None
    one_more, values = FEW + 1, {"run": run_id, "words": words}
    if words is not None:
        ids = reader.column(matching_ids(reader.dialect), words=words, n=one_more)
        found = ids if len(ids) <= FEW else None
    if found is None and peak_token_ids is not None:
        layers = decode_json(
            reader.value("SELECT layers FROM runs WHERE id = :run", run=run_id)
        )  # first in the order of peak_tokens
        sql = (
            "SELECT e.id FROM explanations e JOIN peak_tokens p ON p.layer = e.layer AND p.unit = e.unit "
            f"WHERE e.run_id = :run AND p.run_id = :run AND p.layer {sql_in(layers)} AND p.token_id {sql_in(peak_token_ids)}"
        )
        ids = reader.column(f"{sql} LIMIT :n", n=one_more, run=run_id)
        found = ids if len(ids) <= FEW else None
        if found is not None and words is not None:  # the words are many, the tokens few
            matches = explanation_matches(reader.dialect)
            found = reader.column(
                f"SELECT e.id FROM explanations e WHERE e.id {sql_in(found)} AND {matches}", **values
            )
    elif found is not None and peak_token_ids is not None:
        peaks = _peaks_on(peak_token_ids)
        found = reader.column(
            f"SELECT e.id FROM explanations e WHERE e.id {sql_in(found)} AND {peaks}", **values
        )
    return None if found is None else sorted(set(found))


def _peaks_on(token_ids: Sequence[int]) -> str:
    """The condition that explanation `e` is of a neuron that peaks on one of the tokens."""
    return (
        f"EXISTS (SELECT 1 FROM peak_tokens p WHERE p.run_id = :run AND p.token_id {sql_in(token_ids)} "
        "AND p.layer = e.layer AND p.unit = e.unit)"
    )


def _last(row: Any) -> tuple[Any, ...]:
    return row.layer, row.unit, row.id, row.scorer, row.scorer_model


PLACES: Mapping[str, Any] = {  # the same of rows that were read
    "score": lambda row: (-row.value, *_last(row)),
    "activation": lambda row: (row.max_activation is None, -(row.max_activation or 0.0), *_last(row)),
    "unit": _last,
}


def _query_rows(reader: Reader, run: Run, headline: Headline, rows: Sequence[Any]) -> list[QueryRow]:
    if headline.metric == "correlation" and headline.subsets == ("top_and_random",):
        correlations = None  # the score itself
    else:
        sql = (
            "SELECT explanation_id, scorer, scorer_model, value FROM scores WHERE split = 'report' "
            "AND metric = 'correlation' AND subset = 'top_and_random' AND explanation_id "
        )
        correlations = {
            (row.explanation_id, row.scorer, row.scorer_model): row.value
            for some in chunks(sorted({row.id for row in rows}))
            for row in reader.rows(f"{sql}{sql_in(some)}")
        }
    return [
        QueryRow(
            unit=(unit := UnitId(row.layer, row.unit)),
            label=run.label(unit),
            explanation=row.text,
            explanation_id=row.id,
            explainer=row.explainer,
            model=row.model,
            side=row.side,
            source=run.kind if (source := run.source(row.layer)) is None else source.kind,
            scorer=row.scorer,
            scorer_model=row.scorer_model,
            metric=headline.metric,
            subset=row.subset,
            score=row.value,
            correlation=row.value
            if correlations is None
            else correlations.get((row.id, row.scorer, row.scorer_model)),
            ci_low=row.ci_low,
            ci_high=row.ci_high,
            max_activation=row.max_activation,
        )
        for row in rows
    ]


def _among_units(units: Collection[UnitId]) -> str:
    """The condition that explanation `e` is of one of the units; those that follow each other are one range."""
    ranges: list[list[UnitId]] = []
    for unit in sorted(units):
        last = ranges[-1][-1] if ranges else None
        if last is not None and (unit.layer, unit.index) == (last.layer, last.index + 1):
            ranges[-1][-1] = unit
        else:
            ranges.append([unit, unit])
    one = (f"e.layer = {a.layer} AND e.unit BETWEEN {a.index} AND {b.index}" for a, b in ranges)
    return f"({' OR '.join(one) or '1 = 0'})"
