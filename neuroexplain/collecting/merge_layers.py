"""Two parts of one collection -> the whole, layer by layer: equal to what one pass over both reads (pure)."""

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
from neuroexplain.units import PEAK_INDEX, Kind


def merge_layers(
    one: CollectedLayer,
    other: CollectedLayer,
    token_ids: Mapping[int, NDArray[np.uint32]],
    *,
    top_k: int,
    n_random: int,
    seed: int,
    n_tokens: tuple[int, int],
) -> CollectedLayer:
    """Join one layer of two parts that visited different segments.

    token_ids: [128] of every segment that an exemplar comes from. n_tokens: how many each part's statistics rest on; they are
    joined to rounding (Chan et al. 1979), exemplars and random records exactly.
    """
    kinds = dict.fromkeys((*one.exemplars, *other.exemplars))
    exemplars: dict[Kind, ExemplarArrays] = {}
    for kind in kinds:
        joined = _concatenate([part.exemplars[kind] for part in (one, other) if kind in part.exemplars])
        exemplars[kind] = (
            _draw(joined, n_random, seed) if kind == "random" else _rank(joined, kind, token_ids, top_k)
        )
    return CollectedLayer(
        one.layer, exemplars, _merge_stats(one.stats, other.stats, *n_tokens), one.vocabulary
    )


def _rank(
    joined: ExemplarArrays, kind: Kind, token_ids: Mapping[int, NDArray[np.uint32]], k: int
) -> ExemplarArrays:
    used = joined.counts_mask()
    sign = 1.0 if kind == "top" else -1.0
    keys = order_keys(
        torch.from_numpy(sign * joined.peaks), torch.from_numpy(joined.segments.astype(np.int64))
    )
    keys[torch.from_numpy(~used)] = EMPTY
    places = np.stack([joined.segments[used], joined.starts[used]], axis=1)
    distinct, back = np.unique(places, axis=0, return_inverse=True)
    hashes = torch.zeros(keys.shape, dtype=torch.int64)
    peak_token_ids = np.zeros(used.shape, np.uint32)
    if len(distinct):
        records = np.stack(
            [token_ids[int(segment)][start : start + 64] for segment, start in distinct]
        ).astype(np.int64)
        hashes[torch.from_numpy(used)] = hash_records(torch.from_numpy(records))[:, 0][
            torch.from_numpy(back.reshape(-1))
        ]
        peak_token_ids[used] = records[back.reshape(-1), PEAK_INDEX]
    ranked, order = rank_distinct(keys, hashes)
    counts = (ranked[:, :k] > EMPTY).sum(dim=1).numpy()
    return _take(replace(joined, peak_token_ids=peak_token_ids), order[:, :k].numpy(), counts)


def _draw(joined: ExemplarArrays, n_random: int, seed: int) -> ExemplarArrays:
    """The segments with the smallest hashes; they are the same for every neuron."""
    segments = [int(segment) for segment in joined.segments[0]]
    order = sorted(
        range(len(segments)), key=lambda place: (stable_hash(seed, segments[place]), segments[place])
    )[:n_random]
    rows = np.broadcast_to(np.array(order), (len(joined.counts), len(order)))
    return _take(joined, rows, np.full(len(joined.counts), len(order)))


def _concatenate(parts: list[ExemplarArrays]) -> ExemplarArrays:
    names = ("segments", "starts", "documents", "token_offsets", "peaks", "activations")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts], axis=1) for name in names}
    used = np.concatenate([part.counts_mask() for part in parts], axis=1)
    order = np.argsort(~used, axis=1, kind="stable")  # used places first
    return _take(ExemplarArrays(used.sum(axis=1), **arrays), order, used.sum(axis=1))


def _take(arrays: ExemplarArrays, order: NDArray[np.int64], counts: NDArray[np.int64]) -> ExemplarArrays:
    def pick(values: NDArray[Any]) -> NDArray[Any]:
        return np.take_along_axis(values, order if values.ndim == 2 else order[:, :, None], axis=1)

    names = ("segments", "starts", "documents", "token_offsets", "peaks", "activations")
    peaks = None if arrays.peak_token_ids is None else pick(arrays.peak_token_ids)
    return ExemplarArrays(
        counts.astype(np.int64), **{name: pick(getattr(arrays, name)) for name in names}, peak_token_ids=peaks
    )


def _merge_stats(
    one: StatsArrays | None, other: StatsArrays | None, n_one: int, n_other: int
) -> StatsArrays | None:
    if one is None or other is None:
        return None
    n = n_one + n_other
    away = other.mean - one.mean
    squares = one.std**2 * n_one + other.std**2 * n_other + away**2 * (n_one * n_other / n)
    return StatsArrays(
        mean=one.mean + away * (n_other / n),
        std=np.sqrt(squares / n),
        min=np.minimum(one.min, other.min),
        max=np.maximum(one.max, other.max),
        share_positive=(one.share_positive * n_one + other.share_positive * n_other) / n,
    )
