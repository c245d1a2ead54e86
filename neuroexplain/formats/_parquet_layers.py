"""A layer's neurons and exemplars as Parquet tables, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from neuroexplain.arrays import CollectedLayer, ExemplarArrays, StatsArrays, VocabularyArrays
from neuroexplain.evidence import (
    Stats,
    VocabularyEntry,
)
from neuroexplain.formats._parquet_tables import PLACES, READINGS, read_table, reading
from neuroexplain.runs import Run
from neuroexplain.store.engine import Store
from neuroexplain.store.packing import pack_activations
from neuroexplain.store.units import load_segment_ids
from neuroexplain.units import KINDS, RECORD_LENGTH, Kind


def neurons_table(found: CollectedLayer, width: int) -> pa.Table:
    columns: dict[str, Any] = {
        "layer": np.full(width, found.layer, np.int32),
        "neuron": np.arange(width, dtype=np.int32),
    }
    if found.stats is not None:
        columns |= {name: getattr(found.stats, name) for name in Stats.__dataclass_fields__}
    if found.vocabulary is not None:
        columns |= {name: pa.array(list(getattr(found.vocabulary, name))) for name in READINGS}
    return pa.table(columns)


def exemplars_table(store: Store, run: Run, found: CollectedLayer, texts: pa.Array) -> pa.Table:
    parts = []
    for kind, x in found.exemplars.items():
        neuron, rank = x.counts_mask().nonzero()
        if not len(neuron):
            continue
        segments, starts = x.segments[neuron, rank], x.starts[neuron, rank]
        ids = load_segment_ids(store, run.id, set(segments.tolist()))
        tokens = np.stack(
            [ids[s][a : a + RECORD_LENGTH] for s, a in zip(segments.tolist(), starts.tolist(), strict=True)]
        )
        shown = pa.DictionaryArray.from_arrays(
            np.minimum(tokens.reshape(-1), len(texts) - 1).astype(np.int32), texts
        )
        columns: dict[str, Any] = {
            "layer": np.full(len(neuron), found.layer, np.int32),
            "neuron": neuron.astype(np.int32),
        }
        columns |= {
            "kind": [kind] * len(neuron),
            "rank": rank.astype(np.int32),
            "activation": x.peaks[neuron, rank],
        }
        columns |= {name: getattr(x, name)[neuron, rank] for name in PLACES}
        columns["tokens"] = pa.FixedSizeListArray.from_arrays(shown.cast(pa.string()), RECORD_LENGTH)
        columns["activations"] = pa.FixedSizeListArray.from_arrays(
            pa.array(x.activations[neuron, rank].reshape(-1)), RECORD_LENGTH
        )
        parts.append(pa.table(columns))
    return pa.concat_tables(parts) if parts else pa.table({"layer": pa.array([], pa.int32())})


def vocabulary_texts(entries: Sequence[VocabularyEntry]) -> pa.Array:
    """The vocabulary's texts by token id; U+FFFD where there is none, and at the end for greater ids."""
    texts = ["\ufffd"] * (max((entry.token_id for entry in entries), default=-1) + 2)
    for entry in entries:
        texts[entry.token_id] = entry.text
    return pa.array(texts)


def read_layer(
    folder: Path, layer: int, width: int, dtype: str, limits: Mapping[str, range], known: NDArray[np.int64]
) -> CollectedLayer:
    """A layer's neurons and exemplars, which are of `known` segments."""
    kinds: dict[Kind, ExemplarArrays] = {}
    file, neurons = read_table(folder, "neurons", limits, layer)
    with reading(file):
        if neurons.num_rows != width or np.any(np.diff(neurons["neuron"].to_numpy()) != 1):
            raise ValueError(f"it does not hold the neurons 0 to {width - 1} in order")
        columns = {
            name: neurons[name].to_numpy()
            for name in neurons.column_names
            if name in Stats.__dataclass_fields__
        }
        readings = {
            name: np.stack(neurons[name].to_numpy()) for name in READINGS if name in neurons.column_names
        }
        if len({array.shape for array in readings.values()}) > 1:
            raise ValueError("vocabulary readings are of different lengths")
        stats = StatsArrays(**columns) if columns else None
        vocabulary = VocabularyArrays(**readings) if readings else None
    file, exemplars = read_table(folder, "exemplars", limits, layer)
    with reading(file):
        all_kinds = np.array(exemplars["kind"].to_pylist(), "U8")
        if not set(all_kinds.tolist()) <= set(KINDS):
            raise ValueError(f"there are kinds other than {', '.join(KINDS)}")
        if not np.isin(exemplars["segments"].to_numpy(), known).all():
            raise ValueError("exemplars are of segments that are missing")
        if not exemplars.num_rows:
            raise ValueError("there are no exemplars")
        for kind in KINDS:
            rows = exemplars.filter(pa.array(all_kinds == kind))
            if rows.num_rows:
                kinds[kind] = _arrays(rows, width, dtype)
    return CollectedLayer(layer, kinds, stats, vocabulary)


def _arrays(rows: pa.Table, width: int, dtype: str) -> ExemplarArrays:
    """Exemplars of one kind. Raises ValueError where ranks have gaps, or the run's dtype does not hold an activation."""
    neuron, rank = rows["neuron"].to_numpy(), rows["rank"].to_numpy()
    counts = np.bincount(neuron, minlength=width)
    is_used = np.zeros((width, k := int(counts.max())), np.bool_)
    is_used[neuron[rank < k], rank[rank < k]] = True
    if not np.array_equal(is_used, np.arange(k) < counts[:, None]):
        raise ValueError("ranks of a neuron's exemplars are missing or there twice")
    placed: dict[str, Any] = {}
    for name, place_dtype in PLACES.items():
        placed[name] = np.full((width, k), -1 if name == "documents" else 0, place_dtype)
        placed[name][neuron, rank] = rows[name].to_numpy()
    peaks, activations = np.zeros((width, k), np.float32), np.zeros((width, k, RECORD_LENGTH), np.float32)
    peaks[neuron, rank] = rows["activation"].to_numpy()
    values = rows["activations"].combine_chunks().flatten().to_numpy()
    activations[neuron, rank] = values.reshape(-1, RECORD_LENGTH)
    for numbers in (peaks, activations):
        if not np.isfinite(numbers).all():
            raise ValueError("an activation is not finite")
        pack_activations(numbers, dtype)
    return ExemplarArrays(counts, **placed, peaks=peaks, activations=activations)
