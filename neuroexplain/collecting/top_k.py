"""The running top k, or bottom k, of every unit of a layer: exact, with ties and duplicates (pure).

Order. Candidates are ranked by (activation, descending; segment, ascending). Both go into one int64 key, so
no two candidates are equal, and sorting has no ties to break on any device. A segment offers its best
position only, so positions are never compared between candidates.

Algorithm: running_best.py.

Duplicates. Records with the same 64 token ids are known by a 64-bit hash of them; the ids are not kept.

Cost. For every activation at an allowed position one comparison, for every segment and unit one more, and for
candidates above the k-th key a write. Those get rarer: after n segments, a segment is among a unit's k best
with probability k / n. SmolLM2 on two cores, 32 segments a batch, after 1,000 segments: 0.08 of 3.0 s a
batch.

Rejected (measurements in docs/decisions.md and docs/benchmarks.md). One index for each of a window's 64
values in place of a view (`unfold`): 15% slower, 30% at the beginning. Negating all activations for the
bottom k: it reads and writes all of them once more. Comparing activations first and computing keys of those
that pass only, and freeing slots of half-full units too: no faster.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuroexplain.collecting.running_best import EMPTY, RunningBest
from neuroexplain.units import PEAK_INDEX, RECORD_LENGTH

_SEGMENT_BITS = 32


class TopK(RunningBest):
    """Each unit's k best records: a row is a unit."""

    tensors = (*RunningBest.tensors, "starts", "hashes")

    def __init__(
        self,
        width: int,
        k: int,
        dtype: torch.dtype,
        device: torch.device,
        windows_device: torch.device | None = None,
    ) -> None:
        super().__init__(width, (k,), dtype, device, windows_device)
        self.k = k
        self.starts = torch.zeros(self.keys.shape, dtype=torch.uint8, device=device)  # of records in segments
        self.hashes = torch.zeros_like(self.keys)  # of the records' 64 token ids

    def rank(self, rows: Int[Tensor, "n"] | slice) -> tuple[Int[Tensor, "n slots"], Int[Tensor, "n slots"]]:
        return rank_distinct(self.keys[rows], self.hashes[rows])

    def best(self) -> tuple[Int[Tensor, "width k"], Int[Tensor, "width k"]]:
        """(keys, slots) of each unit's k best distinct records, best first; EMPTY keys come last."""
        ranked, order = self.rank(slice(None))
        return ranked[:, : self.k], order[:, : self.k]


@dataclass(frozen=True)
class Offer:
    """What a batch of segments offers to the units of every layer alike."""

    segments: Int[Tensor, "batch"]
    hashes: Int[Tensor, "batch starts"]  # of the 64 token ids from every start
    positions: range  # which tokens may be peaks
    allowed: Bool[Tensor, "batch n_positions"] | None  # which of them; None: all
    barred: Int[Tensor, "n"] | None  # the rows in which a position is not allowed

    @classmethod
    def of(
        cls,
        token_ids: Int[Tensor, "batch seq"],
        segments: Int[Tensor, "batch"],
        positions: range,
        allowed: Bool[Tensor, "batch n_positions"] | None = None,
    ) -> Offer:
        """The offer of a batch; without `allowed`, every position may be a peak."""
        barred = None if allowed is None else (~allowed).any(dim=1).nonzero()[:, 0]
        if barred is None or not len(barred):
            return cls(segments, hash_records(token_ids), positions, None, None)
        return cls(segments, hash_records(token_ids), positions, allowed, barred)


def segments_of(keys: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """The segment numbers in keys, int64; without meaning in EMPTY ones."""
    return (1 << _SEGMENT_BITS) - 1 - (keys & ((1 << _SEGMENT_BITS) - 1))


def order_keys(activations: Float[Tensor, "*n"], segments: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """int64 keys: the higher activation has the larger key, and of equal ones the smaller segment.

    The high half is the float32's bits made monotone (-0.0 counts as 0.0); the low half counts segments down
    from 2^32 - 1.
    """
    bits = (activations.float() + 0.0).view(torch.int32)
    monotone = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (monotone.long() << _SEGMENT_BITS) + ((1 << _SEGMENT_BITS) - 1 - segments)


def hash_records(token_ids: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch starts"]:
    """A 64-bit multilinear hash of the 64 token ids from every start.

    Equal ids have equal hashes; others have the same hash with a probability of about 2^-64.
    """
    generator = torch.Generator().manual_seed(2023)
    factors = torch.randint(-(1 << 63), (1 << 63) - 1, (RECORD_LENGTH,), generator=generator) | 1
    return ((token_ids.long() + 1).unfold(1, RECORD_LENGTH, 1) * factors.to(token_ids.device)).sum(-1)


def fold_top_k(state: TopK, acts: Float[Tensor, "batch seq width"], offer: Offer, *, lowest: bool) -> None:
    """Fold one batch of segments into the state, in place: the highest activations, or the lowest.

    A segment's candidate is its largest (lowest: smallest) activation at one of the positions, the first of
    equals. A segment without an allowed position offers none. Of records with the same hash only the first in
    the order is kept.
    """
    peaks = _peaks(acts, offer, lowest)  # [batch, width]
    keys = order_keys(-peaks if lowest else peaks, offer.segments[:, None].expand_as(peaks))
    if offer.allowed is not None:
        keys = keys.masked_fill(~offer.allowed.any(dim=1)[:, None], EMPTY)
    offered = acts[:, offer.positions.start : offer.positions.stop].transpose(1, 2)
    records = acts.unfold(1, RECORD_LENGTH, 1)  # [batch, starts, width, record], a view
    units = torch.arange(keys.shape[1], device=keys.device).expand_as(keys)
    for row, unit, slot in state.admit(keys, units):
        at_peak = offered[row, unit] == peaks[row, unit][:, None]  # [n_admitted, n_positions]
        if offer.allowed is not None:
            at_peak &= offer.allowed[row]
        starts = at_peak.to(torch.uint8).argmax(dim=1) + (offer.positions.start - PEAK_INDEX)
        state.starts[unit, slot] = starts.to(torch.uint8)
        state.hashes[unit, slot] = offer.hashes[row, starts]
        state.write_windows(unit, slot, records[row, starts, unit])


def _peaks(
    acts: Float[Tensor, "batch seq width"], offer: Offer, lowest: bool
) -> Float[Tensor, "batch width"]:
    """Each segment's largest (lowest: smallest) activation at allowed positions; infinite without one."""
    best, worst = (torch.amin, torch.inf) if lowest else (torch.amax, -torch.inf)
    offered = acts[:, offer.positions.start : offer.positions.stop]
    peaks = best(offered, dim=1)
    if offer.barred is not None:
        assert offer.allowed is not None
        barred = ~offer.allowed[offer.barred][:, :, None]
        peaks[offer.barred] = best(offered[offer.barred].masked_fill(barred, worst), dim=1)
    return peaks


def rank_distinct(
    keys: Int[Tensor, "n slots"], hashes: Int[Tensor, "n slots"]
) -> tuple[Int[Tensor, "n slots"], Int[Tensor, "n slots"]]:
    """Each row's keys, best first, and their slots; of equal hashes all keys but the largest become EMPTY."""
    ranked, order = keys.sort(dim=1, descending=True)
    used = ranked > EMPTY
    ranked_hashes = hashes.gather(1, order)
    by_hash = ranked_hashes.argsort(dim=1, stable=True)  # equal hashes side by side, the best of them first
    sorted_hashes = ranked_hashes.gather(1, by_hash)
    repeats = torch.zeros_like(used)
    repeats[:, 1:] = sorted_hashes[:, 1:] == sorted_hashes[:, :-1]
    repeats &= used.gather(1, by_hash)
    if not bool(repeats.any()):
        return ranked, order
    ranked = ranked.masked_fill(torch.zeros_like(repeats).scatter_(1, by_hash, repeats), EMPTY)
    ranked, again = ranked.sort(dim=1, descending=True)
    return ranked, order.gather(1, again)
