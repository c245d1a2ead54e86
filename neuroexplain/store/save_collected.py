"""Save runs, their vocabulary, segments and collected layers.

Each function is one transaction. Saving a vocabulary, segments or a layer again leaves the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from neuroexplain.arrays import CollectedLayer, ExemplarArrays, NearestArrays, VocabularyArrays
from neuroexplain.evidence import SPLITS, Segment, Split, Stats, Status, VocabularyEntry, is_side_dead
from neuroexplain.exemplar_arrays import groups_of, join_samples
from neuroexplain.store import tables as t
from neuroexplain.store.background import background_rows
from neuroexplain.store.columns import safe_text
from neuroexplain.store.engine import Store
from neuroexplain.store.packing import DTYPES, WIDTHS, checksum_of, pack_activations, pack_array, pack_each
from neuroexplain.store.reader import reader_of
from neuroexplain.store.rows import chunks
from neuroexplain.store.statements import ROWS_AT_ONCE, Row, insert_many, insert_tuples, now
from neuroexplain.store.units import read_segments
from neuroexplain.units import PEAK_INDEX, RECORD_LENGTH, STRONGEST, Kind, Side, Source

LAYER_TABLES = (
    *(t.units, t.exemplars, t.samples, t.peak_tokens, t.vocabulary_readings),
    *(t.backgrounds, t.background_activations, t.hard_records),
)


def create_run(store: Store, fields: Mapping[str, Any]) -> int:
    """Begin a run with status `running` and return its id. `fields` are the known fields of Run."""
    values: dict[str, Any] = {"status": "running", "started_at": now(), **fields}
    sources: Sequence[Source] = values.pop("sources")
    with store.write() as connection:
        run_id = int(connection.execute(insert(t.runs).values(**values).returning(t.runs.c.id)).scalar_one())
        rows = ({"run_id": run_id, **asdict(source)} for source in sources)
        insert_many(connection, t.sources, rows)
    return run_id


def save_health(store: Store, run_id: int, health: Mapping[str, Mapping[str, float | None]]) -> None:
    """Store how well the dictionaries of a run's layers fit."""
    with store.write() as connection:
        values = {layer: dict(figures) for layer, figures in health.items()}
        connection.execute(update(t.runs).where(t.runs.c.id == run_id).values(health=values))


def finish_run(
    store: Store,
    run_id: int,
    *,
    n_segments: int,
    n_documents: int,
    n_tokens: int,
    split_segments: Mapping[Split, int] | None = None,
    finished_at: str | None = None,
) -> None:
    """Delete the segments that no exemplar refers to, and mark the run as finished, at `finished_at` or now.

    Takes 9 bytes of memory for each stored segment.
    """
    of_run, x = t.segments.c.run_id == run_id, t.exemplars.c
    with store.write() as connection:
        numbers = connection.execute(
            select(t.segments.c.segment).where(of_run).order_by(t.segments.c.segment)
        ).scalars()
        stored = np.fromiter(numbers.yield_per(ROWS_AT_ONCE), np.int64)
        is_used = np.zeros(len(stored), np.bool_)
        backgrounds = connection.execute(
            select(t.backgrounds.c.segments).where(t.backgrounds.c.run_id == run_id)
        ).scalars()
        for array in backgrounds:
            is_used[np.searchsorted(stored, array)] = True
        exemplar_segments = connection.execute(select(x.segments).where(x.run_id == run_id)).scalars()
        for arrays in exemplar_segments.partitions(ROWS_AT_ONCE):
            is_used[np.searchsorted(stored, np.concatenate(arrays))] = True
        drop = delete(t.segments).where(of_run, t.segments.c.segment == bindparam("b_segment"))
        for segments in chunks(stored[~is_used], ROWS_AT_ONCE):
            connection.execute(drop, [{"b_segment": int(segment)} for segment in segments])
        values = {
            "n_segments": n_segments,
            "n_documents": n_documents,
            "n_tokens": n_tokens,
            "split_segments": dict(split_segments or {}),
            "finished_at": finished_at or now(),
        }
        connection.execute(update(t.runs).where(t.runs.c.id == run_id).values(status="finished", **values))


def delete_run(store: Store, run_id: int) -> None:
    """Delete a run and all its rows in other tables."""
    with store.write() as connection:
        for table in reversed(t.metadata.sorted_tables):
            if "run_id" in table.c:
                connection.execute(delete(table).where(table.c.run_id == run_id))
        connection.execute(delete(t.runs).where(t.runs.c.id == run_id))


def save_vocabulary(store: Store, run_id: int, entries: Iterable[VocabularyEntry]) -> None:
    """Store the subject's vocabulary in place of an earlier one."""
    rows = (
        (run_id, entry.token_id, safe_text(entry.text), entry.special, entry.data, entry.is_byte)
        for entry in entries
    )
    with store.write() as connection:
        connection.execute(delete(t.tokens).where(t.tokens.c.run_id == run_id))
        insert_tuples(connection, t.tokens, rows)


def save_segments(store: Store, run_id: int, segments: Iterable[Segment]) -> None:
    """Store segments; a segment number that is stored already keeps its row."""
    with store.write() as connection:
        for batch in chunks(segments, ROWS_AT_ONCE):
            token_ids = pack_each([segment.token_ids for segment in batch])
            rows = ((run_id, s.segment, packed, s.split) for s, packed in zip(batch, token_ids, strict=True))
            insert_tuples(connection, t.segments, rows, skip_existing=True)


def save_collected_layer(store: Store, run_id: int, collected: CollectedLayer) -> None:
    """Store a layer's units, exemplars, peak tokens and vocabulary readings in place of earlier ones.

    The segments of its exemplars must be stored already, unless `peak_token_ids` are given.
    """
    layer = collected.layer
    with store.write() as connection:
        dtype = connection.execute(select(t.runs.c.dtype).where(t.runs.c.id == run_id)).scalar_one()
        n = t.units.c
        if connection.execute(select(n.unit).where(n.run_id == run_id, n.layer == layer).limit(1)).first():
            for table in LAYER_TABLES:
                connection.execute(delete(table).where(table.c.run_id == run_id, table.c.layer == layer))
        insert_tuples(connection, t.units, _unit_rows(run_id, collected))
        exemplars, sizes = dict(collected.exemplars), None
        if collected.samples:
            exemplars["sampled"], sizes = join_samples(collected.samples)
        insert_tuples(connection, t.exemplars, _exemplar_rows(run_id, layer, exemplars, dtype))
        if sizes is not None:
            insert_tuples(connection, t.samples, _sample_rows(run_id, collected, sizes))
        insert_tuples(connection, t.peak_tokens, _peak_token_rows(connection, run_id, collected))
        insert_tuples(connection, t.vocabulary_readings, _vocabulary_rows(run_id, collected))
        if (background := collected.background) is not None:
            segments = pack_array("segments", background.segments)
            insert_tuples(connection, t.backgrounds, [(run_id, layer, segments)])
            rows = background_rows(run_id, layer, background, dtype)
            insert_tuples(connection, t.background_activations, rows)


def _unit_rows(run_id: int, collected: CollectedLayer) -> Iterable[Row]:
    n = len(next(iter(collected.exemplars.values())).counts)
    kept_kinds = {side: kind for side, kind in STRONGEST.items() if kind in collected.exemplars}
    peaks = {side: _strongest(collected.exemplars[kind]) for side, kind in kept_kinds.items()}
    stats = [[None] * n] * 5
    if collected.stats is not None:
        names = Stats.__dataclass_fields__
        stats = [getattr(collected.stats, name).tolist() for name in names]
    histograms: Sequence[bytes | None] = [None] * n
    if collected.histogram is not None:
        histograms = [pack_array("histogram", counts) for counts in collected.histogram]
    nearest = _packed_nearest(collected.nearest, n)
    columns = (_statuses(peaks, n), *stats, _max_activations(peaks, n), histograms, *nearest)
    return zip(repeat(run_id, n), repeat(collected.layer, n), range(n), *columns, strict=True)


def _packed_nearest(nearest: NearestArrays | None, n: int) -> tuple[Sequence[bytes | None], ...]:
    """The columns nearest_units and nearest_cosines of n units, without unused places."""
    if nearest is None:
        return [None] * n, [None] * n
    is_used = nearest.cosines > 0
    units = [pack_array("nearest_units", row[used]) for row, used in zip(nearest.units, is_used, strict=True)]
    pairs = zip(nearest.cosines, is_used, strict=True)
    return units, [pack_array("nearest_cosines", row[used]) for row, used in pairs]


def _statuses(peaks: Mapping[Side, Sequence[float | None]], n: int) -> list[Status]:
    """A unit is dead if all its sides are, and if there is a side to tell."""
    return [
        Status.DEAD if peaks and all(is_side_dead(side, own[i]) for side, own in peaks.items()) else Status.OK
        for i in range(n)
    ]


def _max_activations(peaks: Mapping[Side, Sequence[float | None]], n: int) -> Sequence[float | None]:
    """Each unit's peak on the positive side; of a negative run, how far below 0 it goes."""
    if not peaks:
        return [None] * n
    side = next(iter(peaks))
    return peaks[side] if side == "positive" else [None if peak is None else -peak for peak in peaks[side]]


def _strongest(exemplars: ExemplarArrays) -> list[float | None]:
    """The peak of each unit's first record; None if it has no record."""
    if not exemplars.peaks.shape[1]:
        return [None] * len(exemplars.counts)
    peaks = zip(exemplars.counts.tolist(), exemplars.peaks[:, 0].tolist(), strict=True)
    return [peak if count else None for count, peak in peaks]


def _exemplar_rows(
    run_id: int, layer: int, exemplars: Mapping[Kind, ExemplarArrays], dtype: str
) -> Iterator[Row]:
    """A row for each unit and kind. Each array is packed once for the layer and then cut into units."""
    width, names = WIDTHS[dtype], ("segments", "starts", "documents", "token_offsets")
    # The bytes of one record in each column.
    sizes = (*(np.dtype(DTYPES[name]).itemsize for name in names), width, RECORD_LENGTH * width)
    for kind, arrays in exemplars.items():
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
                yield run_id, layer, n, kind, *blobs


def _sample_rows(run_id: int, collected: CollectedLayer, sizes: NDArray[np.float32]) -> Iterator[Row]:
    """A row for each unit and side. sizes: those of each unit's sampled records in the order of ranks."""
    firsts = np.zeros(len(sizes), np.int64)
    for side in dict.fromkeys(side for side, _ in groups_of(collected.samples)):
        samples = [collected.samples[side, split] for split in SPLITS]
        counts = np.stack([sample.records.counts for sample in samples], axis=1)
        thresholds = np.stack([sample.thresholds for sample in samples], axis=1)
        for n, (first, own) in enumerate(zip(firsts.tolist(), counts.sum(axis=1).tolist(), strict=True)):
            packed = pack_array("thresholds", thresholds[n])
            yield (
                run_id,
                collected.layer,
                n,
                side,
                pack_array("counts", counts[n]),
                pack_array("sizes", sizes[n, first : first + own]),
                packed,
                checksum_of(packed),
            )
        firsts += counts.sum(axis=1)


def _peak_token_rows(connection: Connection, run_id: int, collected: CollectedLayer) -> Iterable[Row]:
    """(run, layer, token, unit, number of records that peak on the token), in the table's order.

    Peaks are those of the top records, or of the bottom records if there are no top ones.
    """
    exemplars = collected.exemplars.get("top") or collected.exemplars.get("bottom")
    if exemplars is None:
        return ()
    used = exemplars.counts_mask()
    if exemplars.peak_token_ids is not None:
        tokens = exemplars.peak_token_ids[used]
    else:
        tokens = _stored_peak_tokens(connection, run_id, exemplars.segments[used], exemplars.starts[used])
    units = used.nonzero()[0]
    pairs, counts = np.unique((tokens.astype(np.int64) << 32) | units, return_counts=True)
    columns = ((pairs >> 32).tolist(), (pairs & 0xFFFFFFFF).tolist(), counts.tolist())
    return zip(repeat(run_id, len(pairs)), repeat(collected.layer, len(pairs)), *columns, strict=True)


def _stored_peak_tokens(
    connection: Connection, run_id: int, segments: NDArray[np.uint32], starts: NDArray[np.uint8]
) -> NDArray[np.uint32]:
    """The peak token of each record, [n], read from the stored segments."""
    distinct, places = np.unique(segments, return_inverse=True)
    if not len(distinct):
        return np.zeros(0, np.uint32)
    stored = read_segments(reader_of(connection), run_id, set(distinct.tolist()))
    table = np.stack([stored[int(segment)].token_ids for segment in distinct])  # [distinct, 128]
    tokens: NDArray[np.uint32] = table[places.reshape(-1), starts.astype(np.int64) + PEAK_INDEX]
    return tokens


def _vocabulary_rows(run_id: int, collected: CollectedLayer) -> Iterable[Row]:
    vocabulary = collected.vocabulary
    if vocabulary is None:
        return ()
    n = len(vocabulary.promoted_ids)
    names = VocabularyArrays.__dataclass_fields__
    arrays = (getattr(vocabulary, name).astype(DTYPES[name]) for name in names)
    columns = ([row.tobytes() for row in values] for values in arrays)
    return zip(repeat(run_id, n), repeat(collected.layer, n), range(n), *columns, strict=True)
