"""The histogram of every unit's activations above 0, streamed (pure). Histograms of parts add up."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from neuroexplain.histogram import EDGES


class RunningHistogram:
    """How many activations of each unit are in each bin, [width, bins]; see histogram.EDGES."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.counts = torch.zeros((width, len(EDGES) + 1), dtype=torch.int32, device=device)
        self._edges = torch.tensor(EDGES, device=device)

    def fold(self, units: slice, acts: Float[Tensor, "batch seq slice"]) -> None:
        """Add some units' activations."""
        counts = self.counts[units]
        place = (acts > 0).reshape(-1).nonzero()[:, 0]
        bins = torch.bucketize(acts.reshape(-1)[place].float(), self._edges, right=True)
        cells = (place % acts.shape[2]) * counts.shape[1] + bins
        counts += torch.bincount(cells, minlength=counts.numel()).view_as(counts).int()

    def finish(self) -> NDArray[np.uint32]:
        """The counts, [width, bins]."""
        return self.counts.cpu().numpy().astype(np.uint32)
