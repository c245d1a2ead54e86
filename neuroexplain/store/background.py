"""The background of a run of sparse units: random segments, and what is active there, stored sparsely."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

from neuroexplain.errors import StoreUnreadable
from neuroexplain.evidence import Exemplar, Segment, Tokens, Unit
from neuroexplain.runs import Run
from neuroexplain.sampling import RANDOM_SHARES, share_out
from neuroexplain.store.engine import Store
from neuroexplain.store.hard import load_hard
from neuroexplain.store.reader import Reader
from neuroexplain.store.rows import readable_row
from neuroexplain.store.units import load_unit, read_segments
from neuroexplain.store.vocabulary import load_tokens_once
from neuroexplain.units import RANDOM_START, RECORD_LENGTH, UnitId

if TYPE_CHECKING:
    from neuroexplain.arrays import BackgroundArrays
    from neuroexplain.store.statements import Row

# The segments and tokens of a run's background, which every unit shares, by store and run.
_Shared: TypeAlias = "dict[tuple[int, str, int], tuple[list[Segment], Tokens]]"
_SHARED: WeakKeyDictionary[Store, _Shared] = WeakKeyDictionary()


def background_rows(run_id: int, layer: int, background: BackgroundArrays, dtype: str) -> Iterator[Row]:
    """A row for each unit that is active somewhere, for the table `background_activations`."""
    from neuroexplain.store.packing import WIDTHS, pack_activations, pack_array

    columns = (
        pack_array("records", background.records),
        pack_array("positions", background.positions),
        pack_activations(background.activations, dtype),
    )
    first = 0
    for unit, count in enumerate(background.counts.tolist()):
        if count:
            sizes = (2, 1, WIDTHS[dtype])
            blobs = (
                data[first * size : (first + count) * size] for data, size in zip(columns, sizes, strict=True)
            )
            yield run_id, layer, unit, *blobs
        first += count


def background_arrays(segments: Any, rows: Sequence[Any], width: int, dtype: str) -> BackgroundArrays:
    """A layer's background: the inverse of background_rows. segments: a row of `backgrounds`."""
    import numpy as np

    from neuroexplain.arrays import BackgroundArrays
    from neuroexplain.store.packing import unpack_array

    with readable_row("backgrounds", segments):
        numbers = unpack_array("segments", segments.segments).astype(np.uint32)
    counts = np.zeros(width, np.int64)
    parts: list[tuple[Any, ...]] = [(np.zeros(0, np.uint16), np.zeros(0, np.uint8), np.zeros(0, np.float32))]
    for row in rows:
        parts.append(_decode(row, len(numbers), dtype))
        if row.unit >= width:
            raise StoreUnreadable(f"A row of background_activations is of unit {row.layer}:{row.unit}.")
        counts[row.unit] = len(parts[-1][0])
    records, positions, activations = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return BackgroundArrays(
        numbers, counts, records.astype(np.uint16), positions.astype(np.uint8), activations
    )


def _decode(row: Any, n_records: int, dtype: str) -> tuple[Any, Any, Any]:
    """(records, positions, activations) of a unit. Raises StoreUnreadable if they are impossible."""
    from neuroexplain.store.packing import unpack_activations, unpack_array

    with readable_row("background_activations", row):
        records, positions = unpack_array("records", row.records), unpack_array("positions", row.positions)
        activations = unpack_activations(row.activations, dtype)
        if not len(records) == len(positions) == len(activations):
            raise ValueError("its records, positions and activations differ in number")
        if len(records) and (int(records.max()) >= n_records or int(positions.max()) >= RECORD_LENGTH):
            raise ValueError("an activation is outside of the background")
        return records, positions, activations


def load_unit_to_score(store: Store, run: Run, unit_id: UnitId) -> tuple[Unit, dict[int, Any]]:
    """A unit with its background and its look-alikes' records, and the entries of all of their tokens.

    The segments and tokens of the background are read once for each store and run.
    """
    unit = replace(load_unit(store, run, unit_id), hard=load_hard(store, run, unit_id))
    records = (*unit.exemplars, *(record for own in unit.hard.values() for record in own))
    needed = {token_id for x in records for token_id in x.token_ids.tolist()}
    if not run.n_background:
        return unit, load_tokens_once(store, run, needed)
    segments, tokens = _load_shared(store, run, unit_id.layer)
    own = load_tokens_once(store, run, needed - tokens.keys())
    return replace(unit, background=_records(store, run, unit_id, segments)), {**tokens, **own}


def _load_shared(store: Store, run: Run, layer: int) -> tuple[list[Segment], Tokens]:
    by_run = _SHARED.setdefault(store, {})
    key = run.id, run.started_at, layer
    if key not in by_run:
        with store.read() as reader:
            numbers = _segment_numbers(reader, run, layer)
            stored = read_segments(reader, run.id, set(numbers))
        segments = [stored[number] for number in numbers]
        ids = {token_id for segment in segments for token_id in segment.token_ids.tolist()}
        by_run[key] = segments, load_tokens_once(store, run, ids)
    return by_run[key]


def _segment_numbers(reader: Reader, run: Run, layer: int) -> list[int]:
    from neuroexplain.store.packing import unpack_array

    sql = "SELECT * FROM backgrounds WHERE run_id = :run AND layer = :layer"
    row = reader.row(sql, run=run.id, layer=layer)
    if row is None:
        raise StoreUnreadable(f"The background of layer {layer} of run {run.id} is missing.")
    with readable_row("backgrounds", row):
        numbers: list[int] = unpack_array("segments", row.segments).tolist()
    return numbers


def _records(store: Store, run: Run, unit: UnitId, segments: Sequence[Segment]) -> tuple[Exemplar, ...]:
    """A unit's records of the background, without the random ones, which it has anyway."""
    import numpy as np

    sql = "SELECT * FROM background_activations WHERE run_id = :run AND layer = :layer AND unit = :unit"
    with store.read() as reader:
        row = reader.row(sql, run=run.id, layer=unit.layer, unit=unit.index)
    silent = np.zeros(RECORD_LENGTH, np.float32)
    active: dict[int, Any] = {}
    if row is not None:
        for record, position, value in zip(*_decode(row, len(segments), run.dtype), strict=True):
            active.setdefault(int(record), silent.copy())[position] = value
    first = share_out(run.n_random, RANDOM_SHARES)["report"]
    return tuple(_exemplar(unit, rank, segments[rank], active.get(rank, silent), run)
                 for rank in range(first, len(segments)))  # fmt: skip


def _exemplar(unit: UnitId, rank: int, segment: Segment, activations: Any, run: Run) -> Exemplar:
    return Exemplar(
        unit=unit,
        kind="background",
        rank=rank,
        segment=segment.segment,
        start=RANDOM_START,
        document=None,
        token_offset=None,
        activation=float(activations[abs(activations).argmax()]),
        token_ids=segment.token_ids[RANDOM_START:],
        activations=activations,
        stride=run.segment_stride,
        split=segment.split,
    )


def list_background_segments(store: Store, run_id: int) -> Iterable[tuple[int, list[int]]]:
    """(layer, the background's segments) of each layer that has one."""
    from neuroexplain.store.packing import unpack_array

    with store.read() as reader:
        rows = reader.rows("SELECT * FROM backgrounds WHERE run_id = :run ORDER BY layer", run=run_id)
    for row in rows:
        with readable_row("backgrounds", row):
            yield row.layer, unpack_array("segments", row.segments).tolist()
