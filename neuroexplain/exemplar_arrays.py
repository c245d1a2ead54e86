"""Arrays of a layer's records: chosen, joined, and put in the order in which ranks count (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.arrays import ExemplarArrays, SampleArrays
from neuroexplain.evidence import SPLITS, Split
from neuroexplain.units import RECORD_LENGTH, Side

FIELDS = ("segments", "starts", "documents", "token_offsets", "peaks", "activations")  # of ExemplarArrays
Draws = Mapping[tuple[Side, Split], SampleArrays]


def take_records(
    arrays: ExemplarArrays, columns: NDArray[np.int64], counts: NDArray[np.int64]
) -> ExemplarArrays:
    """Each unit's records of the columns [width, n], in this order, of which `counts` are used."""
    peaks = None if arrays.peak_token_ids is None else take_columns(arrays.peak_token_ids, columns)
    return ExemplarArrays(
        counts.astype(np.int64),
        **{name: take_columns(getattr(arrays, name), columns) for name in FIELDS},
        peak_token_ids=peaks,
    )


def take_columns(values: NDArray[Any], columns: NDArray[np.int64]) -> NDArray[Any]:
    """The columns [width, n] of each row of `values`, [width, k] or [width, k, ...]."""
    return np.take_along_axis(values, columns if values.ndim == 2 else columns[:, :, None], axis=1)


def join_records(parts: Sequence[ExemplarArrays]) -> tuple[ExemplarArrays, NDArray[np.int64]]:
    """All records of the parts for each unit, unused columns last, and the columns that they come from."""
    arrays = {name: np.concatenate([getattr(part, name) for part in parts], axis=1) for name in FIELDS}
    used = np.concatenate([part.counts_mask() for part in parts], axis=1)
    columns = np.argsort(~used, axis=1, kind="stable")
    counts = used.sum(axis=1)
    return take_records(ExemplarArrays(counts, **arrays), columns, counts), columns


def no_records(width: int) -> ExemplarArrays:
    """Arrays without a record, with one unused column."""
    fields: dict[str, Any] = {
        "segments": np.zeros((width, 1), np.uint32),
        "starts": np.zeros((width, 1), np.uint8),
        "documents": np.full((width, 1), -1, np.int32),
        "token_offsets": np.zeros((width, 1), np.int32),
        "peaks": np.zeros((width, 1), np.float32),
        "activations": np.zeros((width, 1, RECORD_LENGTH), np.float32),
    }
    return ExemplarArrays(np.zeros(width, np.int64), **fields)


def groups_of(samples: Draws) -> list[tuple[Side, Split]]:
    """The samples in the order of ranks: by side (positive, negative), then split."""
    sides: tuple[Side, ...] = ("positive", "negative")
    return [(side, split) for side in sides for split in SPLITS if (side, split) in samples]


def join_samples(samples: Draws) -> tuple[ExemplarArrays, NDArray[np.float32]]:
    """Each unit's sampled records in the order of ranks, and their sizes [width, k]."""
    parts = [samples[group] for group in groups_of(samples)]
    records, columns = join_records([part.records for part in parts])
    return records, take_columns(np.concatenate([part.sizes for part in parts], axis=1), columns)


def split_samples(
    records: ExemplarArrays,
    sizes: NDArray[np.float32],
    counts: Mapping[tuple[Side, Split], NDArray[np.int64]],
    thresholds: Mapping[tuple[Side, Split], NDArray[np.float64]],
) -> dict[tuple[Side, Split], SampleArrays]:
    """The inverse of join_samples. counts: the number of each unit's records, [width], in rank order."""
    samples = {}
    first = np.zeros(len(records.counts), np.int64)
    last_column = max(0, records.segments.shape[1] - 1)
    for group, own in counts.items():
        n = int(own.max(initial=0))
        columns = np.minimum(first[:, None] + np.arange(n), last_column)
        part = take_records(records, columns, own)
        own_sizes = np.where(part.counts_mask(), take_columns(sizes, columns), np.float32(0))
        samples[group] = SampleArrays(part, own_sizes, thresholds[group])
        first = first + own
    return samples
