"""Read records of look-alikes: those that were measured, and those that a unit's can be drawn from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from neuroexplain.evidence import Exemplar, Segment
from neuroexplain.runs import Run
from neuroexplain.scoring.look_alikes import place_hash
from neuroexplain.store.engine import Store
from neuroexplain.store.rows import chunks, readable_row, sql_in
from neuroexplain.store.units import list_segments, load_segments
from neuroexplain.units import PEAK_INDEX, RECORD_LENGTH, Kind, Side, UnitId, UnitSide

if TYPE_CHECKING:
    from neuroexplain.arrays import HardRecords

MOST_PLACES = 256  # of a token: a unit may have judged some of them already, and measures 48 at most
COLUMNS = ("segments", "starts", "reasons", "others")  # packed arrays of HardRecords


class HardRow(NamedTuple):
    """One side's measured records of look-alikes."""

    unit: UnitId
    side: Side
    records: HardRecords
    is_sound: bool  # whether they are those of the checksum


def list_measured(store: Store, run_id: int) -> set[UnitSide]:
    """The sides of units whose look-alikes were measured."""
    with store.read() as reader:
        rows = reader.rows("SELECT layer, unit, side FROM hard_records WHERE run_id = :run", run=run_id)
    return {(UnitId(row.layer, row.unit), row.side) for row in rows}


def load_hard_rows(store: Store, run: Run, layer: int, units: Collection[int] | None = None) -> list[HardRow]:
    """What was measured of a layer, or of some of its units, in the order of units and sides.

    Raises StoreUnreadable if a row cannot be read.
    """
    sql = "SELECT * FROM hard_records WHERE run_id = :run AND layer = :layer"
    if units is not None:
        sql += f" AND unit {sql_in(units)}"
    with store.read() as reader:
        rows = reader.rows(f"{sql} ORDER BY unit, side", run=run.id, layer=layer)
    return [_decode(row, run.dtype) for row in rows]


def _decode(row: Any, dtype: str) -> HardRow:
    from neuroexplain.arrays import HardRecords
    from neuroexplain.store.packing import checksum_of, unpack_activations, unpack_array

    with readable_row("hard_records", row):
        arrays = {name: unpack_array(name, getattr(row, name)) for name in COLUMNS}
        n = len(arrays["segments"])
        activations = unpack_activations(row.activations, dtype).reshape(-1, RECORD_LENGTH)
        if any(len(array) != n for array in (*arrays.values(), activations)):
            raise ValueError("its segments, starts, reasons, others and activations differ in number")
        checksum = checksum_of(b"".join(getattr(row, name) for name in (*COLUMNS, "activations")))
        records = HardRecords(**arrays, activations=activations)
        return HardRow(UnitId(row.layer, row.unit), row.side, records, checksum == row.checksum)


def load_hard(store: Store, run: Run, unit: UnitId) -> dict[Side, tuple[Exemplar, ...]]:
    """A unit's measured records of look-alikes, by side. Raises StoreUnreadable if one cannot be read."""
    rows = load_hard_rows(store, run, unit.layer, [unit.index]) if run.n_sampled else []
    numbers = {number for row in rows for number in row.records.segments.tolist()}
    segments = load_segments(store, run.id, numbers) if numbers else {}
    return {row.side: _exemplars(run, row, segments) for row in rows}


def _exemplars(run: Run, row: HardRow, segments: Mapping[int, Segment]) -> tuple[Exemplar, ...]:
    own = row.records
    places = zip(own.segments.tolist(), own.starts.tolist(), strict=True)
    return tuple(
        Exemplar(
            unit=row.unit,
            kind="hard",
            rank=rank,
            segment=number,
            start=start,
            document=None,
            token_offset=None,
            activation=float(own.activations[rank, PEAK_INDEX]),
            token_ids=segments[number].token_ids[start : start + RECORD_LENGTH],
            activations=own.activations[rank],
            stride=run.segment_stride,
            split=segments[number].split,
            side=row.side,
        )
        for rank, (number, start) in enumerate(places)
    )


def list_peaks(store: Store, run_id: int, layer: int, tokens: Collection[int]) -> list[tuple[int, int, int]]:
    """(token, unit, how many of the unit's strongest records peak on it) of a layer, for these tokens."""
    sql = (
        "SELECT token_id, unit, count FROM peak_tokens WHERE run_id = :run AND layer = :layer "
        f"AND token_id {sql_in(tokens)} ORDER BY token_id, unit"
    )
    with store.read() as reader:
        return [tuple(row) for row in reader.rows(sql, run=run_id, layer=layer)]


def list_records(
    store: Store, run_id: int, layer: int, kind: Kind, units: Iterable[int]
) -> dict[int, list[tuple[int, int]]]:
    """(segment, start) of the records of one kind, in the order of ranks, by unit."""
    from neuroexplain.store.packing import unpack_array

    places: dict[int, list[tuple[int, int]]] = {}
    sql = (
        "SELECT unit, segments, starts FROM exemplars WHERE run_id = :run AND layer = :layer "
        "AND kind = :kind AND unit "
    )
    with store.read() as reader:
        for batch in chunks(units):
            for row in reader.rows(f"{sql}{sql_in(batch)}", run=run_id, layer=layer, kind=kind):
                with readable_row("exemplars", row):
                    arrays = (unpack_array(name, getattr(row, name)) for name in ("segments", "starts"))
                    places[row.unit] = list(zip(*(a.tolist() for a in arrays), strict=True))
    return places


def list_in_report(store: Store, run_id: int, numbers: Iterable[int]) -> set[int]:
    """Those of these segments that are of `report`."""
    sql = "SELECT segment FROM segments WHERE run_id = :run AND split = 'report' AND segment"
    with store.read() as reader:
        batches = (reader.column(f"{sql} {sql_in(batch)}", run=run_id) for batch in chunks(numbers))
        return {number for batch in batches for number in batch}


def find_places(
    store: Store, run: Run, tokens: Collection[int], positions: range
) -> dict[int, list[tuple[int, int]]]:
    """(segment, position) of tokens in the stored segments of `report`, in the order of place_hash, by token.

    At most MOST_PLACES of each, and of a segment the first position among `positions`. One pass over the
    segments, some at a time.
    """
    import numpy as np

    places: dict[int, list[tuple[int, int, int]]] = {token: [] for token in tokens}
    for segments in list_segments(store, run.id):
        report = [segment for segment in segments if segment.split == "report"]
        if not report or not tokens:
            continue
        ids = np.stack([segment.token_ids for segment in report])[:, positions.start : positions.stop]
        rows, columns = np.isin(ids, np.array(sorted(tokens), np.uint32)).nonzero()
        seen: set[tuple[int, int]] = set()
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            token, number = int(ids[row, column]), report[row].segment
            if (token, row) not in seen:
                seen.add((token, row))
                order = place_hash(run.seed, token, number)
                places[token].append((order, number, positions.start + column))
        for token, own in places.items():
            places[token] = sorted(own)[:MOST_PLACES]
    return {token: [place for _, *place in own] for token, own in places.items()}  # type: ignore[misc]
