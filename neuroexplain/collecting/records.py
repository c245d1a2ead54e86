"""The records that a collection keeps of each unit: a running state for each kind, and its arrays at the end.

Top and bottom records: the state is a TopK (top_k.py), and `top_records` reads it out. Random records:
RandomRecords. A further kind of record is a further state here, folded by the collector beside these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuroexplain.arrays import ExemplarArrays
from neuroexplain.collecting.top_k import EMPTY, TopK, segments_of
from neuroexplain.stable_hash import stable_hash
from neuroexplain.units import PEAK_INDEX, RANDOM_START, RECORD_LENGTH

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


class RandomRecords:
    """Tokens 64..127 of n random segments, the same segments for every unit.

    They are the n segments with the smallest `stable_hash(seed, segment)` of all that were visited: the same
    in any order of visit, and their number need not be known before. The activations lie in the host's
    memory, since each is written about once.
    """

    def __init__(self, n: int, seed: int, widths: Mapping[int, int], dtype: torch.dtype) -> None:
        self.segments = RandomSegments(n, seed)
        self.windows: dict[int, Tensor] = {  # by layer, [n, 64, width]
            layer: torch.zeros((n, RECORD_LENGTH, width), dtype=dtype) for layer, width in widths.items()
        }

    def draw(self, segments: Sequence[int]) -> Draw:
        """Which segments of a batch are kept, and in which slots. `keep` follows for every layer."""
        return self.segments.draw(segments)

    def keep(self, layer: int, units: slice, acts: Float[Tensor, "batch seq width"], draw: Draw) -> None:
        """Copy the drawn segments' activations of some units."""
        slots, rows = draw
        if slots:
            self.windows[layer][slots, :, units] = acts[rows, RANDOM_START:].cpu()

    def arrays(self, layer: int, locate: Locate) -> ExemplarArrays:
        """A layer's random records, the smallest hash first.

        Each unit peaks at another token of a record, and a record belongs to the document of the unit's own
        peak.
        """
        slots, numbers = self.segments.in_order()
        windows = self.windows[layer][slots].float().permute(2, 0, 1).cpu().numpy()  # [width, n, 64]
        width, n, _ = windows.shape
        positions = windows.argmax(axis=2) + RANDOM_START
        segments = np.tile(np.array(numbers, np.int64), (width, 1))
        starts = np.full((width, n), RANDOM_START, np.uint8)
        documents, offsets, token_ids = locate(segments, positions, starts)
        return ExemplarArrays(
            counts=np.full(width, n),
            segments=segments.astype(np.uint32),
            starts=starts,
            documents=documents.astype(np.int32),
            token_offsets=offsets.astype(np.int32),
            peaks=windows.max(axis=2),
            activations=windows,
            peak_token_ids=token_ids.astype(np.uint32),
        )


class RandomSegments:
    """The n segments with the smallest hashes so far, each in a slot until a smaller hash takes it."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self.kept: list[tuple[int, int]] = []  # (hash, segment) of each slot

    def draw(self, segments: Sequence[int]) -> Draw:
        """Visit a batch of segments."""
        row_of_slot: dict[int, int] = {}
        for row, segment in enumerate(segments):
            key = (stable_hash(self.seed, segment), segment)
            if len(self.kept) < self.n:
                row_of_slot[len(self.kept)] = row
                self.kept.append(key)
            elif self.kept and key < (largest := max(self.kept)):
                slot = self.kept.index(largest)
                row_of_slot[slot] = row
                self.kept[slot] = key
        return list(row_of_slot), list(row_of_slot.values())

    def in_order(self) -> tuple[list[int], list[int]]:
        """(slots, segments), the smallest hash first."""
        slots = sorted(range(len(self.kept)), key=lambda slot: self.kept[slot])
        return slots, [self.kept[slot][1] for slot in slots]
