"""Read units: their ids, one with its records, and a whole layer as arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from neuroexplain.arrays import CollectedLayer, StatsArrays, VocabularyArrays
from neuroexplain.errors import NotInStore, StoreUnreadable
from neuroexplain.evidence import (
    Exemplar,
    Segment,
    Stats,
    Unit,
)
from neuroexplain.runs import Run
from neuroexplain.store.engine import Store
from neuroexplain.store.reader import Reader
from neuroexplain.store.rows import (
    chunks,
    decode_exemplar_arrays,
    decode_exemplars,
    decode_reading,
    decode_segment_ids,
    decode_status,
    readable_row,
    sql_in,
)
from neuroexplain.units import KINDS, UnitId

OF_UNIT = "run_id = :run AND layer = :layer AND unit = :unit"


def list_unit_ids(
    store: Store, run_id: int, layers: Collection[int] | None = None, status: str | None = None
) -> list[UnitId]:
    """The run's neurons in ascending order."""
    sql = "SELECT layer, unit FROM units WHERE run_id = :run"
    if layers is not None:
        sql += f" AND layer {sql_in(layers)}"
    if status is not None:
        sql += " AND status = :status"
    with store.read() as reader:
        return [UnitId(*row) for row in reader.rows(f"{sql} ORDER BY layer, unit", run=run_id, status=status)]


def list_explained_ids(store: Store, run_id: int, layers: Collection[int] | None = None) -> list[UnitId]:
    """The run's neurons that have an explanation, in ascending order."""
    sql = "SELECT DISTINCT layer, unit FROM explanations WHERE run_id = :run AND status = 'ok'"
    if layers is not None:
        sql += f" AND layer {sql_in(layers)}"
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
            with readable_row("exemplars", one):
                wanted.update(unpack_array("segments", one.segments).tolist())
        ids = read_segment_ids(reader, run.id, wanted)
        reading = reader.row(f"SELECT * FROM vocabulary_readings WHERE {OF_UNIT}", **whose)
    by_kind = {one.kind: one for one in packed}
    exemplars: list[Exemplar] = []
    for packed_kind in (by_kind[kind] for kind in KINDS if kind in by_kind):
        with readable_row("exemplars", packed_kind):
            exemplars += decode_exemplars(packed_kind, neuron, run, ids)
    return Unit(
        id=neuron,
        status=decode_status("neurons", row),
        stats=None if row.mean is None else Stats(row.mean, row.std, row.min, row.max, row.share_positive),
        exemplars=tuple(exemplars),
        promoted=decode_reading(reading, "promoted") if reading else (),
        suppressed=decode_reading(reading, "suppressed") if reading else (),
    )


def list_segments(store: Store, run_id: int, at_once: int = 5_000) -> Iterator[list[Segment]]:
    """The stored segments in ascending order, some at a time; their documents stand with the exemplars."""
    last = -1
    sql = "SELECT * FROM segments WHERE run_id = :run AND segment > :last ORDER BY segment LIMIT :n"
    while True:
        with store.read() as reader:
            rows = reader.rows(sql, run=run_id, last=last, n=at_once)
        found = [Segment(row.segment, decode_segment_ids(row)) for row in rows]
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
            exemplars[kind] = decode_exemplar_arrays(found, run.width(layer), run.dtype)
        readings = reader.rows(f"SELECT * FROM vocabulary_readings {of_layer} ORDER BY unit", **place)
    names = VocabularyArrays.__dataclass_fields__
    vocabulary: VocabularyArrays | None = None
    if readings:
        with readable_row("vocabulary_readings", readings[0]):
            vocabulary = VocabularyArrays(
                *(np.stack([unpack_array(name, getattr(row, name)) for row in readings]) for name in names)
            )
    return CollectedLayer(
        layer=layer,
        exemplars={kind: exemplars[kind] for kind in KINDS if kind in exemplars},
        stats=None
        if rows[0].mean is None
        else StatsArrays(
            *(np.array([getattr(row, name) for row in rows]) for name in Stats.__dataclass_fields__)
        ),
        vocabulary=vocabulary,
    )


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


def read_segment_ids(reader: Reader, run_id: int, wanted: set[int]) -> dict[int, Any]:
    """The token ids of the given segments, read by one that is reading already. Raises StoreUnreadable where one is missing."""
    found: dict[int, Any] = {}
    for some in chunks(sorted(wanted)):
        sql = (
            f"SELECT run_id, segment, token_ids FROM segments WHERE run_id = :run AND segment {sql_in(some)}"
        )
        found |= {row.segment: decode_segment_ids(row) for row in reader.rows(sql, run=run_id)}
    if missing := wanted - found.keys():
        raise StoreUnreadable(f"The segments of run {run_id} cannot be read: {min(missing)} is missing.")
    return found
