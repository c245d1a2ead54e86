"""Find what was saved, as types.py objects, never rows. `find_x` may return None; `load_x` raises NotInStore.

Raises StoreUnreadable, naming the row, where what a row holds is cut off or is not what its columns are for.

SQL as text, for SQLite and PostgreSQL alike: see reader.py. What a person or a corpus wrote is bound as a value; numbers in a
list are written out. numpy is imported where arrays are read: `query` reads none, and starts a tenth of a second earlier.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from neuroexplain.arrays import CollectedLayer, ExemplarArrays, StatsArrays, VocabularyArrays
from neuroexplain.errors import NotInStore, StoreUnreadable
from neuroexplain.evidence import (
    FINE,
    Exemplar,
    Explanation,
    Failure,
    Headline,
    PredictedRecord,
    Prediction,
    Provenance,
    Score,
    Segment,
    Stats,
    Status,
    StoredScore,
    Tokens,
    Unit,
    VocabularyEntry,
)
from neuroexplain.runs import QueryRow, Run, Session
from neuroexplain.store.dialect import NOT_SEARCHABLE, as_search, explanation_matches, matching_ids, search_words
from neuroexplain.store.engine import Store
from neuroexplain.store.reader import Reader
from neuroexplain.units import KINDS, RECORD_LENGTH, SEGMENT_LENGTH, Source, UnitId

IDS_AT_ONCE = 10_000  # values in one IN (...): SQLite takes 32,766
FEW = 4_000  # explanations that are fetched by their ids and sorted, rather than taken in the order of an index

OF_UNIT = "run_id = :run AND layer = :layer AND unit = :unit"
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
MISPLACED = {  # what is wrong -> the rows of a run that are
    "score {} of explanation {} stands under another unit or run": (
        "SELECT s.id, e.id FROM scores s JOIN explanations e ON e.id = s.explanation_id "
        "WHERE e.run_id = :run AND (s.run_id, s.layer, s.unit) <> (e.run_id, e.layer, e.unit) ORDER BY s.id"
    ),
    "prediction {} of explanation {} stands under another run": (
        "SELECT s.id, e.id FROM predictions s JOIN explanations e ON e.id = s.explanation_id "
        "WHERE e.run_id = :run AND s.run_id <> e.run_id ORDER BY s.id"
    ),
    "explanation {} has scores, though its status is {}": (
        "SELECT id, status FROM explanations e WHERE run_id = :run AND status <> 'ok' "
        "AND EXISTS (SELECT 1 FROM scores s WHERE s.explanation_id = e.id) ORDER BY id"
    ),
    "{}:{}: {} explanations by {}, {}, of the {} side are chosen, not one": (
        "SELECT layer, unit, n, explainer, model, side FROM (SELECT layer, unit, explainer, model, side, "
        "sum(CASE WHEN chosen THEN 1 ELSE 0 END) AS n FROM explanations "
        "WHERE run_id = :run AND status = 'ok' AND explainer <> 'human' GROUP BY layer, unit, explainer, model, side) "
        "AS counted WHERE n <> 1 ORDER BY layer, unit, explainer, model, side"
    ),
    **{
        f"{table[:-1]} {{}} was compared with explanation {{}}, which is missing": (
            f"SELECT id, control_explanation_id FROM {table} WHERE run_id = :run "
            "AND control_explanation_id IS NOT NULL AND control_explanation_id NOT IN (SELECT id FROM explanations) ORDER BY id"
        )
        for table in ("predictions", "scores")
    },
    **{
        f"{table[:-1]} {{}} is of the prompt {{}}, which is missing": (
            f"SELECT id, prompt_sha256 FROM {table} WHERE run_id = :run "
            "AND prompt_sha256 IS NOT NULL AND prompt_sha256 NOT IN (SELECT sha256 FROM prompts) ORDER BY id"
        )
        for table in ("explanations", "predictions")
    },
}


def list_runs(store: Store) -> list[Run]:
    """All runs, oldest first, unfinished ones too."""
    with store.read() as reader:
        sources: dict[int, list[Source]] = {}
        for row in reader.rows("SELECT * FROM sources ORDER BY run_id, layer"):
            sources.setdefault(row.run_id, []).append(Source(**_fields(row, Source)))
        return [_run(row, tuple(sources.get(row.id, ()))) for row in reader.rows("SELECT * FROM runs ORDER BY id")]


def load_run(store: Store, run_id: int | None = None) -> Run:
    """A finished run; without an id, the latest."""
    runs = list_runs(store)
    finished = [run for run in runs if run.status == "finished"]
    if run_id is None:
        if not finished:
            unfinished = f" ({len(runs)} unfinished)" if runs else ""
            raise NotInStore(
                f"{store.name} holds no finished run{unfinished}.\nCollect one:  neuroexplain collect --db {store.name} ..."
            )
        return finished[-1]
    found = next((run for run in finished if run.id == run_id), None)
    if found is None:
        ids = ", ".join(str(run.id) for run in finished) or "none"
        raise NotInStore(
            f"There is no finished run {run_id} in {store.name}: it holds {ids}.\n"
            f"See them:  neuroexplain runs --db {store.name}"
        )
    return found


def list_unit_ids(store: Store, run_id: int, layers: Collection[int] | None = None, status: str | None = None) -> list[UnitId]:
    """The run's neurons in ascending order."""
    sql = "SELECT layer, unit FROM units WHERE run_id = :run"
    if layers is not None:
        sql += f" AND layer {_among(layers)}"
    if status is not None:
        sql += " AND status = :status"
    with store.read() as reader:
        return [UnitId(*row) for row in reader.rows(f"{sql} ORDER BY layer, unit", run=run_id, status=status)]


def list_explained_ids(store: Store, run_id: int, layers: Collection[int] | None = None) -> list[UnitId]:
    """The run's neurons that have an explanation, in ascending order."""
    sql = "SELECT DISTINCT layer, unit FROM explanations WHERE run_id = :run AND status = 'ok'"
    if layers is not None:
        sql += f" AND layer {_among(layers)}"
    with store.read() as reader:
        return [UnitId(*row) for row in reader.rows(f"{sql} ORDER BY layer, unit", run=run_id)]


def load_unit(store: Store, run: Run, neuron: UnitId) -> Unit:
    """One neuron with its exemplars and vocabulary reading. Raises NotInStore, saying what the run holds."""
    from neuroexplain.store.packing import unpack_array

    whose = {"run": run.id, "layer": neuron.layer, "unit": neuron.index}
    with store.read() as reader:
        row = reader.row(f"SELECT * FROM units WHERE {OF_UNIT}", **whose)
        if row is None:
            raise NotInStore(
                f"No unit {neuron} in run {run.id}: {store.name} holds {run.size}, both counted from 0.\n"
                f"Ask for one of those, like  neuroexplain show {run.layers[0]}:0 --db {store.name}"
            )
        packed = reader.rows(f"SELECT * FROM exemplars WHERE {OF_UNIT}", **whose)
        wanted: set[int] = set()
        for one in packed:
            with _whole("exemplars", one):
                wanted.update(unpack_array("segments", one.segments).tolist())
        ids = read_segment_ids(reader, run.id, wanted)
        reading = reader.row(f"SELECT * FROM vocabulary_readings WHERE {OF_UNIT}", **whose)
    by_kind = {one.kind: one for one in packed}
    exemplars: list[Exemplar] = []
    for packed_kind in (by_kind[kind] for kind in KINDS if kind in by_kind):
        with _whole("exemplars", packed_kind):
            exemplars += _unpack(packed_kind, neuron, run, ids)
    return Unit(
        id=neuron,
        status=_status("neurons", row),
        stats=None if row.mean is None else Stats(row.mean, row.std, row.min, row.max, row.share_positive),
        exemplars=tuple(exemplars),
        promoted=_pairs(reading, "promoted") if reading else (),
        suppressed=_pairs(reading, "suppressed") if reading else (),
    )


def tokens_of(vocabulary: Tokens, token_ids: Iterable[int]) -> dict[int, VocabularyEntry]:
    """How the given tokens are shown; an id that the vocabulary does not have gets U+FFFD."""
    return {token_id: vocabulary.get(token_id) or VocabularyEntry(token_id, "\ufffd", True) for token_id in token_ids}


def load_tokens(store: Store, run_id: int, token_ids: Iterable[int]) -> dict[int, VocabularyEntry]:
    """How the given tokens of the subject's vocabulary are shown; an id that its tokenizer does not know gets U+FFFD."""
    found: dict[int, VocabularyEntry] = {}
    wanted = sorted(set(token_ids))
    with store.read() as reader:
        for some in _chunks(wanted):
            sql = f"SELECT token_id, text, special FROM tokens WHERE run_id = :run AND token_id {_among(some)}"
            for token_id, text, special in reader.rows(sql, run=run_id):
                found[token_id] = VocabularyEntry(token_id, text, bool(special))
    return tokens_of(found, wanted)


def find_token_ids(store: Store, run_id: int, text: str) -> list[int]:
    """The tokens whose text is `text`, with or without a space before it."""
    sql = "SELECT token_id FROM tokens WHERE run_id = :run AND text IN (:text, :spaced) ORDER BY token_id"
    with store.read() as reader:
        return reader.column(sql, run=run_id, text=text, spaced=" " + text)


def load_vocabulary(store: Store, run_id: int) -> list[VocabularyEntry]:
    """The subject's whole vocabulary, by token id."""
    with store.read() as reader:
        rows = reader.rows("SELECT * FROM tokens WHERE run_id = :run ORDER BY token_id", run=run_id)
    return [VocabularyEntry(row.token_id, row.text, bool(row.special)) for row in rows]


def list_segments(store: Store, run_id: int, at_once: int = 5_000) -> Iterator[list[Segment]]:
    """The stored segments in ascending order, some at a time; their documents stand with the exemplars."""
    last = -1
    sql = "SELECT * FROM segments WHERE run_id = :run AND segment > :last ORDER BY segment LIMIT :n"
    while True:
        with store.read() as reader:
            rows = reader.rows(sql, run=run_id, last=last, n=at_once)
        found = [Segment(row.segment, _segment_ids(row)) for row in rows]
        if not found:
            return
        yield found
        last = found[-1].segment


def load_segment_ids(store: Store, run_id: int, segments: set[int]) -> dict[int, Any]:
    """The token ids [128] of the given segments."""
    with store.read() as reader:
        return read_segment_ids(reader, run_id, segments)


def load_collected_layer(store: Store, run: Run, layer: int) -> CollectedLayer:
    """A whole layer as it was saved: the inverse of save_collected_layer. Raises NotInStore where the run lacks it."""
    import numpy as np

    from neuroexplain.store.packing import unpack_array

    of_layer, place = "WHERE run_id = :run AND layer = :layer", {"run": run.id, "layer": layer}
    with store.read() as reader:
        rows = reader.rows(f"SELECT * FROM units {of_layer} ORDER BY unit", **place)
        if len(rows) != run.width(layer):
            raise NotInStore(
                f"Run {run.id} of {store.name} holds {len(rows):,} of {run.width(layer):,} units of layer {layer}."
            )
        exemplars = {}
        for kind in reader.column(f"SELECT DISTINCT kind FROM exemplars {of_layer}", **place):
            found = reader.rows(f"SELECT * FROM exemplars {of_layer} AND kind = :kind", kind=kind, **place)
            exemplars[kind] = _exemplar_arrays(found, run.width(layer), run.dtype)
        readings = reader.rows(f"SELECT * FROM vocabulary_readings {of_layer} ORDER BY unit", **place)
    names = VocabularyArrays.__dataclass_fields__
    vocabulary: VocabularyArrays | None = None
    if readings:
        with _whole("vocabulary_readings", readings[0]):
            vocabulary = VocabularyArrays(
                *(np.stack([unpack_array(name, getattr(row, name)) for row in readings]) for name in names)
            )
    return CollectedLayer(
        layer=layer,
        exemplars={kind: exemplars[kind] for kind in KINDS if kind in exemplars},
        stats=None
        if rows[0].mean is None
        else StatsArrays(*(np.array([getattr(row, name) for row in rows]) for name in Stats.__dataclass_fields__)),
        vocabulary=vocabulary,
    )


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
            f"SELECT * FROM explanations WHERE run_id = :run{where} ORDER BY layer, unit, id", run=run_id, **values
        )
    return [_explanation(row) for row in rows]


def list_predictions(store: Store, explanation_ids: Iterable[int]) -> list[Prediction]:
    """All predictions of the explanations, by explanation, scorer and model."""
    found = []
    with store.read() as reader:
        for some in _chunks(sorted(set(explanation_ids))):
            sql = (
                "SELECT s.*, e.layer, e.unit FROM predictions s JOIN explanations e ON e.id = s.explanation_id "
                f"WHERE s.explanation_id {_among(some)} ORDER BY s.explanation_id, s.scorer, s.model"
            )
            found += [_prediction(row) for row in reader.rows(sql)]
    return found


def list_scores(store: Store, explanation_ids: Iterable[int]) -> list[StoredScore]:
    """All scores of the explanations, by explanation, scorer, model, split, subset and metric."""
    found = []
    with store.read() as reader:
        for some in _chunks(sorted(set(explanation_ids))):
            sql = (
                f"SELECT * FROM scores WHERE explanation_id {_among(some)} "
                "ORDER BY explanation_id, scorer, scorer_model, split, subset, metric"
            )
            found += [_score(row) for row in reader.rows(sql)]
    return found


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
        conditions.append(f"e.layer {_among(layers)}")
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
            conditions.append(f"e.id {_among(ids)}")
        else:  # many: taken in the order of an index until there are enough
            if text is not None:
                conditions.append(explanation_matches(store.dialect))
            if peak_token_ids is not None:
                conditions.append(_peaks_on(peak_token_ids))
        rows: list[Any] = []
        if (ids is None and sort == "score") or scored_only:
            where = ["s.run_id = :run", OF_METRIC, "s.value IS NOT NULL", *conditions]
            if layers is not None:
                where.append(f"s.layer {_among(layers)}")
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
        if ids is None and sort == "activation":  # first the neurons in the order of their index, then their explanations
            has_one = f"SELECT 1 FROM explanations e WHERE {' AND '.join([ITS_UNIT, *conditions])}"
            strongest = reader.rows(
                f"SELECT n.layer, n.unit FROM units n WHERE n.run_id = :run AND EXISTS ({has_one}) "
                "ORDER BY n.max_activation DESC NULLS LAST LIMIT :n",
                n=limit,
                **values,
            )
            its_ids = f"SELECT id FROM explanations WHERE {OF_UNIT}"
            ids = [i for layer, unit in strongest for i in reader.column(its_ids, run=run.id, layer=layer, unit=unit)]
            conditions.append(f"e.id {_among(ids)}")
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


def list_headline_scores(store: Store, run: Run, headline: Headline | None = None) -> list[tuple[int, str, str, float]]:
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


def _find_few(reader: Reader, run_id: int, words: str | None, peak_token_ids: Sequence[int] | None) -> list[int] | None:
    """The ids of explanations that hold the words and whose neurons peak on the tokens; None where FEW do not hold them."""
    found: list[int] | None = None
    one_more, values = FEW + 1, {"run": run_id, "words": words}
    if words is not None:
        ids = reader.column(matching_ids(reader.dialect), words=words, n=one_more)
        found = ids if len(ids) <= FEW else None
    if found is None and peak_token_ids is not None:
        layers = _json(reader.value("SELECT layers FROM runs WHERE id = :run", run=run_id))  # first in the order of peak_tokens
        sql = (
            "SELECT e.id FROM explanations e JOIN peak_tokens p ON p.layer = e.layer AND p.unit = e.unit "
            f"WHERE e.run_id = :run AND p.run_id = :run AND p.layer {_among(layers)} AND p.token_id {_among(peak_token_ids)}"
        )
        ids = reader.column(f"{sql} LIMIT :n", n=one_more, run=run_id)
        found = ids if len(ids) <= FEW else None
        if found is not None and words is not None:  # the words are many, the tokens few
            matches = explanation_matches(reader.dialect)
            found = reader.column(f"SELECT e.id FROM explanations e WHERE e.id {_among(found)} AND {matches}", **values)
    elif found is not None and peak_token_ids is not None:
        peaks = _peaks_on(peak_token_ids)
        found = reader.column(f"SELECT e.id FROM explanations e WHERE e.id {_among(found)} AND {peaks}", **values)
    return None if found is None else sorted(set(found))


def _peaks_on(token_ids: Sequence[int]) -> str:
    """The condition that explanation `e` is of a neuron that peaks on one of the tokens."""
    return (
        f"EXISTS (SELECT 1 FROM peak_tokens p WHERE p.run_id = :run AND p.token_id {_among(token_ids)} "
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
            for some in _chunks(sorted({row.id for row in rows}))
            for row in reader.rows(f"{sql}{_among(some)}")
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
            correlation=row.value if correlations is None else correlations.get((row.id, row.scorer, row.scorer_model)),
            ci_low=row.ci_low,
            ci_high=row.ci_high,
            max_activation=row.max_activation,
        )
        for row in rows
    ]


def list_failures(store: Store, run_id: int, layers: Collection[int] | None, limit: int) -> list[Failure]:
    """Explanations and predictions that failed, in the order of neurons."""
    fine = ", ".join(f"'{status}'" for status in FINE)
    here = "" if layers is None else f" AND e.layer {_among(layers)}"
    sql = (
        "SELECT e.layer, e.unit, e.explainer AS what, e.status, e.reason, e.reply FROM explanations e "
        f"WHERE e.run_id = :run AND e.status NOT IN ({fine}){here} "
        "UNION ALL SELECT e.layer, e.unit, s.scorer AS what, s.status, s.reason, s.reply "
        "FROM predictions s JOIN explanations e ON e.id = s.explanation_id "
        f"WHERE s.run_id = :run AND s.status NOT IN ({fine}){here} ORDER BY layer, unit LIMIT :n"
    )
    with store.read() as reader:
        rows = reader.rows(sql, run=run_id, n=limit)
    return [Failure(UnitId(row.layer, row.unit), row.what, Status(row.status), row.reason, row.reply) for row in rows]


def count_units(store: Store, run_id: int) -> Mapping[str, int]:
    """Neurons of the run by status."""
    with store.read() as reader:
        rows = reader.rows("SELECT status, count(*) FROM units WHERE run_id = :run GROUP BY status", run=run_id)
    return {row[0]: row[1] for row in rows}


def load_max_activations(store: Store, run_id: int) -> dict[tuple[int, int], float | None]:
    """Every neuron's greatest stored activation, by (layer, unit)."""
    with store.read() as reader:
        rows = reader.rows("SELECT layer, unit, max_activation FROM units WHERE run_id = :run", run=run_id)
    return {(row[0], row[1]): row[2] for row in rows}


def count_layer_units(store: Store, run_id: int, layer: int) -> int:
    """Neurons of one layer that are stored."""
    with store.read() as reader:
        sql = "SELECT count(*) FROM units WHERE run_id = :run AND layer = :layer"
        return int(reader.value(sql, run=run_id, layer=layer))


def count_explanations(store: Store, run_id: int) -> list[tuple[str, str, str, int]]:
    """(explainer, model, status, how many), in that order."""
    what = "explainer, model, status"
    with store.read() as reader:
        rows = reader.rows(
            f"SELECT {what}, count(*) FROM explanations WHERE run_id = :run GROUP BY {what} ORDER BY {what}", run=run_id
        )
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def list_sessions(store: Store, run_id: int) -> list[Session]:
    """What the commands that explained and scored this run did, oldest first."""
    with store.read() as reader:
        rows = reader.rows("SELECT * FROM sessions WHERE run_id = :run ORDER BY id", run=run_id)
    return [Session(**_fields(row, Session)) for row in rows]


def count_orphans(store: Store) -> int:
    """Predictions and scores whose explanation is gone, and exemplars whose neuron is: there should be none."""
    lost = "WHERE explanation_id NOT IN (SELECT id FROM explanations)"
    its_neuron = "n.run_id = x.run_id AND n.layer = x.layer AND n.unit = x.unit"
    with store.read() as reader:
        return sum(
            int(reader.value(sql))
            for sql in (
                f"SELECT count(*) FROM predictions {lost}",
                f"SELECT count(*) FROM scores {lost}",
                f"SELECT count(*) FROM exemplars x WHERE NOT EXISTS (SELECT 1 FROM units n WHERE {its_neuron})",
            )
        )


def list_misplaced(store: Store, run_id: int) -> list[str]:
    """A line for each row of the run that stands in the wrong place or names what is missing; one for gaps of the search."""
    with store.read() as reader:
        found = [said.format(*row) for said, sql in MISPLACED.items() for row in reader.rows(sql, run=run_id)]
        n_lost = int(reader.value(NOT_SEARCHABLE[reader.dialect], run=run_id))
    return found + ([f"{n_lost:,} explanations are not found by the search"] if n_lost else [])


def load_prompt(store: Store, sha256: str) -> tuple[str, str]:
    """Name and text of a stored prompt file."""
    with store.read() as reader:
        row = reader.row("SELECT name, text FROM prompts WHERE sha256 = :sha256", sha256=sha256)
    if row is None:
        raise NotInStore(f"No prompt with the hash {sha256} in {store.name}.")
    return row.name, row.text


def read_segment_ids(reader: Reader, run_id: int, wanted: set[int]) -> dict[int, Any]:
    """The token ids of the given segments, read by one that is reading already. Raises StoreUnreadable where one is missing."""
    found: dict[int, Any] = {}
    for some in _chunks(sorted(wanted)):
        sql = f"SELECT run_id, segment, token_ids FROM segments WHERE run_id = :run AND segment {_among(some)}"
        found |= {row.segment: _segment_ids(row) for row in reader.rows(sql, run=run_id)}
    if missing := wanted - found.keys():
        raise StoreUnreadable(f"The segments of run {run_id} cannot be read: {min(missing)} is missing.")
    return found


@contextmanager
def _whole(table: str, row: Any) -> Iterator[None]:
    """Reading a row. Raises StoreUnreadable, naming it, where its values are cut off or not what its columns are for.

    SQLite keeps any type in any column, hence TypeError.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        names = [name for name in ("id", "run_id", "layer", "unit", "kind", "segment") if hasattr(row, name)]
        which = ", ".join(f"{name} {getattr(row, name)}" for name in names)
        raise StoreUnreadable(f"A row of {table} ({which}) cannot be read: {error}.") from error


def _status(table: str, row: Any) -> Status:
    with _whole(table, row):
        return Status(row.status)


def _segment_ids(row: Any) -> Any:
    """A segment's token ids: 128, or the last 64 of them where no more is known."""
    from neuroexplain.store.packing import unpack_token_ids

    with _whole("segments", row):
        token_ids = unpack_token_ids(row.token_ids)
        if len(token_ids) not in (SEGMENT_LENGTH, RECORD_LENGTH):
            raise ValueError(f"it holds {len(token_ids)} token ids")
        return token_ids


def _exemplar_arrays(rows: Iterable[Any], width: int, dtype: str) -> ExemplarArrays:
    import numpy as np

    from neuroexplain.store.packing import unpack_activations, unpack_array

    found = {row.unit: row for row in rows}
    counts = np.array([len(found[n].starts) if n in found else 0 for n in range(width)])  # a byte each
    k = int(counts.max())
    arrays = {
        name: np.full((width, k), fill, kind)
        for name, fill, kind in (
            ("segments", 0, np.uint32),
            ("starts", 0, np.uint8),
            ("documents", -1, np.int32),
            ("token_offsets", 0, np.int32),
            ("peaks", 0, np.float32),
        )
    }
    activations = np.zeros((width, k, RECORD_LENGTH), np.float32)
    for n, row in found.items():
        with _whole("exemplars", row):
            for name in ("segments", "starts", "documents", "token_offsets"):
                arrays[name][n, : counts[n]] = unpack_array(name, getattr(row, name)).reshape(counts[n])
            arrays["peaks"][n, : counts[n]] = unpack_activations(row.peaks, dtype).reshape(counts[n])
            activations[n, : counts[n]] = unpack_activations(row.activations, dtype).reshape(counts[n], RECORD_LENGTH)
    return ExemplarArrays(counts, **arrays, activations=activations)


def _unpack(row: Any, neuron: UnitId, run: Run, ids: Mapping[int, Any]) -> Iterable[Exemplar]:
    from neuroexplain.store.packing import unpack_activations, unpack_array

    arrays = [unpack_array(name, getattr(row, name)).tolist() for name in ("segments", "starts", "documents", "token_offsets")]
    peaks = unpack_activations(row.peaks, run.dtype).tolist()
    activations = unpack_activations(row.activations, run.dtype).reshape(len(peaks), RECORD_LENGTH)
    for rank, (segment, start, document, token_offset, peak) in enumerate(zip(*arrays, peaks, strict=True)):
        if start > len(ids[segment]) - RECORD_LENGTH:
            raise ValueError(f"there is no record at {start} of segment {segment}")
        yield Exemplar(
            unit=neuron,
            kind=row.kind,
            rank=rank,
            segment=segment,
            start=start,
            document=document if document >= 0 else None,
            token_offset=token_offset if document >= 0 else None,
            activation=peak,
            token_ids=ids[segment][start : start + RECORD_LENGTH],
            activations=activations[rank],
            stride=run.segment_stride,
        )


def _run(row: Any, sources: tuple[Source, ...]) -> Run:
    with _whole("runs", row):
        decoded = {"layers": tuple(map(int, _json(row.layers))), "config": dict(_json(row.config))}
        return Run(
            **_fields(row, Run)
            | decoded
            | {"versions": dict(_json(row.versions)), "sources": sources, "rectified": bool(row.rectified)}
        )


def _explanation(row: Any) -> Explanation:
    with _whole("explanations", row):
        provenance, status = _provenance(row), Status(row.status)
        covers, parts = (None if listed is None else tuple(_json(listed)) for listed in (row.covers, row.parts))
    return Explanation(
        unit=UnitId(row.layer, row.unit),
        explainer=row.explainer,
        status=status,
        text=row.text,
        provenance=provenance,
        candidate=row.candidate,
        chosen=bool(row.chosen),
        reason=row.reason,
        reply=row.reply,
        covers=covers,
        parts=parts,
        id=row.id,
        side=row.side,
    )


def _provenance(row: Any) -> Provenance:
    return Provenance(**_fields(row, Provenance) | {"sampling": dict(_json(row.sampling))})


def _predicted_records(row: Any) -> Iterator[PredictedRecord]:
    from neuroexplain.store.packing import CODECS, unpack_array

    places = [unpack_array(name, getattr(row, name)).tolist() for name in ("kinds", "ranks", "firsts")]
    codec, n = CODECS[row.codec], len(places[0])
    values = codec.unpack(row.predicted, n)
    detail = None if row.detail is None else codec.unpack_detail(row.detail, n)
    control = None if row.control is None else codec.unpack(row.control, n)
    if any(beside is not None and beside.shape != values.shape for beside in (detail, control)):
        raise ValueError("its values, details and control differ in number")
    for i, (kind, rank, first) in enumerate(zip(*places, strict=True)):
        if kind >= len(KINDS):
            raise ValueError(f"there is no kind {kind}")
        yield PredictedRecord(
            kind=KINDS[kind],
            rank=rank,
            first=first,
            values=values[i],
            detail=None if detail is None else detail[i],
            control=None if control is None else control[i],
        )


def _prediction(row: Any) -> Prediction:
    with _whole("predictions", row):
        records, provenance, status = tuple(_predicted_records(row)), _provenance(row), Status(row.status)
    return Prediction(
        explanation_id=row.explanation_id,
        unit=UnitId(row.layer, row.unit),
        scorer=row.scorer,
        status=status,
        records=records,
        provenance=provenance,
        reason=row.reason,
        reply=row.reply,
        control_explanation_id=row.control_explanation_id,
        id=row.id,
        codec=row.codec,
    )


def _score(row: Any) -> StoredScore:
    score = Score(**_fields(row, Score) | {"status": _status("scores", row)})
    return StoredScore(UnitId(row.layer, row.unit), row.explanation_id, row.scorer, row.scorer_model, score)


def _pairs(reading: Any, which: str) -> tuple[tuple[int, float], ...]:
    from neuroexplain.store.packing import unpack_array

    columns = (f"{which}_ids", f"{which}_logits")
    with _whole("vocabulary_readings", reading):
        return tuple(zip(*(unpack_array(name, getattr(reading, name)).tolist() for name in columns), strict=True))


def _fields(row: Any, of: Any) -> dict[str, Any]:
    """The row's values for the fields of a dataclass that it has."""
    return {name: getattr(row, name) for name in of.__dataclass_fields__ if hasattr(row, name)}


def _json(value: Any) -> Any:
    """What a JSON column holds: an array or an object, which PostgreSQL's driver reads by itself."""
    return json.loads(value) if isinstance(value, str) else value


def _among(numbers: Iterable[int]) -> str:
    return f"IN ({','.join(str(int(number)) for number in numbers) or 'NULL'})"


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


def _chunks(values: list[int]) -> Iterable[list[int]]:
    waiting = iter(values)
    while some := list(islice(waiting, IDS_AT_ONCE)):
        yield some
