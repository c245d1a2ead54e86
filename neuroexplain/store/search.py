"""Find explanations by words, peak tokens, layers, units and scores, best first.

A row of the result is an explanation with its headline score by one scorer and model, or without a score.

Algorithm. There are two ways to find the rows. Each is fast where the other is slow:

- Few matches. The index of words (FTS5 in SQLite, GIN in PostgreSQL) or the table of peak tokens gives the
  ids of the matching explanations. If there are at most FEW, they are fetched by id, filtered by the other
  conditions and sorted.
- Many matches. Rows are read in the order of an index until there are enough; words and peak tokens are
  checked row by row. For the orders `score` and `weakest` it is ix_scores_headline, or
  ix_scores_headline_layer if layers are given (layer by layer, then merged); unscored explanations follow in
  the order of units. For `lower` it is ix_scores_lower, unless a bound leaves FEW_SCORES. For `activation`,
  ix_units_run_id_max_activation gives the strongest units with a match, and then their explanations are
  read. For `unit` it is the unique index of explanations, which begins with run, layer and unit.

A bound of the score, or a scorer, leaves out unscored explanations. Such a query begins at the scores in both
cases.

A run that keeps both sides of its activations has two headline subsets (top_and_random, bottom_and_random).
Each is read in the order of the index, and the two lists are merged here.

Cost. One step of an index for each row that is checked, so the slowest query combines common words with a
rare score. At full size (458,752 units) the medians are 1 to 23 ms (docs/benchmarks.md).

Rejected (docs/decisions.md). One join for all queries, left to SQLite's planner: it went from explanations to
scores through the headline index and did not end on 28,672 units. `subset IN (...)` for two subsets: SQLite
sorts all scores of the run.

One file, over the usual length: both ways share the conditions and the orders, and must give the same rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from neuroexplain.evidence import Headline
from neuroexplain.runs import QueryRow, Run
from neuroexplain.store.dialect import as_search, explanation_matches, matching_ids, search_words
from neuroexplain.store.engine import Store
from neuroexplain.store.judge_scores import list_hard_scores, list_intruders
from neuroexplain.store.reader import Reader
from neuroexplain.store.rows import chunks, decode_json, sql_in
from neuroexplain.store.units import OF_UNIT
from neuroexplain.units import UnitId

if TYPE_CHECKING:
    from neuroexplain.embedding.ranking import Similarities

FEW_SCORES = 1_000  # likewise of scores above a bound, in the order `lower`
FEW = 4_000  # matches up to which they are fetched by id and sorted: see above
QUERY_COLUMNS = (
    "e.id, e.layer, e.unit, e.text, e.rule, e.examples, e.explainer, e.model, "
    "e.side, s.scorer, s.scorer_model, s.subset, s.value, s.ci_low, s.ci_high, n.max_activation"
)
ITS_UNIT = "n.run_id = e.run_id AND n.layer = e.layer AND n.unit = e.unit"
# Metric and subset of scores that stand beside the headline: that of Bills et al. (2023), over top and random
# records, and the population score without the words that the explanation names.
BILLS = "correlation", "top_and_random"
BEYOND_WORDS = "correlation_beyond_words", "population"
OF_METRIC = "s.split = 'report' AND s.metric = :metric"
ORDERS = {
    "score": "s.value DESC NULLS LAST, ",
    "weakest": "s.value, ",
    "lower": "s.ci_low DESC NULLS LAST, s.value DESC NULLS LAST, ",
    "activation": "n.max_activation DESC NULLS LAST, ",
    "unit": "",
}
# Of rows that all have a score: PostgreSQL reads an ascending index backwards for these alone.
SCORED_ORDERS = ORDERS | {"score": "s.value DESC, ", "lower": "s.ci_low DESC, s.value DESC, "}


def _unit_key(row: Any) -> tuple[Any, ...]:
    return row.layer, row.unit, row.id, row.scorer, row.scorer_model


SORT_KEYS: Mapping[str, Any] = {  # ORDERS as sort keys, for scored rows of several subsets
    "score": lambda row: (-row.value, *_unit_key(row)),
    "weakest": lambda row: (row.value, *_unit_key(row)),
    "lower": lambda row: (row.ci_low is None, -(row.ci_low or 0.0), -row.value, *_unit_key(row)),
    "activation": lambda row: (row.max_activation is None, -(row.max_activation or 0.0), *_unit_key(row)),
    "unit": _unit_key,
}


@dataclass(frozen=True, slots=True)
class Search:
    """The conditions of a query, and the order and number of its rows. None stands for no condition."""

    run: Run
    headline: Headline
    words: str | None  # all words that the text must hold, in the dialect's notation
    layers: Collection[int] | None
    units: Collection[UnitId] | None
    peak_token_ids: Sequence[int] | None  # one of them is a peak token of the unit
    scorer: str | None
    min_score: float | None
    max_score: float | None
    chosen_only: bool
    sort: str  # a key of ORDERS
    limit: int  # rows

    @property
    def needs_score(self) -> bool:
        """Whether explanations without a score are left out."""
        return self.min_score is not None or self.max_score is not None or self.scorer is not None

    @property
    def values(self) -> dict[str, Any]:
        """The values of the `:names` that the conditions use."""
        bounds = {"least": self.min_score, "most": self.max_score, "scorer": self.scorer}
        values = {"run": self.run.id, **bounds, **headline_values(self.headline)}
        return values if self.words is None else values | {"words": self.words}


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
    like: Similarities | None = None,
) -> list[QueryRow]:
    """Explanations that meet all conditions, one row for each explanation, scorer and model.

    The score of a row is the run's headline, or `headline`. With `min_score`, `max_score` or `scorer`,
    explanations without such a score are left out. The order is `score` (highest first, unscored last),
    `weakest` (lowest first, unscored last), `lower` (the lower end of the interval, highest first; scores
    without an interval follow), `activation` (the unit's greatest activation first) or `unit`; ties go by
    layer, unit and explanation.
    `offset` rows are skipped. With `like`, which is of all explanations of the run, rows are in its order,
    and `sort` is ignored: see search_by_meaning. Raises NeuroexplainError if `text` holds no word.
    """
    search = Search(
        run=run,
        headline=headline or run.headline,
        words=None if text is None else as_search(store.dialect, search_words(text)),
        layers=layers,
        units=units,
        peak_token_ids=peak_token_ids,
        scorer=scorer,
        min_score=min_score,
        max_score=max_score,
        chosen_only=chosen_only,
        sort=sort,
        limit=limit + offset,
    )
    if like is not None:
        from neuroexplain.store.search_by_meaning import query_nearest

        return query_nearest(store, search, like)[offset:]
    with store.read() as reader:
        rows = _find_rows(reader, search)
        return query_rows(reader, run, search.headline, rows)[offset:]


def list_headline_scores(
    store: Store, run: Run, headline: Headline | None = None
) -> list[tuple[int, str, str, float]]:
    """(layer, explainer, scorer, score) of every headline score of a chosen explanation."""
    headline = headline or run.headline
    sql = (
        "SELECT s.layer, e.explainer, s.scorer, s.value FROM scores s "
        "JOIN explanations e ON e.id = s.explanation_id "
        f"WHERE s.run_id = :run AND {of_headline(headline)} AND s.value IS NOT NULL AND e.chosen"
    )
    with store.read() as reader:
        rows = reader.rows(sql, run=run.id, **headline_values(headline))
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def list_best(store: Store, run: Run, units: Sequence[UnitId]) -> dict[UnitId, QueryRow]:
    """Each unit's chosen explanation with the highest headline score; units without one are left out."""
    sql = (
        f"SELECT {QUERY_COLUMNS} FROM explanations e JOIN units n ON {ITS_UNIT} "
        f"LEFT JOIN scores s ON s.explanation_id = e.id AND {of_headline(run.headline)} "
        "WHERE e.run_id = :run AND e.status = 'ok' AND e.chosen AND e.layer = :layer AND e.unit = :unit "
        "ORDER BY s.value DESC NULLS LAST LIMIT 1"
    )
    best: dict[UnitId, QueryRow] = {}
    with store.read() as reader:
        for unit in dict.fromkeys(units):
            values = {"run": run.id, "layer": unit.layer, "unit": unit.index}
            rows = reader.rows(sql, **values, **headline_values(run.headline))
            for row in query_rows(reader, run, run.headline, rows):
                best[unit] = row
    return best


def _find_rows(reader: Reader, search: Search) -> list[Any]:
    """The plan: which index answers the query. See the beginning of this file."""
    ids = find_few(reader, search)
    conditions = explanation_conditions(search, ids, reader.dialect)
    if search.needs_score:
        return _best_rows(reader, search, conditions)
    if ids is None and search.sort in ("score", "weakest", "lower"):
        scored = _best_rows(reader, search, conditions)
        if len(scored) == search.limit:
            return scored
        rest = replace(search, sort="unit", limit=search.limit - len(scored))
        return scored + all_rows(reader, rest, [*conditions, "s.value IS NULL"], has_ids=False)
    if ids is None and search.sort == "activation":
        ids = _ids_by_activation(reader, search, conditions)
        conditions = [*conditions, f"e.id {sql_in(ids)}"]
    return all_rows(reader, search, conditions, has_ids=ids is not None)


def find_few(reader: Reader, search: Search) -> list[int] | None:
    """The ids of explanations that hold the words and whose units peak on one of the tokens.

    The words are tried first, and the tokens if more than FEW explanations hold the words. None if more than
    FEW match both ways, or if the search has neither words nor tokens.
    """
    ids: list[int] | None = None
    if search.words is not None:
        ids = _at_most_few(
            reader.column(f"{matching_ids(reader.dialect)} LIMIT :n", words=search.words, n=FEW + 1)
        )
    peak_token_ids = search.peak_token_ids
    if peak_token_ids is not None and ids is not None:
        ids = _keep_ids(reader, search, ids, _peaks_on(peak_token_ids))
    elif peak_token_ids is not None:
        ids = _at_most_few(_ids_by_peak_token(reader, search.run.id, peak_token_ids))
        if ids is not None and search.words is not None:  # the words are many, the tokens few
            ids = _keep_ids(reader, search, ids, explanation_matches(reader.dialect))
    return None if ids is None else sorted(set(ids))


def _at_most_few(ids: list[int]) -> list[int] | None:
    return ids if len(ids) <= FEW else None


def _keep_ids(reader: Reader, search: Search, ids: Sequence[int], condition: str) -> list[int]:
    sql = f"SELECT e.id FROM explanations e WHERE e.id {sql_in(ids)} AND {condition}"
    return reader.column(sql, run=search.run.id, words=search.words)


def _ids_by_peak_token(reader: Reader, run_id: int, token_ids: Sequence[int]) -> list[int]:
    """The ids of FEW + 1 explanations at most, of units that peak on one of the tokens."""
    # The key of peak_tokens begins with run and layer, so all layers are named. CROSS JOIN keeps SQLite from
    # looking at every explanation of the run first, as it does for a single token: 230 ms in place of 8.
    layers = decode_json(reader.value("SELECT layers FROM runs WHERE id = :run", run=run_id))
    sql = (
        "SELECT e.id FROM peak_tokens p CROSS JOIN explanations e "
        f"WHERE p.run_id = :run AND p.layer {sql_in(layers)} AND p.token_id {sql_in(token_ids)} "
        "AND e.run_id = :run AND e.layer = p.layer AND e.unit = p.unit LIMIT :n"
    )
    return reader.column(sql, n=FEW + 1, run=run_id)


def explanation_conditions(search: Search, ids: Sequence[int] | None, dialect: str) -> list[str]:
    """The conditions of explanation `e`; `ids` stand for words and peak tokens."""
    conditions = ["e.status = 'ok'"]
    if search.layers is not None:
        conditions.append(f"e.layer {sql_in(search.layers)}")
    if search.units is not None:
        conditions.append(among_units(search.units))
    if search.chosen_only:
        conditions.append("e.chosen")
    if ids is not None:
        return [*conditions, f"e.id {sql_in(ids)}"]
    if search.words is not None:
        conditions.append(explanation_matches(dialect))
    if search.peak_token_ids is not None:
        conditions.append(_peaks_on(search.peak_token_ids))
    return conditions


def _best_rows(reader: Reader, search: Search, conditions: Sequence[str]) -> list[Any]:
    """Rows with a score. In the order `lower` those without an interval follow, by score."""
    if search.sort != "lower":
        return _scored_rows(reader, search, conditions)
    rows = _scored_rows(reader, search, conditions)
    if len(rows) == search.limit:
        return rows
    rest = replace(search, sort="score", limit=search.limit - len(rows))
    return rows + _scored_rows(reader, rest, [*conditions, "s.ci_low IS NULL"])


def _scored_rows(reader: Reader, search: Search, conditions: Sequence[str]) -> list[Any]:
    """Rows with a score: each subset of the headline in the order of its index, then merged."""
    tables = f"scores s JOIN explanations e ON e.id = s.explanation_id JOIN units n ON {ITS_UNIT}"
    ordered_by = "s.ci_low" if search.sort == "lower" else "s.value"
    where = ["s.run_id = :run", OF_METRIC, f"{ordered_by} IS NOT NULL", *conditions]
    where += score_conditions(search, few=_has_few(reader, search))
    parts = [f"s.subset = :subset_{number}" for number in range(len(search.headline.subsets))]
    if search.sort in ("score", "weakest") and search.layers is not None:
        parts = [f"{part} AND s.layer = {layer}" for part in parts for layer in sorted(set(search.layers))]
    rows: list[Any] = []
    for part in parts:
        rows += _sorted_rows(reader, search, tables, [*where, part], SCORED_ORDERS[search.sort])
    if len(parts) > 1:
        rows = sorted(rows, key=SORT_KEYS[search.sort])[: search.limit]
    return rows


def _has_few(reader: Reader, search: Search) -> bool:
    """Whether a query in the order `lower` has a bound that at most FEW_SCORES are above."""
    if search.sort != "lower" or search.min_score is None:
        return False
    sql = (
        "SELECT count(*) FROM (SELECT 1 FROM scores s WHERE s.run_id = :run "
        f"AND {of_headline(search.headline)} AND s.value >= :least LIMIT :n) AS scores_above"
    )
    return bool(reader.value(sql, n=FEW_SCORES + 1, **search.values) <= FEW_SCORES)


def score_conditions(search: Search, *, few: bool) -> list[str]:
    """The conditions of score `s`; its layer, which the indexes hold, as well as the explanation's.

    few: whether few scores are above the lower bound, so that an index by value finds them soonest.
    """
    layers = search.layers if search.units is None else sorted({unit.layer for unit in search.units})
    # The order `lower` has one index for all layers. `+` keeps SQLite's planner from the other two.
    plus = "+" if search.sort == "lower" and not few else ""
    conditions = []
    if layers is not None:
        conditions.append(f"{plus}s.layer {sql_in(layers)}")
    if search.scorer is not None:
        conditions.append("s.scorer = :scorer")
    if search.min_score is not None:
        conditions.append(f"{plus}s.value >= :least")
    if search.max_score is not None:
        conditions.append(f"{plus}s.value <= :most")
        if search.sort == "lower":  # no interval lies above its score
            conditions.append("s.ci_low <= :most")
    return conditions


def _ids_by_activation(reader: Reader, search: Search, conditions: Sequence[str]) -> list[int]:
    """The ids of the explanations of the strongest units with a match: as many units as rows are needed."""
    match = f"SELECT 1 FROM explanations e WHERE {' AND '.join([ITS_UNIT, *conditions])}"
    ids: list[int] = []
    n_units = 0
    # Two queries, as PostgreSQL reads its index backwards for rows without NULL alone.
    for condition, order in (("IS NOT NULL", "ORDER BY n.max_activation DESC"), ("IS NULL", "")):
        sql = (
            f"SELECT n.layer, n.unit FROM units n WHERE n.run_id = :run AND n.max_activation {condition} "
            f"AND EXISTS ({match}) {order} LIMIT :n"
        )
        for layer, unit in reader.rows(sql, n=search.limit - n_units, **search.values):
            its_ids = f"SELECT id FROM explanations WHERE {OF_UNIT}"
            ids += reader.column(its_ids, run=search.run.id, layer=layer, unit=unit)
            n_units += 1
    return ids


def all_rows(reader: Reader, search: Search, conditions: Sequence[str], *, has_ids: bool) -> list[Any]:
    """Rows with and without a score."""
    # With ids among the conditions, `+ 0` keeps SQLite's planner from the index of the whole run.
    of_run = "e.run_id + 0 = :run" if has_ids else "e.run_id = :run"
    tables = (
        f"explanations e JOIN units n ON {ITS_UNIT} "
        f"LEFT JOIN scores s ON s.explanation_id = e.id AND {of_headline(search.headline)}"
    )
    unscored_last = "s.value IS NULL, " if search.sort == "weakest" else ""
    return _sorted_rows(reader, search, tables, [*conditions, of_run], unscored_last + ORDERS[search.sort])


def _sorted_rows(
    reader: Reader, search: Search, tables: str, where: Sequence[str], first_order: str
) -> list[Any]:
    order = f"{first_order}e.layer, e.unit, e.id, s.scorer, s.scorer_model"
    sql = f"SELECT {QUERY_COLUMNS} FROM {tables} WHERE {' AND '.join(where)} ORDER BY {order} LIMIT :n"
    return reader.rows(sql, n=search.limit, **search.values)


def of_headline(headline: Headline) -> str:
    """The condition that score `s` is the headline of its explanation, by one scorer and model."""
    return f"{OF_METRIC} AND s.subset IN ({', '.join(f':subset_{n}' for n in range(len(headline.subsets)))})"


def headline_values(headline: Headline) -> dict[str, str]:
    """The values of the `:names` in of_headline."""
    return {"metric": headline.metric, **{f"subset_{n}": subset for n, subset in enumerate(headline.subsets)}}


def _peaks_on(token_ids: Sequence[int]) -> str:
    """The condition that explanation `e` is of a unit that peaks on one of the tokens."""
    return (
        f"EXISTS (SELECT 1 FROM peak_tokens p WHERE p.run_id = :run AND p.token_id {sql_in(token_ids)} "
        "AND p.layer = e.layer AND p.unit = e.unit)"
    )


def among_units(units: Collection[UnitId]) -> str:
    """The condition that explanation `e` is of one of the units. Consecutive units are one range."""
    ranges: list[list[UnitId]] = []
    for unit in sorted(units):
        last = ranges[-1][-1] if ranges else None
        if last is not None and (unit.layer, unit.index) == (last.layer, last.index + 1):
            ranges[-1][-1] = unit
        else:
            ranges.append([unit, unit])
    conditions = (f"e.layer = {a.layer} AND e.unit BETWEEN {a.index} AND {b.index}" for a, b in ranges)
    return f"({' OR '.join(conditions) or '1 = 0'})"


def query_rows(reader: Reader, run: Run, headline: Headline, rows: Sequence[Any]) -> list[QueryRow]:
    is_bills = headline.metric == BILLS[0] and headline.subsets == BILLS[1:]
    ids = sorted({row.id for row in rows})
    others = {} if is_bills else _scores_beside(reader, "scores", ids, (BILLS, BEYOND_WORDS))
    of_rules = sorted({row.id for row in rows if row.rule is not None})
    kinds = [(headline.metric, subset) for subset in headline.subsets]
    rules = _scores_beside(reader, "rule_scores", of_rules, kinds)
    intruders, hard = list_intruders(reader, ids), list_hard_scores(reader, ids)
    joined = []
    for row in rows:
        key = row.id, row.scorer, row.scorer_model
        correlation = row.value if is_bills else others.get((*key, BILLS))
        beyond_words = others.get((*key, BEYOND_WORDS))
        rule_score = rules.get((*key, (headline.metric, row.subset)))
        own = _query_row(run, headline, row, correlation, beyond_words, rule_score)
        share, low, high = intruders.get(row.id, (None, None, None))
        own = replace(own, intruder=share, intruder_low=low, intruder_high=high)
        value, low, high = hard.get(key, (None, None, None))
        joined.append(replace(own, hard=value, hard_low=low, hard_high=high))
    return joined


def _scores_beside(
    reader: Reader, table: str, explanation_ids: list[int], kinds: Collection[tuple[str, str]]
) -> dict[tuple[int, str, str, tuple[str, str]], float | None]:
    """The scores of these metrics and subsets, by explanation, scorer, model, and metric and subset."""
    names = {f"metric_{n}": metric for n, (metric, _) in enumerate(kinds)}
    names |= {f"subset_{n}": subset for n, (_, subset) in enumerate(kinds)}
    either = " OR ".join(f"(metric = :metric_{n} AND subset = :subset_{n})" for n in range(len(kinds)))
    sql = (
        f"SELECT explanation_id, scorer, scorer_model, metric, subset, value FROM {table} "
        f"WHERE split = 'report' AND ({either}) AND explanation_id "
    )
    return {
        (row.explanation_id, row.scorer, row.scorer_model, (row.metric, row.subset)): row.value
        for ids in chunks(explanation_ids)
        for row in reader.rows(f"{sql}{sql_in(ids)}", **names)
    }


def _query_row(
    run: Run,
    headline: Headline,
    row: Any,
    correlation: float | None,
    beyond_words: float | None,
    rule_score: float | None,
) -> QueryRow:
    unit = UnitId(row.layer, row.unit)
    source = run.source(row.layer)
    return QueryRow(
        unit=unit,
        label=run.label(unit),
        explanation=row.text,
        explanation_id=row.id,
        explainer=row.explainer,
        model=row.model,
        side=row.side,
        source=run.kind if source is None else source.kind,
        scorer=row.scorer,
        scorer_model=row.scorer_model,
        metric=headline.metric,
        subset=row.subset,
        score=row.value,
        correlation=correlation,
        ci_low=row.ci_low,
        ci_high=row.ci_high,
        max_activation=row.max_activation,
        beyond_words=beyond_words,
        rule=row.rule,
        examples=None if row.examples is None else tuple(decode_json(row.examples)),
        rule_score=rule_score,
    )
