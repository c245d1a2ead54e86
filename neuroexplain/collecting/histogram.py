"""The histogram of every unit's activations above 0, streamed (pure). Histograms of parts add up."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from neuroexplain.collecting.active_values import ActiveValues
from neuroexplain.histogram import EDGES


class RunningHistogram:
    """How many activations of each unit are in each bin, [width, bins]; see histogram.EDGES."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.counts = torch.zeros((width, len(EDGES) + 1), dtype=torch.int32, device=device)
        self._edges = torch.tensor(EDGES, device=device)

    def fold(self, units: slice, active: ActiveValues) -> None:
        """Add some units' activations; those that are not above 0 are left out."""
        counts, is_above = self.counts[units], active.values > 0
        bins = torch.bucketize(active.values[is_above], self._edges, right=True)
        cells = active.units[is_above] * counts.shape[1] + bins
        counts += torch.bincount(cells, minlength=counts.numel()).view_as(counts).int()

    def finish(self) -> NDArray[np.uint32]:
        """The counts, [width, bins]."""
        return self.counts.cpu().numpy().astype(np.uint32)
