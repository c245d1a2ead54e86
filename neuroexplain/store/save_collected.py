"""Save runs and what was collected. Each function is one transaction; doing it twice leaves what doing it once does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import repeat
from typing import Any

import numpy as np
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from neuroexplain.arrays import CollectedLayer, ExemplarArrays, VocabularyArrays
from neuroexplain.evidence import Segment, Status, VocabularyEntry
from neuroexplain.scoring.sides import is_side_dead
from neuroexplain.store import tables as t
from neuroexplain.store.engine import Store
from neuroexplain.store.packing import DTYPES, WIDTHS, pack_activations, pack_array, pack_each
from neuroexplain.store.reader import reader_of
from neuroexplain.store.statements import ROWS_AT_ONCE, Row, batches, insert_many, insert_tuples, now
from neuroexplain.store.tables import safe_text
from neuroexplain.store.units import read_segment_ids
from neuroexplain.units import PEAK_INDEX, RECORD_LENGTH, STRONGEST, Source


def create_run(store: Store, fields: Mapping[str, Any]) -> int:
    """Begin a run with status `running`; `fields` are those of types.Run that are known. Returns its id."""
    values: dict[str, Any] = {"status": "running", "started_at": now(), **fields}
    sources: Sequence[Source] = values.pop("sources")
    with store.write() as connection:
        run_id = int(connection.execute(insert(t.runs).values(**values).returning(t.runs.c.id)).scalar_one())
        insert_many(
            connection, insert(t.sources), ({"run_id": run_id, **asdict(source)} for source in sources)
        )
    return run_id


def finish_run(
    store: Store,
    run_id: int,
    *,
    n_segments: int,
    n_documents: int,
    n_tokens: int,
    finished_at: str | None = None,
) -> None:
    """Drop the segments that no exemplar refers to, and mark the run finished, now unless told when.

    Needs 9 bytes of memory a stored segment.
    """
    of_run, x = t.segments.c.run_id == run_id, t.exemplars.c
    with store.write() as connection:
        numbers = connection.execute(
            select(t.segments.c.segment).where(of_run).order_by(t.segments.c.segment)
        ).scalars()
        stored = np.fromiter(numbers.yield_per(ROWS_AT_ONCE), np.int64)
        is_used = np.zeros(len(stored), np.bool_)
        for some in (
            connection.execute(select(x.segments).where(x.run_id == run_id))
            .scalars()
            .partitions(ROWS_AT_ONCE)
        ):
            is_used[np.searchsorted(stored, np.concatenate(some))] = True
        drop = delete(t.segments).where(of_run, t.segments.c.segment == bindparam("b_segment"))
        for some in batches(stored[~is_used]):
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
        insert_tuples(connection, t.tokens, rows)


def save_segments(store: Store, run_id: int, segments: Iterable[Segment]) -> None:
    with store.write() as connection:
        for some in batches(segments):
            token_ids = pack_each([s.token_ids for s in some])
            rows = ((run_id, s.segment, packed) for s, packed in zip(some, token_ids, strict=True))
            insert_tuples(connection, t.segments, rows, unless_there=True)


def save_collected_layer(store: Store, run_id: int, found: CollectedLayer) -> None:
    """Store a layer's neurons, exemplars, peak tokens and vocabulary readings. Its segments must be stored already."""
    with store.write() as connection:
        dtype = connection.execute(select(t.runs.c.dtype).where(t.runs.c.id == run_id)).scalar_one()
        n = t.units.c
        if connection.execute(
            select(n.unit).where(n.run_id == run_id, n.layer == found.layer).limit(1)
        ).first():
            for table in (t.units, t.exemplars, t.peak_tokens, t.vocabulary_readings):
                connection.execute(
                    delete(table).where(table.c.run_id == run_id, table.c.layer == found.layer)
                )
        insert_tuples(connection, t.units, _neuron_rows(run_id, found))
        insert_tuples(connection, t.exemplars, _exemplar_rows(run_id, found, dtype))
        insert_tuples(connection, t.peak_tokens, _peak_token_rows(connection, run_id, found))
        insert_tuples(connection, t.vocabulary_readings, _vocabulary_rows(run_id, found))


def _neuron_rows(run_id: int, found: CollectedLayer) -> Iterable[Row]:
    n = len(next(iter(found.exemplars.values())).counts)
    stats = found.stats
    peaks = {
        side: _strongest(found.exemplars.get(kind))
        for side, kind in STRONGEST.items()
        if kind in found.exemplars
    }
    status = [
        Status.DEAD if peaks and all(is_side_dead(side, own[i]) for side, own in peaks.items()) else Status.OK
        for i in range(n)
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
    sizes = (
        *(np.dtype(DTYPES[name]).itemsize for name in names),
        width,
        RECORD_LENGTH * width,
    )  # bytes of a record in each
    for kind, arrays in found.exemplars.items():
        k = arrays.segments.shape[1]
        columns = (
            *(pack_array(name, getattr(arrays, name)) for name in names),
            pack_activations(np.where(arrays.counts_mask(), arrays.peaks, 0), dtype),
            pack_activations(arrays.activations, dtype),
        )
        for n, count in enumerate(arrays.counts.tolist()):
            if count:
                blobs = (
                    data[n * k * size : (n * k + count) * size]
                    for data, size in zip(columns, sizes, strict=True)
                )
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
        table = (
            np.stack([ids[int(segment)] for segment in segments])
            if len(segments)
            else np.zeros((0, 128), np.uint32)
        )
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
