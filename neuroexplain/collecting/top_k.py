"""The running top k, or bottom k, of every neuron of a layer: exact, ties and duplicates included (pure).

Candidates are ranked by (activation, descending; segment, ascending). Both go into one integer key, so the order is total and
`torch.topk` meets no ties. A segment offers its best position only, so the position never decides between candidates.

A candidate that beats a neuron's k-th is written into a free place and stays there. Only when a neuron has no free place left
are its keys sorted, duplicates and all beyond the k best dropped, and their places freed; windows are never moved. So they can
lie in the host's memory while all else is on a GPU: they are written once and read at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt
from torch import Tensor

from neuroexplain.units import PEAK_INDEX, RECORD_LENGTH

EMPTY = torch.iinfo(torch.int64).min  # the key of an unused place: below every candidate's
SPARE = 16  # places of each neuron beyond k
_SEGMENT_BITS = 32


@dataclass
class TopK:
    """Each neuron's records so far, in no order: the k best are among them."""

    k: int
    keys: Int[Tensor, "width places"]  # int64, see order_keys; EMPTY where unused
    starts: UInt[Tensor, "width places"]  # uint8, the record's first token in its segment
    hashes: Int[Tensor, "width places"]  # int64, of the record's 64 token ids
    windows: Float[
        Tensor, "width places record"
    ]  # the record's activations; 9 of 10 bytes, and on a device of its own
    free: Int[Tensor, "width spare"]  # int16, places that the next candidates take, the last one first
    n_free: Int[Tensor, "width"]
    least: Int[Tensor, "width"]  # the k-th key when last sorted: a candidate must be above it

    @classmethod
    def empty(
        cls,
        width: int,
        k: int,
        dtype: torch.dtype,
        device: torch.device,
        windows_device: torch.device | None = None,
    ) -> TopK:
        """A state without records. The windows lie on `windows_device`, on `device` unless told."""
        places = k + SPARE
        return cls(
            k,
            torch.full((width, places), EMPTY, dtype=torch.int64, device=device),
            torch.zeros((width, places), dtype=torch.uint8, device=device),
            torch.zeros((width, places), dtype=torch.int64, device=device),
            torch.zeros((width, places, RECORD_LENGTH), dtype=dtype, device=windows_device or device),
            torch.arange(k, places, dtype=torch.int16, device=device).expand(width, SPARE).contiguous(),
            torch.full((width,), SPARE, dtype=torch.int64, device=device),
            torch.full((width,), EMPTY, dtype=torch.int64, device=device),
        )

    def narrow(self, units: slice) -> TopK:
        """The state of some units. It shares memory with this one, so what is folded into it is folded into this one."""
        if (units.start, units.stop) == (0, len(self.keys)):
            return self
        tensors = ("keys", "starts", "hashes", "windows", "free", "n_free", "least")
        return TopK(self.k, *(getattr(self, name)[units] for name in tensors))

    def make_room(self, neurons: Int[Tensor, "n"]) -> None:
        """Keep the k best distinct records of these neurons and free all other places."""
        ranked, order = rank_distinct(self.keys[neurons], self.hashes[neurons])
        ranked[:, self.k :] = EMPTY
        self.keys[neurons] = torch.empty_like(ranked).scatter_(1, order, ranked)
        self.free[neurons] = order[:, self.k :].to(self.free.dtype)
        self.n_free[neurons] = SPARE
        self.least[neurons] = ranked[:, self.k - 1]

    def best(self) -> tuple[Int[Tensor, "width k"], Int[Tensor, "width k"]]:
        """(keys, places) of each neuron's k best distinct records, best first; the key is EMPTY where there are fewer."""
        ranked, order = rank_distinct(self.keys, self.hashes)
        return ranked[:, : self.k], order[:, : self.k]


@dataclass(frozen=True)
class Offer:
    """What a batch of segments offers to the neurons of every layer alike."""

    segments: Int[Tensor, "batch"]
    hashes: Int[Tensor, "batch starts"]  # of the 64 token ids from every start
    positions: range  # which tokens may be peaks
    allowed: Bool[Tensor, "batch n_positions"] | None  # which of them; None: all
    barred: Int[Tensor, "n"] | None  # the rows where some are not allowed

    @classmethod
    def of(
        cls,
        token_ids: Int[Tensor, "batch seq"],
        segments: Int[Tensor, "batch"],
        positions: range,
        allowed: Bool[Tensor, "batch n_positions"] | None = None,
    ) -> Offer:
        barred = None if allowed is None else (~allowed).any(dim=1).nonzero()[:, 0]
        if barred is None or not len(barred):
            return cls(segments, hash_records(token_ids), positions, None, None)
        return cls(segments, hash_records(token_ids), positions, allowed, barred)


def segments_of(keys: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """The segment numbers in keys, int64; without meaning in EMPTY ones."""
    return (1 << _SEGMENT_BITS) - 1 - (keys & ((1 << _SEGMENT_BITS) - 1))


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
    state: TopK, acts: Float[Tensor, "batch seq width"], offer: Offer, *, lowest: bool = False
) -> None:
    """Fold one batch of segments into the state, in place: the highest activations, or the lowest.

    A segment's candidate is its largest (lowest: smallest) activation at one of the positions, the first of equals; a segment
    without an allowed one offers nothing. Of records with the same hash only the first in the order is kept. A neuron's
    candidates that are not above its k-th key are never looked at.
    """
    peaks = _peaks(acts, offer, lowest)  # [batch, width]
    keys = order_keys(-peaks if lowest else peaks, offer.segments[:, None].expand_as(peaks))
    if offer.allowed is not None:
        keys = keys.masked_fill(~offer.allowed.any(dim=1)[:, None], EMPTY)
    most = int((keys > state.least).sum(dim=0).max())  # candidates of one neuron: here a GPU is waited for
    if most == 0:
        return
    offered = acts[:, offer.positions.start : offer.positions.stop].transpose(1, 2)
    records = acts.unfold(1, RECORD_LENGTH, 1)  # [batch, starts, width, record], a view
    home = state.windows.device
    # A chunk of SPARE segments always finds room; later on whole batches do.
    step = len(acts) if most <= SPARE else SPARE
    for first in range(0, len(acts), step):
        some = slice(first, first + step)
        above = keys[some] > state.least
        crowded = (above.sum(dim=0) > state.n_free).nonzero()[:, 0]
        if len(crowded):
            state.make_room(crowded)
            above &= keys[some] > state.least
        row, neuron = above.nonzero(as_tuple=True)
        if not len(row):
            continue
        place = state.free[neuron, state.n_free[neuron] - above.cumsum(dim=0)[row, neuron]].long()
        state.n_free -= above.sum(dim=0)
        row = row + first
        at_peak = offered[row, neuron] == peaks[row, neuron][:, None]  # [n_above, n_positions]
        if offer.allowed is not None:
            at_peak &= offer.allowed[row]
        starts = at_peak.to(torch.uint8).argmax(dim=1) + (offer.positions.start - PEAK_INDEX)
        state.keys[neuron, place] = keys[row, neuron]
        state.starts[neuron, place] = starts.to(torch.uint8)
        state.hashes[neuron, place] = offer.hashes[row, starts]
        state.windows[neuron.to(home), place.to(home)] = records[row, starts, neuron].to(home)


def _peaks(
    acts: Float[Tensor, "batch seq width"], offer: Offer, lowest: bool
) -> Float[Tensor, "batch width"]:
    """Each segment's largest (smallest) activation at the allowed positions; infinite where there is none."""
    best, worst = (torch.amin, torch.inf) if lowest else (torch.amax, -torch.inf)
    offered = acts[:, offer.positions.start : offer.positions.stop]
    peaks = best(offered, dim=1)
    if offer.allowed is not None and offer.barred is not None:
        barred = ~offer.allowed[offer.barred][:, :, None]
        peaks[offer.barred] = best(offered[offer.barred].masked_fill(barred, worst), dim=1)
    return peaks


def rank_distinct(
    keys: Int[Tensor, "n places"], hashes: Int[Tensor, "n places"]
) -> tuple[Int[Tensor, "n places"], Int[Tensor, "n places"]]:
    """Each row's keys, best first, and their places; of keys with equal hashes all but the largest count as EMPTY."""
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
