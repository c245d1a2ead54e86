"""The running top k of every neuron of a layer: exact, ties and duplicates included (pure).

Candidates are ranked by (activation, descending; segment, ascending). Both go into one integer key, so the order is total and
`torch.topk` meets no ties. A segment offers its best position only, so the position never decides between candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuroexplain.types import PEAK_INDEX, RECORD_LENGTH

EMPTY = torch.iinfo(torch.int64).min  # the key of an unused place: below every candidate's
_SEGMENT_BITS = 32


@dataclass
class TopK:
    """The k best records of each neuron so far, best first."""

    keys: Int[Tensor, "d_mlp k"]  # int64, see order_keys; EMPTY where unused
    starts: Int[Tensor, "d_mlp k"]  # uint8, the record's first token in its segment
    hashes: Int[Tensor, "d_mlp k"]  # int64, of the record's 64 token ids
    windows: Float[Tensor, "d_mlp k record"]  # the record's activations

    @classmethod
    def empty(cls, d_mlp: int, k: int, dtype: torch.dtype, device: torch.device) -> TopK:
        return cls(
            torch.full((d_mlp, k), EMPTY, dtype=torch.int64, device=device),
            torch.zeros((d_mlp, k), dtype=torch.uint8, device=device),
            torch.zeros((d_mlp, k), dtype=torch.int64, device=device),
            torch.zeros((d_mlp, k, RECORD_LENGTH), dtype=dtype, device=device),
        )

    def segments(self) -> Int[Tensor, "d_mlp k"]:
        """Segment numbers, int64; without meaning where unused."""
        return (1 << _SEGMENT_BITS) - 1 - (self.keys & ((1 << _SEGMENT_BITS) - 1))


def order_keys(activations: Float[Tensor, "*n"], segments: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """int64 keys that sort as (activation, then segment descending), so the largest key is the first in the order.

    The high half is the float32's bits made monotone (-0.0 counts as 0.0); the low half counts segments down from 2^32 - 1.
    """
    bits = (activations.float() + 0.0).view(torch.int32)
    monotone = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (monotone.long() << _SEGMENT_BITS) + ((1 << _SEGMENT_BITS) - 1 - segments)


def hash_records(token_ids: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch starts"]:
    """A 64-bit multilinear hash of the 64 token ids from every start: equal for equal ids; else equal once in 2^64."""
    generator = torch.Generator().manual_seed(2023)
    factors = torch.randint(-(1 << 63), (1 << 63) - 1, (RECORD_LENGTH,), generator=generator) | 1
    return ((token_ids.long() + 1).unfold(1, RECORD_LENGTH, 1) * factors.to(token_ids.device)).sum(-1)


def fold_top_k(
    state: TopK,
    acts: Float[Tensor, "batch seq d_mlp"],
    segments: Int[Tensor, "batch"],
    hashes: Int[Tensor, "batch starts"],
    positions: range,
    allowed: Bool[Tensor, "batch n_positions"] | None = None,
) -> None:
    """Fold one batch of segments into the state, in place.

    A segment's candidate is its largest activation at one of `positions`, the first of equals; `allowed` bars single ones,
    and a segment without any offers nothing. Of records with the same hash only the first in the order is kept. A neuron's
    candidates below its k-th key are never looked at.
    """
    offered = acts[:, positions.start : positions.stop]
    if allowed is not None:
        offered = offered.masked_fill(~allowed[:, :, None], -torch.inf)
    peaks, at = offered.max(dim=1)  # [batch, d_mlp]
    keys = order_keys(peaks, segments[:, None].expand_as(peaks))
    if allowed is not None:
        keys = keys.masked_fill(~allowed.any(dim=1)[:, None], EMPTY)
    changed = (keys > state.keys[:, -1]).any(dim=0).nonzero()[:, 0]
    if not len(changed):
        return
    starts = (at[:, changed] + (positions.start - PEAK_INDEX)).T  # [changed, batch]
    batch = torch.arange(len(acts), device=acts.device)
    new_hashes = hashes[batch, starts]
    pool_keys = torch.cat([state.keys[changed], keys[:, changed].T], dim=1)  # [changed, k + batch]
    pool_hashes = torch.cat([state.hashes[changed], new_hashes], dim=1)
    pool_starts = torch.cat([state.starts[changed], starts.to(torch.uint8)], dim=1)
    kept_keys, kept = keep_distinct(pool_keys, pool_hashes, state.keys.shape[1])
    k = state.keys.shape[1]
    kept_starts = pool_starts.gather(1, kept)
    old = kept.clamp(max=k - 1)
    windows = state.windows[changed].gather(1, old[:, :, None].expand(-1, -1, RECORD_LENGTH))
    row, place = ((kept >= k) & (kept_keys > EMPTY)).nonzero(as_tuple=True)
    tokens = kept_starts[row, place].long()[:, None] + torch.arange(RECORD_LENGTH, device=acts.device)
    windows[row, place] = acts[(kept[row, place] - k)[:, None], tokens, changed[row][:, None]].to(windows.dtype)
    state.keys[changed] = kept_keys
    state.starts[changed] = kept_starts
    state.hashes[changed] = pool_hashes.gather(1, kept)
    state.windows[changed] = windows


def merge_top_k(one: TopK, other: TopK) -> TopK:
    """The top k of two parts that saw different segments: equal to what one pass over both finds."""
    k = one.keys.shape[1]
    keys, kept = keep_distinct(torch.cat([one.keys, other.keys], 1), torch.cat([one.hashes, other.hashes], 1), k)
    pick = kept[:, :, None].expand(-1, -1, RECORD_LENGTH)
    return TopK(
        keys,
        torch.cat([one.starts, other.starts], 1).gather(1, kept),
        torch.cat([one.hashes, other.hashes], 1).gather(1, kept),
        torch.cat([one.windows, other.windows], 1).gather(1, pick),
    )


def keep_distinct(
    keys: Int[Tensor, "n pool"], hashes: Int[Tensor, "n pool"], k: int
) -> tuple[Int[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k largest keys of each row, of those with equal hashes only the largest: (keys, places in the pool), best first."""
    order = keys.argsort(dim=1, descending=True)
    ranked = keys.gather(1, order)
    by_hash = hashes.gather(1, order).argsort(dim=1, stable=True)  # equal hashes side by side, the best of them first
    sorted_hashes = hashes.gather(1, order).gather(1, by_hash)
    repeats = torch.zeros_like(keys, dtype=torch.bool)
    repeats[:, 1:] = sorted_hashes[:, 1:] == sorted_hashes[:, :-1]
    is_repeat = torch.zeros_like(repeats).scatter_(1, by_hash, repeats)
    ranked = ranked.masked_fill(is_repeat & (ranked > EMPTY), EMPTY)
    best, places = ranked.topk(k, dim=1)
    return best, order.gather(1, places)
