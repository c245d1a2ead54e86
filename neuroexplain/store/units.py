"""Read units: their ids, a unit with its records, and a whole layer as arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from neuroexplain.errors import NotInStore, StoreUnreadable
from neuroexplain.evidence import SPLITS, Exemplar, Segment, Stats, Unit
from neuroexplain.runs import Run
from neuroexplain.store.engine import Store
from neuroexplain.store.reader import Reader
from neuroexplain.store.rows import (
    chunks,
    decode_exemplars,
    decode_nearest,
    decode_reading,
    decode_sample,
    decode_segment,
    decode_status,
    readable_row,
    sql_in,
)
from neuroexplain.units import KINDS, UnitId

OF_UNIT = "run_id = :run AND layer = :layer AND unit = :unit"


def list_unit_ids(
    store: Store, run_id: int, layers: Collection[int] | None = None, status: str | None = None
) -> list[UnitId]:
    """The run's units in ascending order."""
    sql = "SELECT layer, unit FROM units WHERE run_id = :run"
    if layers is not None:
        sql += f" AND layer {sql_in(layers)}"
    if status is not None:
        sql += " AND status = :status"
    with store.read() as reader:
        return [UnitId(*row) for row in reader.rows(f"{sql} ORDER BY layer, unit", run=run_id, status=status)]


def list_explained_ids(store: Store, run_id: int, layers: Collection[int] | None = None) -> list[UnitId]:
    """The run's units that have an explanation with status ok, in ascending order."""
    sql = "SELECT DISTINCT layer, unit FROM explanations WHERE run_id = :run AND status = 'ok'"
    if layers is not None:
        sql += f" AND layer {sql_in(layers)}"
    with store.read() as reader:
        return [UnitId(*row) for row in reader.rows(f"{sql} ORDER BY layer, unit", run=run_id)]


def list_ids_explained_by_others(store: Store, run_id: int, explainers: Collection[str]) -> set[UnitId]:
    """The run's units that have an explanation with status ok by none of these explainers."""
    names = {f"name_{n}": name for n, name in enumerate(sorted(explainers))}
    sql = (
        "SELECT DISTINCT layer, unit FROM explanations WHERE run_id = :run AND status = 'ok' "
        f"AND explainer NOT IN ({', '.join(f':{key}' for key in names)})"
    )
    with store.read() as reader:
        return {UnitId(*row) for row in reader.rows(sql, run=run_id, **names)}


def list_ids_scored_from(store: Store, run: Run, least: float) -> set[UnitId]:
    """The run's units that have a chosen explanation whose headline score is at least `least`."""
    subsets = {f"subset_{n}": subset for n, subset in enumerate(run.headline.subsets)}
    sql = (
        "SELECT DISTINCT s.layer, s.unit FROM scores s JOIN explanations e ON e.id = s.explanation_id "
        "WHERE s.run_id = :run AND s.metric = :metric AND s.split = 'report' AND s.value >= :least "
        f"AND e.chosen AND s.subset IN ({', '.join(f':{key}' for key in subsets)})"
    )
    with store.read() as reader:
        rows = reader.rows(sql, run=run.id, metric=run.headline.metric, least=least, **subsets)
        return {UnitId(*row) for row in rows}


def load_unit(store: Store, run: Run, unit: UnitId) -> Unit:
    """One unit with its exemplars and vocabulary reading. Raises NotInStore if the run does not hold it."""
    values = {"run": run.id, "layer": unit.layer, "unit": unit.index}
    with store.read() as reader:
        row = reader.row(f"SELECT * FROM units WHERE {OF_UNIT}", **values)
        if row is None:
            raise NotInStore(
                f"No unit {unit} in run {run.id}: {store.name} holds {run.size}, both counted from 0.\n"
                f"Try a unit of the run:  neuroexplain show {run.layers[0]}:0 --db {store.name}"
            )
        exemplar_rows = reader.rows(f"SELECT * FROM exemplars WHERE {OF_UNIT}", **values)
        sample_rows = reader.rows(f"SELECT * FROM samples WHERE {OF_UNIT} ORDER BY side DESC", **values)
        segments = read_segments(reader, run.id, _segment_numbers(exemplar_rows))
        reading = reader.row(f"SELECT * FROM vocabulary_readings WHERE {OF_UNIT}", **values)
    samples = list(map(decode_sample, sample_rows))
    exemplars: list[Exemplar] = []
    for exemplar_row in _in_order_of_kinds(exemplar_rows):
        with readable_row("exemplars", exemplar_row):
            exemplars += decode_exemplars(exemplar_row, unit, run, segments, samples)
    return Unit(
        id=unit,
        status=decode_status("units", row),
        stats=None if row.mean is None else Stats(row.mean, row.std, row.min, row.max, row.share_positive),
        exemplars=tuple(exemplars),
        histogram=_histogram(row),
        nearest=decode_nearest(row),
        promoted=decode_reading(reading, "promoted") if reading else (),
        suppressed=decode_reading(reading, "suppressed") if reading else (),
        thresholds={
            (sample.side, split): threshold
            for sample in samples
            for split, threshold in zip(SPLITS, sample.thresholds, strict=True)
        },
    )


def _histogram(row: Any) -> tuple[int, ...] | None:
    from neuroexplain.store.packing import unpack_array

    if row.histogram is None:
        return None
    with readable_row("units", row):
        return tuple(unpack_array("histogram", row.histogram).tolist())


def _segment_numbers(exemplar_rows: Iterable[Any]) -> set[int]:
    from neuroexplain.store.packing import unpack_array

    numbers: set[int] = set()
    for row in exemplar_rows:
        with readable_row("exemplars", row):
            numbers.update(unpack_array("segments", row.segments).tolist())
    return numbers


def _in_order_of_kinds(exemplar_rows: Iterable[Any]) -> list[Any]:
    by_kind = {row.kind: row for row in exemplar_rows}
    return [by_kind[kind] for kind in KINDS if kind in by_kind]


def list_segments(store: Store, run_id: int, at_once: int = 5_000) -> Iterator[list[Segment]]:
    """The stored segments in ascending order, in lists of at most `at_once`: that many are in memory."""
    last = -1
    sql = "SELECT * FROM segments WHERE run_id = :run AND segment > :last ORDER BY segment LIMIT :n"
    while True:
        with store.read() as reader:
            rows = reader.rows(sql, run=run_id, last=last, n=at_once)
        segments = list(map(decode_segment, rows))
        if not segments:
            return
        yield segments
        last = segments[-1].segment


def load_segments(store: Store, run_id: int, numbers: set[int]) -> dict[int, Segment]:
    """The segments of these numbers. Raises StoreUnreadable if one is missing."""
    with store.read() as reader:
        return read_segments(reader, run_id, numbers)


def read_segments(reader: Reader, run_id: int, numbers: set[int]) -> dict[int, Segment]:
    """`load_segments` with an open reader."""
    segments: dict[int, Segment] = {}
    sql = "SELECT * FROM segments WHERE run_id = :run AND segment"
    for batch in chunks(sorted(numbers)):
        rows = reader.rows(f"{sql} {sql_in(batch)}", run=run_id)
        segments |= {row.segment: decode_segment(row) for row in rows}
    missing = numbers - segments.keys()
    if missing:
        raise StoreUnreadable(f"The segments of run {run_id} cannot be read: {min(missing)} is missing.")
    return segments


def load_max_activations(store: Store, run_id: int) -> dict[tuple[int, int], float | None]:
    """How strong every unit's strongest record is, by (layer, unit); of negative runs how far below 0."""
    with store.read() as reader:
        rows = reader.rows("SELECT layer, unit, max_activation FROM units WHERE run_id = :run", run=run_id)
    return {(row[0], row[1]): row[2] for row in rows}


def count_layer_units(store: Store, run_id: int, layer: int) -> int:
    """The number of stored units of a layer."""
    with store.read() as reader:
        sql = "SELECT count(*) FROM units WHERE run_id = :run AND layer = :layer"
        return int(reader.value(sql, run=run_id, layer=layer))
