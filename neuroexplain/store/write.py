"""Save what was found. Every function is one transaction, and doing it twice leaves what doing it once does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import chain, islice, repeat
from typing import Any, TypeAlias, TypeVar

import numpy as np
from sqlalchemy import Connection, Table, bindparam, delete, insert, select, tuple_, update

from neuroexplain.arrays import CollectedLayer, ExemplarArrays, VocabularyArrays
from neuroexplain.evidence import Explained, Explanation, Prediction, Provenance, Score, Segment, Status, VocabularyEntry
from neuroexplain.runs import Session
from neuroexplain.scoring.sides import is_side_dead
from neuroexplain.store import tables as t
from neuroexplain.store.dialect import insert_statement, upsert
from neuroexplain.store.engine import Store
from neuroexplain.store.packing import CODECS, DTYPES, WIDTHS, pack_activations, pack_array, pack_each
from neuroexplain.store.read import read_segment_ids
from neuroexplain.store.reader import reader_of
from neuroexplain.store.tables import safe_text
from neuroexplain.units import KINDS, PEAK_INDEX, RECORD_LENGTH, STRONGEST, Source

ROWS_AT_ONCE = 5_000
ROWS_A_STATEMENT = 10
Row: TypeAlias = tuple[Any, ...]
T = TypeVar("T")


def now() -> str:
    """The time as ISO 8601 in UTC, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def create_run(store: Store, fields: Mapping[str, Any]) -> int:
    """Begin a run with status `running`; `fields` are those of types.Run that are known. Returns its id."""
    values: dict[str, Any] = {"status": "running", "started_at": now(), **fields}
    sources: Sequence[Source] = values.pop("sources")
    with store.write() as connection:
        run_id = int(connection.execute(insert(t.runs).values(**values).returning(t.runs.c.id)).scalar_one())
        _insert_many(connection, insert(t.sources), ({"run_id": run_id, **asdict(source)} for source in sources))
    return run_id


def finish_run(
    store: Store, run_id: int, *, n_segments: int, n_documents: int, n_tokens: int, finished_at: str | None = None
) -> None:
    """Drop the segments that no exemplar refers to, and mark the run finished, now unless told when.

    Needs 9 bytes of memory a stored segment.
    """
    of_run, x = t.segments.c.run_id == run_id, t.exemplars.c
    with store.write() as connection:
        numbers = connection.execute(select(t.segments.c.segment).where(of_run).order_by(t.segments.c.segment)).scalars()
        stored = np.fromiter(numbers.yield_per(ROWS_AT_ONCE), np.int64)
        is_used = np.zeros(len(stored), np.bool_)
        for some in connection.execute(select(x.segments).where(x.run_id == run_id)).scalars().partitions(ROWS_AT_ONCE):
            is_used[np.searchsorted(stored, np.concatenate(some))] = True
        drop = delete(t.segments).where(of_run, t.segments.c.segment == bindparam("b_segment"))
        for some in _batches(stored[~is_used]):
            connection.execute(drop, [{"b_segment": int(segment)} for segment in some])
        values = {
            "n_segments": n_segments,
            "n_documents": n_documents,
            "n_tokens": n_tokens,
            "finished_at": finished_at or now(),
        }
        connection.execute(update(t.runs).where(t.runs.c.id == run_id).values(status="finished", **values))


def delete_run(store: Store, run_id: int) -> None:
    """Remove a run and all that belongs to it."""
    with store.write() as connection:
        for table in reversed(t.metadata.sorted_tables):
            if "run_id" in table.c:
                connection.execute(delete(table).where(table.c.run_id == run_id))
        connection.execute(delete(t.runs).where(t.runs.c.id == run_id))


def save_vocabulary(store: Store, run_id: int, entries: Iterable[VocabularyEntry]) -> None:
    rows = ((run_id, entry.token_id, safe_text(entry.text), entry.special) for entry in entries)
    with store.write() as connection:
        connection.execute(delete(t.tokens).where(t.tokens.c.run_id == run_id))
        _insert_tuples(connection, t.tokens, rows)


def save_segments(store: Store, run_id: int, segments: Iterable[Segment]) -> None:
    with store.write() as connection:
        for some in _batches(segments):
            token_ids = pack_each([s.token_ids for s in some])
            rows = ((run_id, s.segment, packed) for s, packed in zip(some, token_ids, strict=True))
            _insert_tuples(connection, t.segments, rows, unless_there=True)


def save_collected_layer(store: Store, run_id: int, found: CollectedLayer) -> None:
    """Store a layer's neurons, exemplars, peak tokens and vocabulary readings. Its segments must be stored already."""
    with store.write() as connection:
        dtype = connection.execute(select(t.runs.c.dtype).where(t.runs.c.id == run_id)).scalar_one()
        n = t.units.c
        if connection.execute(select(n.unit).where(n.run_id == run_id, n.layer == found.layer).limit(1)).first():
            for table in (t.units, t.exemplars, t.peak_tokens, t.vocabulary_readings):
                connection.execute(delete(table).where(table.c.run_id == run_id, table.c.layer == found.layer))
        _insert_tuples(connection, t.units, _neuron_rows(run_id, found))
        _insert_tuples(connection, t.exemplars, _exemplar_rows(run_id, found, dtype))
        _insert_tuples(connection, t.peak_tokens, _peak_token_rows(connection, run_id, found))
        _insert_tuples(connection, t.vocabulary_readings, _vocabulary_rows(run_id, found))


def save_prompt(store: Store, name: str, text: str) -> str:
    """Keep a prompt file's text; returns its sha256, which explanations and simulations refer to."""
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    with store.write() as connection:
        row = {"sha256": sha256, "name": name, "text": text}
        connection.execute(upsert(store.dialect, t.prompts).values(**row).on_conflict_do_nothing())
    return sha256


def request_key(explanation: Explanation) -> str:
    """What was asked, as a hash: the same request for the same neuron has one row, however often it is made."""
    p = explanation.provenance
    asked: list[Any] = [
        explanation.explainer,
        p.model,
        p.model_revision,
        p.prompt_sha256,
        dict(p.sampling),
        explanation.candidate,
    ]
    if explanation.explainer == "human":
        asked.append(explanation.text)
    if explanation.side != "positive":  # the first version knew no sides
        asked.append(explanation.side)
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def save_explanation(store: Store, run_id: int, explanation: Explanation) -> Explanation:
    """Store one explanation: see save_explanations."""
    return save_explanations(store, run_id, [explanation])[0]


def save_explanations(store: Store, run_id: int, explanations: Sequence[Explanation]) -> list[Explanation]:
    """Store explanations or failed attempts, in place of earlier answers to the same requests. Returns them with their ids."""
    with store.write() as connection:
        return _save_explanations(connection, store, run_id, explanations)


def save_explained(store: Store, run_id: int, made: Sequence[Explained]) -> list[Explained]:
    """Store explanations with their simulations and scores, all of them or none. Returns them with their ids.

    Of an explanation that is stored already only `chosen` is written. What an earlier command chose of the same neurons, by the
    same explainer and model, is chosen no more: a neuron has one chosen explanation of each. What people wrote stays.
    """
    stored = [one.explanation for one in made if one.explanation.id is not None]
    with store.write() as connection:
        _choose_none(
            connection,
            run_id,
            [e for one in made if (e := one.explanation).chosen and e.status == Status.OK and e.explainer != "human"],
        )
        for chosen in (True, False):
            ids = [e.id for e in stored if e.chosen == chosen]
            for some in _batches(ids):
                is_one = t.explanations.c.id.in_(some), t.explanations.c.chosen != chosen
                connection.execute(update(t.explanations).where(*is_one).values(chosen=chosen))
        new = iter(_save_explanations(connection, store, run_id, [e for one in made if (e := one.explanation).id is None]))
        found = []
        for one in made:
            explanation = one.explanation if one.explanation.id is not None else next(new)
            prediction = one.prediction
            if prediction is not None and explanation.id is not None:
                prediction = replace(prediction, explanation_id=explanation.id)
            found.append(replace(one, explanation=explanation, prediction=prediction))
        _save_predictions(connection, store, run_id, [(x.prediction, x.scores) for x in found if x.prediction is not None])
    return found


def _choose_none(connection: Connection, run_id: int, explanations: Sequence[Explanation]) -> None:
    """Mark nothing as chosen that is of their units, sides, explainers and models."""
    e = t.explanations.c
    same: dict[tuple[str, str, str, int], set[int]] = {}
    for one in explanations:
        same.setdefault((one.explainer, one.provenance.model, one.side, one.unit.layer), set()).add(one.unit.index)
    for (explainer, model, side, layer), units in same.items():
        for some in _batches(sorted(units)):
            by = e.explainer == explainer, e.model == model, e.side == side
            where = e.run_id == run_id, e.layer == layer, e.unit.in_(some), *by
            connection.execute(update(t.explanations).where(*where, e.chosen).values(chosen=False))


def save_session(store: Store, run_id: int, session: Session, session_id: int | None) -> int:
    """Store what a command has done so far, or bring it up to date; returns its id."""
    values = {"run_id": run_id, **asdict(session)}
    with store.write() as connection:
        if session_id is None:
            return int(connection.execute(insert(t.sessions).values(**values).returning(t.sessions.c.id)).scalar_one())
        connection.execute(update(t.sessions).where(t.sessions.c.id == session_id).values(**values))
    return session_id


def _save_explanations(
    connection: Connection, store: Store, run_id: int, explanations: Sequence[Explanation]
) -> list[Explanation]:
    rows = [
        {
            "run_id": run_id,
            "layer": explanation.unit.layer,
            "unit": explanation.unit.index,
            "explainer": explanation.explainer,
            "candidate": explanation.candidate,
            "request_key": request_key(explanation),
            "chosen": explanation.chosen,
            "status": explanation.status,
            "text": explanation.text,
            "reason": explanation.reason,
            "reply": explanation.reply,
            "covers": None if explanation.covers is None else list(explanation.covers),
            "parts": None if explanation.parts is None else list(explanation.parts),
            "side": explanation.side,
            **_provenance_row(explanation.provenance),
        }
        for explanation in explanations
    ]
    key = ["run_id", "layer", "unit", "request_key"]
    found: dict[tuple[int, int, str], int] = {}
    e = t.explanations.c
    if rows:
        _upsert_many(connection, store, t.explanations, rows, key)
    for some in _batches(rows):
        keys = tuple_(e.layer, e.unit, e.request_key).in_([(r["layer"], r["unit"], r["request_key"]) for r in some])
        for row in connection.execute(select(e.layer, e.unit, e.request_key, e.id).where(e.run_id == run_id, keys)):
            found[row.layer, row.unit, row.request_key] = row.id
    return [
        replace(explanation, id=found[row["layer"], row["unit"], row["request_key"]])
        for explanation, row in zip(explanations, rows, strict=True)
    ]


def as_stored(prediction: Prediction) -> Prediction:
    """The prediction with its numbers rounded as the store keeps them: what scores are computed from."""
    codec = CODECS[prediction.codec]
    rounded = (
        replace(
            r,
            values=codec.rounded(r.values),
            detail=None if r.detail is None else codec.rounded_detail(r.detail),
            control=None if r.control is None else codec.rounded(r.control),
        )
        for r in prediction.records
    )
    return replace(prediction, records=tuple(rounded))


def save_prediction(store: Store, run_id: int, prediction: Prediction, scores: Sequence[Score]) -> None:
    """Store one simulation and its scores: see save_simulations."""
    save_predictions(store, run_id, [(prediction, scores)])


def save_predictions(store: Store, run_id: int, made: Sequence[tuple[Prediction, Sequence[Score]]]) -> None:
    """Store simulations, each with its scores, in place of earlier ones by the same simulator and model."""
    with store.write() as connection:
        _save_predictions(connection, store, run_id, made)


def _save_predictions(
    connection: Connection, store: Store, run_id: int, made: Sequence[tuple[Prediction, Sequence[Score]]]
) -> None:
    if not made:
        return
    whose = [
        {"explanation_id": one.explanation_id, "scorer": one.scorer, "scorer_model": one.provenance.model} for one, _ in made
    ]
    places = ({"run_id": run_id, "layer": one.unit.layer, "unit": one.unit.index} for one, _ in made)
    scores = [
        {**place, **mine, **asdict(score)}
        for place, mine, (_, computed) in zip(places, whose, made, strict=True)
        for score in computed
    ]
    rows = [_prediction_row(run_id, one) for one, _ in made]
    old = [{f"b_{name}": value for name, value in mine.items()} for mine in whose]
    _upsert_many(connection, store, t.predictions, rows, ["explanation_id", "scorer", "model"])
    connection.execute(delete(t.scores).where(*(t.scores.c[name] == bindparam(f"b_{name}") for name in whose[0])), old)
    _insert_many(connection, insert(t.scores), scores)


def _prediction_row(run_id: int, prediction: Prediction) -> dict[str, Any]:
    records, codec = prediction.records, CODECS[prediction.codec]
    details = [r.detail for r in records if r.detail is not None]
    controls = [r.control for r in records if r.control is not None]
    return {
        "run_id": run_id,
        "explanation_id": prediction.explanation_id,
        "scorer": prediction.scorer,
        "status": prediction.status,
        "reason": prediction.reason,
        "reply": prediction.reply,
        "kinds": np.array([KINDS.index(r.kind) for r in records], np.uint8),
        "ranks": np.array([r.rank for r in records], np.uint8),
        "firsts": np.array([r.first for r in records], np.uint8),
        "predicted": codec.pack(_joined([r.values for r in records])),
        "detail": codec.pack_detail(_joined(details)) if records and len(details) == len(records) else None,
        "control": codec.pack(_joined(controls)) if records and len(controls) == len(records) else None,
        "control_explanation_id": prediction.control_explanation_id,
        "codec": prediction.codec,
        **_provenance_row(prediction.provenance),
    }


def _insert_many(connection: Connection, statement: Any, rows: Iterable[Mapping[str, Any]]) -> None:
    for batch in _batches(rows):
        connection.execute(statement, batch)


def _insert_tuples(connection: Connection, table: Table, rows: Iterable[Row], *, unless_there: bool = False) -> None:
    """Rows of all columns in their order (without a counted id), as the driver takes them.

    Past SQLAlchemy's work on every value, which took over half of the time of a layer; many rows a statement, which halves
    the time of narrow ones.
    """
    for batch in _batches(rows):
        whole = len(batch) // ROWS_A_STATEMENT * ROWS_A_STATEMENT
        for n, some in ((ROWS_A_STATEMENT, batch[:whole]), (1, batch[whole:])):
            if some:
                statement = insert_statement(connection.dialect, table, n_rows=n, unless_there=unless_there)
                joined = [tuple(chain.from_iterable(some[at : at + n])) for at in range(0, len(some), n)]
                connection.exec_driver_sql(statement, joined)


def _upsert_many(connection: Connection, store: Store, table: Any, rows: Sequence[Mapping[str, Any]], key: list[str]) -> None:
    statement = upsert(store.dialect, table)
    changed = {name: statement.excluded[name] for name in rows[0] if name not in key}
    _insert_many(connection, statement.on_conflict_do_update(index_elements=key, set_=changed), rows)


def _batches(rows: Iterable[T]) -> Iterator[list[T]]:
    waiting = iter(rows)
    while batch := list(islice(waiting, ROWS_AT_ONCE)):
        yield batch


def _provenance_row(provenance: Provenance) -> dict[str, Any]:
    return {**asdict(provenance), "sampling": dict(provenance.sampling), "created_at": provenance.created_at or now()}


def _joined(arrays: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.float32)


def _neuron_rows(run_id: int, found: CollectedLayer) -> Iterable[Row]:
    n = len(next(iter(found.exemplars.values())).counts)
    stats = found.stats
    peaks = {side: _strongest(found.exemplars.get(kind)) for side, kind in STRONGEST.items() if kind in found.exemplars}
    status = [
        Status.DEAD if peaks and all(is_side_dead(side, own[i]) for side, own in peaks.items()) else Status.OK for i in range(n)
    ]
    columns = [[None] * n] * 5
    if stats is not None:
        columns = [x.tolist() for x in (stats.mean, stats.std, stats.min, stats.max, stats.share_positive)]
    strongest: list[float | None] = [None] * n
    if peaks:  # of a negative run how far below 0 it goes
        side = next(iter(peaks))
        strongest = peaks[side] if side == "positive" else [None if x is None else -x for x in peaks[side]]
    return zip(repeat(run_id, n), repeat(found.layer, n), range(n), status, *columns, strongest, strict=True)


def _strongest(exemplars: ExemplarArrays | None) -> list[float | None]:
    """The peak of each unit's first record; None where it has none."""
    if exemplars is None or not exemplars.peaks.shape[1]:
        return [] if exemplars is None else [None] * len(exemplars.counts)
    peaks = zip(exemplars.counts.tolist(), exemplars.peaks[:, 0].tolist(), strict=True)
    return [peak if count else None for count, peak in peaks]


def _exemplar_rows(run_id: int, found: CollectedLayer, dtype: str) -> Iterator[Row]:
    width, names = WIDTHS[dtype], ("segments", "starts", "documents", "token_offsets")
    sizes = (*(np.dtype(DTYPES[name]).itemsize for name in names), width, RECORD_LENGTH * width)  # bytes of a record in each
    for kind, arrays in found.exemplars.items():
        k = arrays.segments.shape[1]
        columns = (
            *(pack_array(name, getattr(arrays, name)) for name in names),
            pack_activations(np.where(arrays.counts_mask(), arrays.peaks, 0), dtype),
            pack_activations(arrays.activations, dtype),
        )
        for n, count in enumerate(arrays.counts.tolist()):
            if count:
                blobs = (data[n * k * size : (n * k + count) * size] for data, size in zip(columns, sizes, strict=True))
                yield run_id, found.layer, n, kind, *blobs


def _peak_token_rows(connection: Connection, run_id: int, found: CollectedLayer) -> Iterable[Row]:
    top = found.exemplars.get("top") or found.exemplars.get("bottom")
    if top is None:
        return ()
    used = top.counts_mask()
    peaks = top.peak_token_ids
    if peaks is None:
        segments, back = np.unique(top.segments[used], return_inverse=True)
        ids = read_segment_ids(reader_of(connection), run_id, set(segments.tolist()))
        table = np.stack([ids[int(segment)] for segment in segments]) if len(segments) else np.zeros((0, 128), np.uint32)
        tokens = table[back.reshape(-1), top.starts[used].astype(np.int64) + PEAK_INDEX]
    else:
        tokens = peaks[used]
    # In the order of the table, so that rows are appended.
    pairs, counts = np.unique((tokens.astype(np.int64) << 32) | used.nonzero()[0], return_counts=True)
    columns = ((pairs >> 32).tolist(), (pairs & 0xFFFFFFFF).tolist(), counts.tolist())
    return zip(repeat(run_id, len(pairs)), repeat(found.layer, len(pairs)), *columns, strict=True)


def _vocabulary_rows(run_id: int, found: CollectedLayer) -> Iterable[Row]:
    v = found.vocabulary
    if v is None:
        return ()
    n = len(v.promoted_ids)
    arrays = (getattr(v, name).astype(DTYPES[name]) for name in VocabularyArrays.__dataclass_fields__)
    columns = ([row.tobytes() for row in values] for values in arrays)
    return zip(repeat(run_id, n), repeat(found.layer, n), range(n), *columns, strict=True)
