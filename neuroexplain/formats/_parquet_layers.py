"""A layer's units and exemplars as Parquet tables, and back. The tables call units neurons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuroexplain.arrays import (
    BackgroundArrays,
    CollectedLayer,
    ExemplarArrays,
    NearestArrays,
    SampleArrays,
    StatsArrays,
    VocabularyArrays,
)
from neuroexplain.evidence import SPLITS, Split, Stats, VocabularyEntry, texts_in_context
from neuroexplain.exemplar_arrays import groups_of, join_samples, no_records, split_samples
from neuroexplain.formats._parquet_tables import NEAREST, PLACES, READINGS, read_table, reading
from neuroexplain.histogram import EDGES
from neuroexplain.runs import Run
from neuroexplain.store.engine import Store
from neuroexplain.store.packing import pack_activations
from neuroexplain.store.units import load_segments
from neuroexplain.units import KINDS, RECORD_LENGTH, Kind, Side


def neurons_table(collected: CollectedLayer, width: int) -> pa.Table:
    columns = _unit_columns(collected.layer, np.arange(width))
    if collected.stats is not None:
        columns |= {name: getattr(collected.stats, name) for name in Stats.__dataclass_fields__}
    if collected.vocabulary is not None:
        columns |= {name: pa.array(list(getattr(collected.vocabulary, name))) for name in READINGS}
    if collected.histogram is not None:
        columns["histogram"] = pa.array(list(collected.histogram))
    if (nearest := collected.nearest) is not None:
        is_used = nearest.cosines > 0
        for name, values in zip(NEAREST, (nearest.units, nearest.cosines), strict=True):
            columns[name] = pa.array([row[used] for row, used in zip(values, is_used, strict=True)])
    return pa.table(columns)


def background_rows(background: BackgroundArrays, layer: int) -> Iterator[dict[str, Any]]:
    """A row for each unit that is active somewhere in the background."""
    ends = np.cumsum(background.counts)
    for unit in np.flatnonzero(background.counts).tolist():
        own = slice(ends[unit] - background.counts[unit], ends[unit])
        names = ("records", "positions", "activations")
        yield {"layer": layer, "neuron": unit, **{n: getattr(background, n)[own].tolist() for n in names}}


def exemplars_table(store: Store, run: Run, collected: CollectedLayer, vocabulary: TokenTexts) -> pa.Table:
    """A row for each exemplar."""
    tables = []
    by_kind, sampled_sizes = dict(collected.exemplars), np.zeros((0, 0), np.float32)
    if collected.samples:
        by_kind["sampled"], sampled_sizes = join_samples(collected.samples)
    for kind, exemplars in by_kind.items():
        unit, rank = exemplars.counts_mask().nonzero()
        if not len(unit):
            continue
        activations = pa.array(exemplars.activations[unit, rank].reshape(-1))
        columns = _unit_columns(collected.layer, unit)
        columns |= {"kind": [kind] * len(unit), "rank": rank.astype(np.int32)}
        columns["activation"] = exemplars.peaks[unit, rank]
        columns["size"] = (
            pa.array(sampled_sizes[unit, rank]) if kind == "sampled" else pa.nulls(len(unit), pa.float32())
        )
        columns |= {name: getattr(exemplars, name)[unit, rank] for name in PLACES}
        columns["tokens"] = _token_texts(store, run, columns["segments"], columns["starts"], vocabulary)
        columns["activations"] = pa.FixedSizeListArray.from_arrays(activations, RECORD_LENGTH)
        tables.append(pa.table(columns))
    return pa.concat_tables(tables) if tables else pa.table({"layer": pa.array([], pa.int32())})


def sample_rows(collected: CollectedLayer) -> Iterator[dict[str, Any]]:
    """A row for each unit, side and split."""
    for side, split in groups_of(collected.samples):
        sample = collected.samples[side, split]
        pairs = zip(sample.records.counts.tolist(), sample.thresholds.tolist(), strict=True)
        for n, (count, threshold) in enumerate(pairs):
            place = {"layer": collected.layer, "neuron": n, "side": side, "split": split}
            yield place | {"n_records": count, "threshold": threshold}


def _unit_columns(layer: int, units: NDArray[Any]) -> dict[str, Any]:
    return {"layer": np.full(len(units), layer, np.int32), "neuron": units.astype(np.int32)}


def _token_texts(
    store: Store, run: Run, segments: NDArray[np.uint32], starts: NDArray[np.uint8], vocabulary: TokenTexts
) -> pa.Array:
    """The texts of each record's 64 tokens."""
    stored = load_segments(store, run.id, set(segments.tolist()))
    places = zip(segments.tolist(), starts.tolist(), strict=True)
    tokens = np.stack([stored[segment].token_ids[start : start + RECORD_LENGTH] for segment, start in places])
    tokens = np.minimum(tokens, len(vocabulary.entries) - 1)
    in_context = vocabulary.is_part[tokens].any(axis=1)  # in most corpora few records
    numbers = tokens.reshape(-1).astype(np.int32)
    texts = pa.DictionaryArray.from_arrays(numbers, vocabulary.texts).cast(pa.string())
    if in_context.any():
        records = ([vocabulary.entries[i] for i in ids] for ids in tokens[in_context].tolist())
        spelled = pa.array([text for record in records for text in texts_in_context(record)], pa.string())
        texts = pc.replace_with_mask(texts, pa.array(np.repeat(in_context, RECORD_LENGTH)), spelled)
    return pa.FixedSizeListArray.from_arrays(texts, RECORD_LENGTH)


class TokenTexts:
    """A vocabulary by token id: entries, texts, and which tokens are parts of characters.

    Missing ids have the text U+FFFD, and one more entry stands for all greater ids.
    """

    def __init__(self, vocabulary: Sequence[VocabularyEntry]) -> None:
        n = max((entry.token_id for entry in vocabulary), default=-1) + 2
        self.entries = [VocabularyEntry(token_id, "\ufffd", True) for token_id in range(n)]
        for entry in vocabulary:
            self.entries[entry.token_id] = entry
        self.texts = pa.array([entry.text for entry in self.entries])
        self.is_part = np.array(["\ufffd" in e.text and e.data is not None for e in self.entries])


def read_layer(
    folder: Path, run: Run, layer: int, limits: Mapping[str, range], segments: NDArray[np.int64]
) -> CollectedLayer:
    """A layer's units and exemplars. Raises DamagedFolder, also if an exemplar's segment is missing."""
    width = run.width(layer)
    file, neurons = read_table(folder, "neurons", limits, layer)
    with reading(file):
        if neurons.num_rows != width or np.any(np.diff(neurons["neuron"].to_numpy()) != 1):
            raise ValueError(f"it does not hold the neurons 0 to {width - 1} in order")
        stats, vocabulary = _stats_arrays(neurons), _vocabulary_arrays(neurons)
        histogram, nearest = _histograms(neurons), _nearest_arrays(neurons, width)
    file, exemplars = read_table(folder, "exemplars", limits, layer)
    with reading(file):
        if not exemplars.num_rows:
            raise ValueError("there are no exemplars")
        if not np.isin(exemplars["segments"].to_numpy(), segments).all():
            raise ValueError("exemplars are of segments that are missing")
        by_kind = _exemplar_arrays(exemplars, width, run.dtype)
        sizes = exemplars.filter(pc.equal(exemplars["kind"], "sampled"))["size"].to_numpy()
        if not np.all((sizes > 0) & np.isfinite(sizes)):
            raise ValueError("a sampled record has no size above 0")
        if len(sizes) and not run.n_sampled:
            raise ValueError("there are sampled records, and the run draws none")
    samples = {}
    if run.n_sampled:
        samples = _read_samples(folder, run, layer, limits, by_kind.pop("sampled", None), exemplars)
    background = _read_background(folder, run, layer, limits, segments) if run.n_background else None
    return CollectedLayer(layer, by_kind, stats, vocabulary, samples, background, histogram, nearest)


def _read_background(
    folder: Path, run: Run, layer: int, limits: Mapping[str, range], segments: NDArray[np.int64]
) -> BackgroundArrays:
    """The background of a layer: the inverse of background_rows."""
    file, table = read_table(folder, "background_segments", limits, layer)
    with reading(file):
        if table.num_rows != 1:
            raise ValueError("it does not hold one row")
        numbers = np.array(table["segments"][0].as_py(), np.uint32)
        if not np.isin(numbers, segments).all():
            raise ValueError("the background is of segments that are missing")
    counts = np.zeros(run.width(layer), np.int64)
    arrays = {"records": np.uint16, "positions": np.uint8, "activations": np.float32}
    if not (folder / "background" / file.name).exists():  # no unit is active there
        return BackgroundArrays(numbers, counts, **{n: np.zeros(0, dtype) for n, dtype in arrays.items()})
    file, table = read_table(folder, "background", limits, layer)
    with reading(file):
        lengths = {name: pc.list_value_length(table[name]).to_numpy() for name in arrays}
        if any(not np.array_equal(own, lengths["records"]) for own in lengths.values()):
            raise ValueError("records, positions and activations differ in number")
        units = table["neuron"].to_numpy()
        if np.any(np.diff(units) <= 0):
            raise ValueError("its neurons are not in order")
        counts[units] = lengths["records"]
        values = {name: pc.list_flatten(table[name]).to_numpy() for name in arrays}
        records, positions = values["records"], values["positions"]
        if len(records) and (records.max() >= len(numbers) or positions.max() >= RECORD_LENGTH):
            raise ValueError("an activation is outside of the background")
        if not np.isfinite(values["activations"]).all():
            raise ValueError("an activation is not finite")
        pack_activations(values["activations"], run.dtype)
        return BackgroundArrays(
            numbers, counts, **{n: values[n].astype(dtype) for n, dtype in arrays.items()}
        )


def _histograms(neurons: pa.Table) -> NDArray[np.uint32] | None:
    if "histogram" not in neurons.column_names:
        return None
    counts = np.stack(neurons["histogram"].to_numpy()).astype(np.uint32)
    if counts.shape[1] != len(EDGES) + 1:
        raise ValueError(f"a histogram has {counts.shape[1]} bins, not {len(EDGES) + 1}")
    return counts


def _nearest_arrays(neurons: pa.Table, width: int) -> NearestArrays | None:
    if "nearest_units" not in neurons.column_names:
        return None
    rows = [list(map(np.asarray, neurons[name].to_numpy())) for name in NEAREST]
    lengths = [[len(row) for row in column] for column in rows]
    if lengths[0] != lengths[1]:
        raise ValueError("a unit has another number of nearest units than of cosines")
    n = max(lengths[0])
    units, cosines = np.zeros((width, n), np.uint32), np.zeros((width, n), np.float32)
    for place, (own, values) in enumerate(zip(*rows, strict=True)):
        units[place, : len(own)], cosines[place, : len(own)] = own, values
    if (units >= width).any():
        raise ValueError(f"a nearest unit is not one of 0 to {width - 1}")
    if not all(((row > 0) & (row <= 1)).all() for row in rows[1]):
        raise ValueError("a cosine of a nearest unit is not above 0 and at most 1")
    return NearestArrays(units, cosines)


def _read_samples(
    folder: Path,
    run: Run,
    layer: int,
    limits: Mapping[str, range],
    records: ExemplarArrays | None,
    exemplars: pa.Table,
) -> dict[tuple[Side, Split], SampleArrays]:
    """The samples of a layer. records: all sampled ones in the order of ranks; exemplars: their table."""
    width = run.width(layer)
    file, rows = read_table(folder, "samples", limits, layer)
    with reading(file):
        counts: dict[tuple[Side, Split], NDArray[np.int64]] = {}
        thresholds: dict[tuple[Side, Split], NDArray[np.float64]] = {}
        for side, split in ((side, split) for side in run.sides for split in SPLITS):
            own = rows.filter(pc.and_(pc.equal(rows["side"], side), pc.equal(rows["split"], split)))
            if not np.array_equal(own["neuron"].to_numpy(), np.arange(width)):
                raise ValueError(f"{side} {split} does not hold the neurons 0 to {width - 1} in order")
            counts[side, split] = own["n_records"].to_numpy().astype(np.int64)
            thresholds[side, split] = own["threshold"].to_numpy().astype(np.float64)
        if rows.num_rows != width * len(counts):
            raise ValueError("there are rows of other sides or splits")
        if any((values < 0).any() for values in counts.values()):
            raise ValueError("a number of records is below 0")
        all_records = records or no_records(width)
        if not np.array_equal(sum(counts.values(), np.zeros(width, np.int64)), all_records.counts):
            raise ValueError("the numbers of sampled records do not fit")
        if any(not np.isfinite(values).all() or (values < 0).any() for values in thresholds.values()):
            raise ValueError("a threshold is not finite or below 0")
        sampled = exemplars.filter(pc.equal(exemplars["kind"], "sampled"))
        sizes = np.zeros(all_records.segments.shape, np.float32)
        sizes[sampled["neuron"].to_numpy(), sampled["rank"].to_numpy()] = sampled["size"].to_numpy()
    return split_samples(all_records, sizes, counts, thresholds)


def _stats_arrays(neurons: pa.Table) -> StatsArrays | None:
    names = [name for name in neurons.column_names if name in Stats.__dataclass_fields__]
    return StatsArrays(**{name: neurons[name].to_numpy() for name in names}) if names else None


def _vocabulary_arrays(neurons: pa.Table) -> VocabularyArrays | None:
    names = [name for name in READINGS if name in neurons.column_names]
    arrays = {name: np.stack(neurons[name].to_numpy()) for name in names}
    if len({array.shape for array in arrays.values()}) > 1:
        raise ValueError("vocabulary readings are of different lengths")
    return VocabularyArrays(**arrays) if arrays else None


def _exemplar_arrays(exemplars: pa.Table, width: int, dtype: str) -> dict[Kind, ExemplarArrays]:
    kinds = np.array(exemplars["kind"].to_pylist(), "U8")
    if not set(kinds.tolist()) <= set(KINDS):
        raise ValueError(f"there are kinds other than {', '.join(KINDS)}")
    return {
        kind: _arrays(exemplars.filter(pa.array(kinds == kind)), width, dtype)
        for kind in KINDS
        if (kinds == kind).any()
    }


def _arrays(rows: pa.Table, width: int, dtype: str) -> ExemplarArrays:
    """The exemplars of one kind.

    Raises ValueError if ranks have gaps, or if an activation is not finite or not a value of the run's dtype.
    """
    unit, rank = rows["neuron"].to_numpy(), rows["rank"].to_numpy()
    counts = np.bincount(unit, minlength=width)
    k = int(counts.max())
    is_used = np.zeros((width, k), np.bool_)
    is_used[unit[rank < k], rank[rank < k]] = True
    if not np.array_equal(is_used, np.arange(k) < counts[:, None]):
        raise ValueError("ranks of a neuron's exemplars are missing or occur twice")
    places: dict[str, Any] = {}
    for name, place_dtype in PLACES.items():
        places[name] = np.full((width, k), -1 if name == "documents" else 0, place_dtype)
        places[name][unit, rank] = rows[name].to_numpy()
    peaks, activations = np.zeros((width, k), np.float32), np.zeros((width, k, RECORD_LENGTH), np.float32)
    peaks[unit, rank] = rows["activation"].to_numpy()
    values = rows["activations"].combine_chunks().flatten().to_numpy()
    activations[unit, rank] = values.reshape(-1, RECORD_LENGTH)
    for array in (peaks, activations):
        if not np.isfinite(array).all():
            raise ValueError("an activation is not finite")
        pack_activations(array, dtype)
    return ExemplarArrays(counts, **places, peaks=peaks, activations=activations)
