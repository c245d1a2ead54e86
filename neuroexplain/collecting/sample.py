"""The running samples of every unit of a layer: records drawn with probability proportional to size (pure).

Draw. The size of a segment for a side of a unit is the sum of relu(a)^2 (negative side: relu(-a)^2) over its
scored half. Of each split the n segments with the largest size / u are kept, u by a hash of the segment, and
the next largest as threshold: priority sampling (sampling.py). Ties go to the smaller segment. Duplicates are
kept, since they are part of the corpus.

Algorithm. One more running best (running_best.py), whose keys are the bits of size / u in float64: for values
above 0 they are ordered like the values. A row is a unit's share of a split, so that one fold serves all
three splits, and a GPU is waited for as often as for the top k.

Cost. A quarter of the activations is read and squared. As with the top k, a segment becomes a candidate with
a probability of n / (segments of the split so far), whatever the sizes are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from neuroexplain.collecting.running_best import EMPTY, RunningBest
from neuroexplain.evidence import SPLITS, Split
from neuroexplain.runtime.tuning import CACHED_ACTIVATIONS
from neuroexplain.sampling import half_of, uniform_of
from neuroexplain.units import CROP_LENGTH, RANDOM_START, RECORD_LENGTH, Side

# Spare slots of a row on a GPU. Three rows a unit and side take most of the memory of collecting: for
# Llama-3-8B 6.7 GB with 16 spare slots, 4.7 GB with 6. On a CPU 16 are faster (0.09 in place of 0.14 s of a
# batch's 6 s of processor time).
SPARE_ON_GPU = 6


@dataclass(frozen=True)
class SampleOffer:
    """What a batch of segments offers to the samples of every layer alike."""

    segments: Int[Tensor, "batch"]
    splits: Int[Tensor, "batch"]  # places in SPLITS; without meaning where has_split is False
    has_split: Bool[Tensor, "batch"]
    halves: Int[Tensor, "batch"]  # 0 or 1, see sampling.half_of
    uniforms: Float[Tensor, "batch"]  # float64, in (0, 1]
    barred: Bool[Tensor, "batch crop"] | None  # tokens of scored halves that do not count; None: all count

    @classmethod
    def of(
        cls,
        segments: Sequence[int],
        splits: np.ndarray,
        seed: int,
        device: torch.device,
        barred: Bool[Tensor, "batch record"] | None = None,
    ) -> SampleOffer:
        """The offer of a batch. barred: tokens 64..127 that do not count, on the device; None: all count."""
        codes = torch.from_numpy(splits.astype(np.int64)).to(device)
        halves = torch.tensor([half_of(seed, segment) for segment in segments], device=device)
        if barred is not None:
            barred = take_half(barred[:, :, None], halves)[:, :, 0]
            barred = barred if bool(barred.any()) else None
        return cls(
            torch.tensor(segments, dtype=torch.int64, device=device),
            codes.clamp(min=0),
            codes >= 0,
            halves,
            torch.tensor([uniform_of(seed, s) for s in segments], dtype=torch.float64, device=device),
            barred,
        )


class Sample(RunningBest):
    """One side's samples of a layer's units. Row 3 * unit + split holds the unit's share of the split."""

    tensors = (*RunningBest.tensors, "segments", "sizes")

    def __init__(
        self,
        width: int,
        counts: Mapping[Split, int],
        dtype: torch.dtype,
        device: torch.device,
        windows_device: torch.device | None = None,
    ) -> None:
        # One more than is drawn: the last one's key is the threshold.
        if device.type != "cpu":
            self.spare = SPARE_ON_GPU
        super().__init__(
            len(SPLITS) * width, tuple(counts[split] + 1 for split in SPLITS), dtype, device, windows_device
        )
        self.counts = dict(counts)
        self.segments = torch.zeros_like(self.keys)
        self.sizes = torch.zeros(self.keys.shape, dtype=torch.float32, device=device)

    def narrow_to_units(self, units: slice) -> Sample:
        """The state of some units: see narrow."""
        return self.narrow(slice(len(SPLITS) * units.start, len(SPLITS) * units.stop))

    def rank(self, rows: Int[Tensor, "n"] | slice) -> tuple[Int[Tensor, "n slots"], Int[Tensor, "n slots"]]:
        keys, segments = self.keys[rows], self.segments[rows]
        ranked, order = keys.sort(dim=1, descending=True)
        is_tied = (ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] > EMPTY)
        if not bool(is_tied.any()):
            return ranked, order
        by_segment = segments.argsort(dim=1)
        ranked, again = keys.gather(1, by_segment).sort(dim=1, descending=True, stable=True)
        return ranked, by_segment.gather(1, again)

    def least_above(self, last: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """One less: a candidate with an equal key is admitted, since its segment may be smaller."""
        return torch.where(last > EMPTY, last - 1, last)


def fold_sample(
    state: Sample,
    acts: Float[Tensor, "batch seq width"],
    sizes: Float[Tensor, "batch width"],
    offer: SampleOffer,
) -> None:
    """Fold one batch of segments, whose sizes for this side are given, into the state, in place."""
    keys = (sizes.double() / offer.uniforms[:, None]).view(torch.int64)
    keys = keys.masked_fill((sizes <= 0) | ~offer.has_split[:, None], EMPTY)
    units = torch.arange(keys.shape[1], device=keys.device)
    rows = len(SPLITS) * units + offer.splits[:, None]
    windows = acts[:, RANDOM_START:]
    for batch_row, row, slot in state.admit(keys, rows):
        unit = row // len(SPLITS)
        state.segments[row, slot] = offer.segments[batch_row]
        state.sizes[row, slot] = sizes[batch_row, unit]
        state.write_windows(row, slot, windows[batch_row, :, unit])


def segment_sizes(
    acts: Float[Tensor, "batch seq width"], sides: Sequence[Side], offer: SampleOffer
) -> dict[Side, Float[Tensor, "batch width"]]:
    """The size of each segment for each unit and side, float32: the same bits in every batch shape.

    On a CPU as many segments at a time as stay in a processor's cache.
    """
    windows = acts[:, RANDOM_START:]
    at_once = len(acts)
    if acts.device.type == "cpu":
        at_once = max(1, CACHED_ACTIVATIONS // max(1, windows[0].numel()))
    parts: dict[Side, list[Tensor]] = {side: [] for side in sides}
    for first in range(0, len(acts), at_once):
        rows = slice(first, first + at_once)
        values = take_half(windows[rows], offer.halves[rows]).float()
        if offer.barred is not None:
            values = values.masked_fill(offer.barred[rows, :, None], 0.0)
        for side in sides:
            of_side = values.clamp(min=0) if side == "positive" else values.clamp(max=0)
            parts[side].append(_halve_and_add(of_side.square_()))
    return {side: torch.cat(sums) for side, sums in parts.items()}


def take_half(
    windows: Shaped[Tensor, "batch record width"], halves: Int[Tensor, "batch"]
) -> Shaped[Tensor, "batch crop width"]:
    """The scored half of each segment's tokens 64..127."""
    rows = torch.arange(len(windows), device=windows.device)
    n, _, width = windows.shape
    in_halves = windows.view(n, RECORD_LENGTH // CROP_LENGTH, CROP_LENGTH, width)
    return in_halves[rows, halves]


def _halve_and_add(values: Float[Tensor, "batch crop width"]) -> Float[Tensor, "batch width"]:
    """The sum over 32 tokens by five halvings, each adding the second half to the first; in place."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        values = values[:, :half].add_(values[:, half:])
    return values[:, 0]
