"""Two parts of one collection -> the whole, layer by layer: equal to one pass over both (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neuroexplain.arrays import CollectedLayer, ExemplarArrays, StatsArrays
from neuroexplain.collecting.top_k import EMPTY, hash_records, order_keys, rank_distinct
from neuroexplain.stable_hash import stable_hash
from neuroexplain.units import PEAK_INDEX, RECORD_LENGTH, Kind

FIELDS = ("segments", "starts", "documents", "token_offsets", "peaks", "activations")  # of ExemplarArrays


def merge_layers(
    a: CollectedLayer,
    b: CollectedLayer,
    token_ids: Mapping[int, NDArray[np.uint32]],
    *,
    top_k: int,
    n_random: int,
    seed: int,
    n_tokens: tuple[int, int],
) -> CollectedLayer:
    """Join one layer of two parts that visited different segments.

    token_ids: [128] of every segment that a record comes from. n_tokens: how many tokens each part's
    statistics rest on. Statistics are joined to rounding (Chan et al. 1979), records exactly.
    """
    exemplars: dict[Kind, ExemplarArrays] = {}
    for kind in dict.fromkeys((*a.exemplars, *b.exemplars)):
        joined = _concatenate([part.exemplars[kind] for part in (a, b) if kind in part.exemplars])
        exemplars[kind] = (
            _merge_random(joined, n_random, seed)
            if kind == "random"
            else _merge_top(joined, kind, token_ids, top_k)
        )
    return CollectedLayer(a.layer, exemplars, _merge_stats(a.stats, b.stats, *n_tokens), a.vocabulary)


def _merge_top(
    joined: ExemplarArrays, kind: Kind, token_ids: Mapping[int, NDArray[np.uint32]], k: int
) -> ExemplarArrays:
    """Each unit's k best distinct records, in the order of `top_k`."""
    used = joined.counts_mask()
    sign = 1.0 if kind == "top" else -1.0
    keys = order_keys(
        torch.from_numpy(sign * joined.peaks), torch.from_numpy(joined.segments.astype(np.int64))
    )
    keys[torch.from_numpy(~used)] = EMPTY
    spans = np.stack([joined.segments[used], joined.starts[used]], axis=1)  # [n_used, 2]
    distinct, index = np.unique(spans, axis=0, return_inverse=True)
    index = index.reshape(-1)  # [n_used], of each record in `distinct`
    hashes = torch.zeros(keys.shape, dtype=torch.int64)
    peak_token_ids = np.zeros(used.shape, np.uint32)
    if len(distinct):
        records = np.stack(
            [token_ids[int(segment)][start : start + RECORD_LENGTH] for segment, start in distinct]
        ).astype(np.int64)
        record_hashes = hash_records(torch.from_numpy(records))[:, 0]
        hashes[torch.from_numpy(used)] = record_hashes[torch.from_numpy(index)]
        peak_token_ids[used] = records[index, PEAK_INDEX]
    ranked, order = rank_distinct(keys, hashes)
    counts = (ranked[:, :k] > EMPTY).sum(dim=1).numpy()
    return _take(replace(joined, peak_token_ids=peak_token_ids), order[:, :k].numpy(), counts)


def _merge_random(joined: ExemplarArrays, n_random: int, seed: int) -> ExemplarArrays:
    """The records of the segments with the smallest hashes, the same segments for every unit."""
    segments = [int(segment) for segment in joined.segments[0]]
    order = sorted(
        range(len(segments)), key=lambda column: (stable_hash(seed, segments[column]), segments[column])
    )[:n_random]
    columns = np.broadcast_to(np.array(order), (len(joined.counts), len(order)))
    return _take(joined, columns, np.full(len(joined.counts), len(order)))


def _concatenate(parts: list[ExemplarArrays]) -> ExemplarArrays:
    """All records of the parts for each unit, unused columns last."""
    arrays = {name: np.concatenate([getattr(part, name) for part in parts], axis=1) for name in FIELDS}
    used = np.concatenate([part.counts_mask() for part in parts], axis=1)
    order = np.argsort(~used, axis=1, kind="stable")
    return _take(ExemplarArrays(used.sum(axis=1), **arrays), order, used.sum(axis=1))


def _take(arrays: ExemplarArrays, columns: NDArray[np.int64], counts: NDArray[np.int64]) -> ExemplarArrays:
    """Each unit's records of the columns [width, n], in this order, of which `counts` are used."""

    def pick(values: NDArray[Any]) -> NDArray[Any]:
        return np.take_along_axis(values, columns if values.ndim == 2 else columns[:, :, None], axis=1)

    peaks = None if arrays.peak_token_ids is None else pick(arrays.peak_token_ids)
    return ExemplarArrays(
        counts.astype(np.int64),
        **{name: pick(getattr(arrays, name)) for name in FIELDS},
        peak_token_ids=peaks,
    )


def _merge_stats(a: StatsArrays | None, b: StatsArrays | None, n_a: int, n_b: int) -> StatsArrays | None:
    if a is None or b is None:
        return None
    n = n_a + n_b
    shift = b.mean - a.mean
    squares = a.std**2 * n_a + b.std**2 * n_b + shift**2 * (n_a * n_b / n)
    return StatsArrays(
        mean=a.mean + shift * (n_b / n),
        std=np.sqrt(squares / n),
        min=np.minimum(a.min, b.min),
        max=np.maximum(a.max, b.max),
        share_positive=(a.share_positive * n_a + b.share_positive * n_b) / n,
    )
