"""The records that a collection keeps of each unit: a running state for each kind, and its arrays at the end.

Top and bottom records: the state is a TopK (top_k.py), and `top_records` reads it out. Sampled records: a
Sample (sample.py) and `sampled_records`. Random records: RandomRecords.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuroexplain.arrays import ExemplarArrays, SampleArrays
from neuroexplain.collecting.running_best import EMPTY
from neuroexplain.collecting.sample import Sample
from neuroexplain.collecting.top_k import TopK, segments_of
from neuroexplain.evidence import SPLITS, Split
from neuroexplain.sampling import random_key
from neuroexplain.units import PEAK_INDEX, RANDOM_START, RECORD_LENGTH, Side

# (segments, positions of peaks, starts of records) -> (documents, offsets of the records' first tokens in
# them, token ids of the peaks): TokenStream.locate. All arrays have one shape.
Locate = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
Draw = tuple[list[int], list[int]]  # slots that are taken anew, and the rows of a batch that take them


def top_records(state: TopK, locate: Locate) -> ExemplarArrays:
    """Each unit's k best records, best first. Unused ranks, of units with fewer, have document -1."""
    keys, slots = state.best()
    used = (keys > EMPTY).cpu().numpy()
    segments = np.where(used, segments_of(keys).cpu().numpy(), 0)
    starts = state.starts.gather(1, slots).cpu().numpy()
    window_slots = slots.to(state.windows.device)[:, :, None].expand(-1, -1, RECORD_LENGTH)
    windows = state.windows.gather(1, window_slots).float().cpu().numpy()
    documents, offsets, token_ids = locate(segments, starts.astype(np.int64) + PEAK_INDEX, starts)
    return ExemplarArrays(
        counts=used.sum(axis=1),
        segments=segments.astype(np.uint32),
        starts=starts,
        documents=np.where(used, documents, -1).astype(np.int32),
        token_offsets=np.where(used, offsets, 0).astype(np.int32),
        peaks=windows[:, :, PEAK_INDEX].copy(),
        activations=windows,
        peak_token_ids=np.where(used, token_ids, 0).astype(np.uint32),
    )


def sampled_records(state: Sample, side: Side, locate: Locate) -> dict[Split, SampleArrays]:
    """One side's samples, the largest size / uniform first. Each unit peaks at another token of a record."""
    samples = {}
    ranked, order = state.rank(slice(None))
    for code, split in enumerate(SPLITS):
        n, rows = state.counts[split], slice(code, None, len(SPLITS))
        keys, slots = ranked[rows, : n + 1], order[rows, : n + 1]
        beyond = keys[:, n].cpu()
        thresholds = torch.where(beyond > EMPTY, beyond.view(torch.float64), 0.0).numpy()
        keys, slots = keys[:, :n], slots[:, :n]
        used = (keys > EMPTY).cpu().numpy()
        window_slots = slots.to(state.windows.device)[:, :, None].expand(-1, -1, RECORD_LENGTH)
        windows = state.windows[rows].gather(1, window_slots).float().cpu().numpy()
        windows = np.where(used[:, :, None], windows, np.float32(0))
        segments = np.where(used, state.segments[rows].gather(1, slots).cpu().numpy(), 0)
        sizes = np.where(used, state.sizes[rows].gather(1, slots).cpu().numpy(), np.float32(0))
        records = _fixed_records(segments, windows, side, locate, used)
        samples[split] = SampleArrays(records, sizes, thresholds)
    return samples


def _fixed_records(
    segments: np.ndarray, windows: np.ndarray, side: Side, locate: Locate, used: np.ndarray
) -> ExemplarArrays:
    """Records of tokens 64..127, which belong to the document of the unit's own peak."""
    peaks = windows.argmax(axis=2) if side == "positive" else windows.argmin(axis=2)
    starts = np.full(segments.shape, RANDOM_START, np.uint8)
    documents, offsets, token_ids = locate(segments, peaks + RANDOM_START, starts)
    return ExemplarArrays(
        counts=used.sum(axis=1),
        segments=segments.astype(np.uint32),
        starts=starts,
        documents=np.where(used, documents, -1).astype(np.int32),
        token_offsets=np.where(used, offsets, 0).astype(np.int32),
        peaks=np.take_along_axis(windows, peaks[:, :, None], axis=2)[:, :, 0],
        activations=windows,
        peak_token_ids=np.where(used, token_ids, 0).astype(np.uint32),
    )


class RandomRecords:
    """Tokens 64..127 of random segments, the same segments for every unit.

    Of each split they are the n segments with the smallest `random_key` of all that were visited: the same in
    any order of visit, and their number need not be known before. The activations lie in the host's memory,
    since each is written about once.
    """

    def __init__(
        self, counts: Mapping[Split, int], seed: int, widths: Mapping[int, int], dtype: torch.dtype
    ) -> None:
        self.segments = RandomSegments(counts, seed)
        n = sum(counts.values())
        self.windows: dict[int, Tensor] = {  # by layer, [n, 64, width]
            layer: torch.zeros((n, RECORD_LENGTH, width), dtype=dtype) for layer, width in widths.items()
        }

    def draw(self, segments: Sequence[int], splits: np.ndarray) -> Draw:
        """Which segments of a batch are kept, and in which slots. `keep` follows for every layer."""
        return self.segments.draw(segments, splits)

    def keep(self, layer: int, units: slice, acts: Float[Tensor, "batch seq width"], draw: Draw) -> None:
        """Copy the drawn segments' activations of some units."""
        slots, rows = draw
        if slots:
            self.windows[layer][slots, :, units] = acts[rows, RANDOM_START:].cpu()

    def arrays(self, layer: int, locate: Locate) -> ExemplarArrays:
        """A layer's random records, by split, then the smallest hash first."""
        slots, numbers = self.segments.in_order()
        windows = self.windows[layer][slots].float().permute(2, 0, 1).cpu().numpy()  # [width, n, 64]
        segments = np.tile(np.array(numbers, np.int64), (len(windows), 1))
        return _fixed_records(segments, windows, "positive", locate, np.ones(segments.shape, bool))


class RandomSegments:
    """Each split's n segments with the smallest hashes so far, in slots until a smaller hash takes one."""

    def __init__(self, counts: Mapping[Split, int], seed: int) -> None:
        self.counts, self.seed = counts, seed
        # (hash, segment) in its slot, by split; the splits' slots follow each other
        self.kept: dict[Split, list[tuple[int, int]]] = {split: [] for split in SPLITS}

    def draw(self, segments: Sequence[int], splits: np.ndarray) -> Draw:
        """Visit a batch of segments, with the places of their splits in SPLITS; without a split below 0."""
        row_of_slot: dict[int, int] = {}
        for row, (segment, code) in enumerate(zip(segments, splits.tolist(), strict=True)):
            if code < 0:
                continue
            split = SPLITS[code]
            kept, n = self.kept[split], self.counts[split]
            key = (random_key(self.seed, segment), segment)
            if len(kept) < n:
                row_of_slot[self._first_slot(split) + len(kept)] = row
                kept.append(key)
            elif kept and key < (largest := max(kept)):
                slot = kept.index(largest)
                row_of_slot[self._first_slot(split) + slot] = row
                kept[slot] = key
        return list(row_of_slot), list(row_of_slot.values())

    def in_order(self) -> tuple[list[int], list[int]]:
        """(slots, segments), split by split, the smallest hash first."""
        slots, segments = [], []
        for split in SPLITS:
            kept = self.kept[split]
            in_order = sorted((key, segment, slot) for slot, (key, segment) in enumerate(kept))
            slots += [self._first_slot(split) + slot for _, _, slot in in_order]
            segments += [segment for _, segment, _ in in_order]
        return slots, segments

    def _first_slot(self, split: Split) -> int:
        return sum(self.counts[earlier] for earlier in SPLITS[: SPLITS.index(split)])
