"""The background of a layer's sparse units: random segments of `report`, and what is active there.

Sixteen random records cannot see how often an explanation fires where a rare unit is silent. So a run of
sparse units keeps more of them: the random records of `report` and the segments with the next smallest
hashes, the same for every unit. Only activations that are not 0 are kept, with their units and tokens, so
memory grows with what is active and not with the number of units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from neuroexplain.arrays import BackgroundArrays
from neuroexplain.collecting.records import RandomSegments
from neuroexplain.units import RANDOM_START

PARTS_BEFORE_PACKING = 256  # slices of batches after which those that were replaced are dropped


class BackgroundRecords:
    """Tokens 64..127 of the n segments of `report` with the smallest `random_key` so far."""

    def __init__(self, n: int, seed: int, layers: Sequence[int]) -> None:
        self.segments = RandomSegments({"explain": 0, "select": 0, "report": n}, seed)
        self.numbers: dict[int, int] = {}  # of the segment in each slot: how many were taken before it
        self.n_taken = 0
        # Of each layer's active tokens the number of their segment, unit, token and activation, in parts.
        self.kept: dict[int, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {layer: [] for layer in layers}

    def draw(self, segments: Sequence[int], splits: NDArray[np.int8]) -> dict[int, int]:
        """Which rows of a batch are kept, each with its number. `keep` follows for every layer."""
        slots, rows = self.segments.draw(segments, splits)
        numbers = {row: self.n_taken + place for place, row in enumerate(rows)}
        self.numbers |= {slot: numbers[row] for slot, row in zip(slots, rows, strict=True)}
        self.n_taken += len(rows)
        return numbers

    def keep(
        self, layer: int, units: slice, acts: Float[Tensor, "batch seq width"], draw: dict[int, int]
    ) -> None:
        """Keep what is active in the drawn segments, of some units."""
        if not draw:
            return
        windows = acts[list(draw), RANDOM_START:]
        row, position, unit = windows.nonzero(as_tuple=True)
        values = windows[row, position, unit].cpu()
        numbers = torch.tensor(list(draw.values()), dtype=torch.int32)[row.cpu()]
        places = (unit.cpu().int() + units.start, position.cpu().to(torch.uint8))
        self.kept[layer].append((numbers, *places, values))
        if len(self.kept[layer]) > PARTS_BEFORE_PACKING:
            self._pack(layer)

    def _pack(self, layer: int) -> None:
        """Join the parts of a layer, without those of segments that were replaced."""
        parts = self.kept[layer]
        if parts:
            joined = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
            stays = torch.isin(joined[0], torch.tensor(list(self.numbers.values()), dtype=torch.int32))
            numbers, units, positions, values = (tensor[stays] for tensor in joined)
            self.kept[layer] = [(numbers, units, positions, values)]

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        for layer in self.kept:
            self._pack(layer)
        return {
            "drawn": list(self.segments.kept["report"]),
            "numbers": dict(self.numbers),
            "n_taken": self.n_taken,
            "kept": {layer: list(parts) for layer, parts in self.kept.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave."""
        self.segments.kept["report"] = list(map(tuple, state["drawn"]))
        self.numbers, self.n_taken = dict(state["numbers"]), state["n_taken"]
        self.kept = {layer: [tuple(part) for part in state["kept"][layer]] for layer in self.kept}

    def arrays(self, layer: int, width: int) -> BackgroundArrays:
        """A layer's background, the smallest hash first."""
        self._pack(layer)
        slots, segments = self.segments.in_order()
        record_of = np.zeros(max(1, self.n_taken), np.uint16)
        record_of[[self.numbers[slot] for slot in slots]] = np.arange(len(slots))
        empty = torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
        parts = self.kept[layer] or [(*empty, torch.zeros(0, dtype=torch.uint8), torch.zeros(0))]
        numbers, units, positions, values = parts[0]
        records, activations = record_of[numbers.numpy()], values.float().numpy()
        order = np.lexsort((positions, records, units))
        counts = np.bincount(units, minlength=width).astype(np.int64)
        return BackgroundArrays(
            np.array(segments, np.uint32),
            counts,
            records[order],
            positions.numpy()[order],
            activations[order],
        )
