"""Read a whole layer as arrays. It is apart from units.py so that `show` starts without their types."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from neuroexplain.arrays import (
    CollectedLayer,
    ExemplarArrays,
    NearestArrays,
    SampleArrays,
    StatsArrays,
    VocabularyArrays,
)
from neuroexplain.errors import NotInStore, StoreUnreadable
from neuroexplain.evidence import SPLITS, Split
from neuroexplain.runs import Run
from neuroexplain.store.background import background_arrays
from neuroexplain.store.engine import Store
from neuroexplain.store.rows import decode_nearest, decode_sample, readable_row
from neuroexplain.units import KINDS, RECORD_LENGTH, Side


def load_collected_layer(store: Store, run: Run, layer: int) -> CollectedLayer:
    """A whole layer: the inverse of save_collected_layer. Raises NotInStore if units of it are missing."""
    of_layer, values = "WHERE run_id = :run AND layer = :layer", {"run": run.id, "layer": layer}
    width = run.width(layer)
    with store.read() as reader:
        unit_rows = reader.rows(f"SELECT * FROM units {of_layer} ORDER BY unit", **values)
        if len(unit_rows) != width:
            raise NotInStore(
                f"Run {run.id} of {store.name} holds {len(unit_rows):,} of {width:,} units of layer {layer}."
            )
        exemplars = {}
        for kind in reader.column(f"SELECT DISTINCT kind FROM exemplars {of_layer}", **values):
            rows = reader.rows(f"SELECT * FROM exemplars {of_layer} AND kind = :kind", kind=kind, **values)
            exemplars[kind] = _exemplar_arrays(rows, width, run.dtype)
        sample_rows = reader.rows(f"SELECT * FROM samples {of_layer} ORDER BY unit", **values)
        segments = reader.row(f"SELECT * FROM backgrounds {of_layer}", **values)
        active = reader.rows(f"SELECT * FROM background_activations {of_layer} ORDER BY unit", **values)
        readings = reader.rows(f"SELECT * FROM vocabulary_readings {of_layer} ORDER BY unit", **values)
    sampled = exemplars.pop("sampled", None)
    return CollectedLayer(
        layer=layer,
        exemplars={kind: exemplars[kind] for kind in KINDS if kind in exemplars},
        stats=None if unit_rows[0].mean is None else _stats_arrays(unit_rows),
        vocabulary=_vocabulary_arrays(readings) if readings else None,
        samples=_samples(run, layer, sample_rows, sampled) if run.n_sampled else {},
        background=None if segments is None else background_arrays(segments, active, width, run.dtype),
        histogram=None if unit_rows[0].histogram is None else _histograms(unit_rows),
        nearest=None if unit_rows[0].nearest_units is None else _nearest_arrays(unit_rows),
    )


def _histograms(unit_rows: Sequence[Any]) -> Any:
    """The units' histograms, [width, bins]. Raises StoreUnreadable if a row has none or another length."""
    import numpy as np

    from neuroexplain.histogram import EDGES
    from neuroexplain.store.packing import unpack_array

    counts = np.zeros((len(unit_rows), len(EDGES) + 1), np.uint32)
    for place, row in enumerate(unit_rows):
        with readable_row("units", row):
            counts[place] = unpack_array("histogram", row.histogram)
    return counts


def _nearest_arrays(unit_rows: Sequence[Any]) -> NearestArrays:
    """The nearest ones of all units. Raises StoreUnreadable if a row cannot be read."""
    import numpy as np

    rows = list(map(decode_nearest, unit_rows))
    n = max(map(len, rows))
    nearest = NearestArrays(np.zeros((len(rows), n), np.uint32), np.zeros((len(rows), n), np.float32))
    for place, own in enumerate(rows):
        if own:
            nearest.units[place, : len(own)], nearest.cosines[place, : len(own)] = zip(*own, strict=True)
    return nearest


def _samples(
    run: Run, layer: int, rows: Sequence[Any], records: ExemplarArrays | None
) -> dict[tuple[Side, Split], SampleArrays]:
    """The samples of a whole layer. records: all sampled ones in the order of ranks; None without any.

    Raises StoreUnreadable if they do not fit together.
    """
    import numpy as np

    from neuroexplain.exemplar_arrays import no_records, split_samples

    width = run.width(layer)
    records = records or no_records(width)
    decoded = [(row.unit, decode_sample(row)) for row in rows]
    expected = {(unit, side) for unit in range(width) for side in run.sides}
    if {(unit, sample.side) for unit, sample in decoded} != expected:
        raise StoreUnreadable(f"Layer {layer} lacks rows of samples, or has ones of other units or sides.")
    n_sizes = np.zeros(width, np.int64)
    for unit, sample in decoded:
        n_sizes[unit] += len(sample.sizes)
    for unit in np.flatnonzero(n_sizes != records.counts)[:1].tolist():
        n_records = records.counts[unit]
        raise StoreUnreadable(f"Unit {layer}:{unit} has {n_records} sampled records, {n_sizes[unit]} sizes.")
    counts = {(side, split): np.zeros(width, np.int64) for side in run.sides for split in SPLITS}
    thresholds = {group: np.zeros(width) for group in counts}
    sizes = np.zeros(records.segments.shape, np.float32)
    firsts = np.zeros(width, np.int64)
    for side in run.sides:
        for unit, sample in decoded:
            if sample.side != side:
                continue
            sizes[unit, firsts[unit] : firsts[unit] + len(sample.sizes)] = sample.sizes
            firsts[unit] += len(sample.sizes)
            for split, count, threshold in zip(SPLITS, sample.counts, sample.thresholds, strict=True):
                counts[side, split][unit], thresholds[side, split][unit] = count, threshold
    return split_samples(records, sizes, counts, thresholds)


def _stats_arrays(unit_rows: Sequence[Any]) -> StatsArrays:
    import numpy as np

    names = StatsArrays.__dataclass_fields__
    return StatsArrays(*(np.array([getattr(row, name) for row in unit_rows]) for name in names))


def _vocabulary_arrays(readings: Sequence[Any]) -> VocabularyArrays:
    import numpy as np

    from neuroexplain.store.packing import unpack_array

    names = VocabularyArrays.__dataclass_fields__
    with readable_row("vocabulary_readings", readings[0]):
        return VocabularyArrays(
            *(np.stack([unpack_array(name, getattr(row, name)) for row in readings]) for name in names)
        )


def _exemplar_arrays(rows: Iterable[Any], width: int, dtype: str) -> ExemplarArrays:
    """The exemplars of one kind of a whole layer; a unit without a row has none."""
    import numpy as np

    from neuroexplain.store.packing import unpack_activations, unpack_array

    by_unit = {row.unit: row for row in rows}
    # `starts` has a byte for each exemplar.
    counts = np.array([len(by_unit[n].starts) if n in by_unit else 0 for n in range(width)])
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
    for n, row in by_unit.items():
        with readable_row("exemplars", row):
            count = counts[n]
            for name in ("segments", "starts", "documents", "token_offsets"):
                arrays[name][n, :count] = unpack_array(name, getattr(row, name)).reshape(count)
            arrays["peaks"][n, :count] = unpack_activations(row.peaks, dtype).reshape(count)
            records = unpack_activations(row.activations, dtype).reshape(count, RECORD_LENGTH)
            activations[n, :count] = records
    return ExemplarArrays(counts, **arrays, activations=activations)
