"""Two parts of one collection -> the whole, layer by layer: equal to one pass over both (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from neuroexplain.arrays import (
    BackgroundArrays,
    CollectedLayer,
    ExemplarArrays,
    SampleArrays,
    StatsArrays,
)
from neuroexplain.collecting.running_best import EMPTY
from neuroexplain.collecting.top_k import hash_records, order_keys, rank_distinct
from neuroexplain.evidence import Split
from neuroexplain.exemplar_arrays import groups_of, join_records, take_columns, take_records
from neuroexplain.sampling import RANDOM_SHARES, SAMPLED_SHARES, random_key, share_out, uniform_of
from neuroexplain.stable_hash import stable_hash
from neuroexplain.units import PEAK_INDEX, RECORD_LENGTH, Kind


def merge_layers(
    a: CollectedLayer,
    b: CollectedLayer,
    token_ids: Mapping[int, NDArray[np.uint32]],
    *,
    splits: Mapping[int, Split | None] | None,
    top_k: int,
    n_random: int,
    n_sampled: int,
    n_background: int = 0,
    seed: int,
    n_tokens: tuple[int, int],
) -> CollectedLayer:
    """Join one layer of two parts that visited different segments.

    token_ids, splits: [128] and the split of every segment that a record comes from; splits is None for parts
    of earlier versions, whose random records were drawn over all segments. n_tokens: how many tokens each
    part's statistics rest on. Statistics are joined to rounding (Chan et al. 1979), records exactly.
    """
    exemplars: dict[Kind, ExemplarArrays] = {}
    for kind in dict.fromkeys((*a.exemplars, *b.exemplars)):
        joined, _ = join_records([part.exemplars[kind] for part in (a, b) if kind in part.exemplars])
        exemplars[kind] = (
            _merge_random(joined, n_random, splits, seed)
            if kind == "random"
            else _merge_top(joined, kind, token_ids, top_k)
        )
    counts = share_out(n_sampled, SAMPLED_SHARES)
    samples = {
        (side, split): _merge_sample([part.samples[side, split] for part in (a, b)], counts[split], seed)
        for side, split in groups_of(a.samples)
    }
    stats = _merge_stats(a.stats, b.stats, *n_tokens)
    background, histogram = None, None
    if a.background is not None and b.background is not None:
        n_report = share_out(n_random, RANDOM_SHARES)["report"]
        background = _merge_background(a.background, b.background, n_report + n_background, seed)
    if a.histogram is not None and b.histogram is not None:
        histogram = a.histogram + b.histogram
    return CollectedLayer(a.layer, exemplars, stats, a.vocabulary, samples, background, histogram, a.nearest)


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
    return take_records(replace(joined, peak_token_ids=peak_token_ids), order[:, :k].numpy(), counts)


def _merge_random(
    joined: ExemplarArrays, n_random: int, splits: Mapping[int, Split | None] | None, seed: int
) -> ExemplarArrays:
    """The records of the segments with the smallest hashes, of each split; the same for every unit."""
    segments = [int(segment) for segment in joined.segments[0]]
    order: list[int] = []  # columns
    if splits is None:
        columns = range(len(segments))
        order = sorted(columns, key=lambda n: (stable_hash(seed, segments[n]), segments[n]))[:n_random]
    else:
        for split, n_of_split in share_out(n_random, RANDOM_SHARES).items():
            own = [column for column, segment in enumerate(segments) if splits[segment] == split]
            order += sorted(own, key=lambda n: (random_key(seed, segments[n]), segments[n]))[:n_of_split]
    width, n = len(joined.counts), len(order)
    columns_of_all = np.broadcast_to(np.array(order, np.int64), (width, n))
    return take_records(joined, columns_of_all, np.full(width, n))


def _merge_sample(parts: Sequence[SampleArrays], n: int, seed: int) -> SampleArrays:
    """The n records with the largest size / uniform, and the largest value that is left as threshold."""
    joined, columns = join_records([part.records for part in parts])
    sizes = take_columns(np.concatenate([part.sizes for part in parts], axis=1), columns)
    used = joined.counts_mask()
    distinct, index = np.unique(joined.segments, return_inverse=True)
    uniforms = np.array([uniform_of(seed, segment) for segment in distinct.tolist()] or [1.0])
    ratios = np.where(used, sizes.astype(np.float64) / uniforms[index.reshape(joined.segments.shape)], 0.0)
    order = np.lexsort((joined.segments, -ratios), axis=1)  # unused ones, 0, come last
    beyond = take_columns(ratios, order[:, n : n + 1]).max(axis=1, initial=0.0)
    thresholds = np.max([beyond, *(part.thresholds for part in parts)], axis=0)
    kept = order[:, :n]
    counts = np.minimum(joined.counts, n)
    return SampleArrays(take_records(joined, kept, counts), take_columns(sizes, kept), thresholds)


def _merge_background(a: BackgroundArrays, b: BackgroundArrays, n: int, seed: int) -> BackgroundArrays:
    """The n segments with the smallest hashes, and what is active there."""
    segments = np.concatenate([a.segments, b.segments])
    order = sorted(range(len(segments)), key=lambda i: (random_key(seed, int(segments[i])), segments[i]))[:n]
    place_of = np.full(len(segments), -1, np.int64)
    place_of[order] = np.arange(len(order))
    units = np.concatenate([np.repeat(np.arange(len(part.counts)), part.counts) for part in (a, b)])
    records = place_of[np.concatenate([a.records, b.records.astype(np.int64) + len(a.segments)])]
    positions = np.concatenate([a.positions, b.positions])
    activations = np.concatenate([a.activations, b.activations])
    kept = np.lexsort((positions, records, units))
    kept = kept[records[kept] >= 0]
    return BackgroundArrays(
        segments[order],
        np.bincount(units[kept], minlength=len(a.counts)).astype(np.int64),
        records[kept].astype(np.uint16),
        positions[kept],
        activations[kept],
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
