"""The rule of the published Llama-3 neuron data, to compare with: the highest activations at token 96."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuroexplain.units import RANDOM_START

POSITION = 96


class PublishedTopK:
    """The k highest values of each neuron of a layer: concatenate, topk, gather.

    Ties go where topk sends them, and records with the same tokens all count.
    """

    def __init__(self, width: int, k: int, dtype: torch.dtype, device: torch.device) -> None:
        self.values = torch.full((k, width), -torch.inf, dtype=dtype, device=device)
        self.segments = torch.full((k, width), -1, dtype=torch.int64, device=device)
        self.windows = torch.zeros((k, 64, width), dtype=dtype, device=device)

    def fold(self, acts: Float[Tensor, "batch seq width"], segments: Int[Tensor, "batch"]) -> None:
        """Fold one batch of segments."""
        values = torch.cat([self.values, acts[:, POSITION]])
        numbers = torch.cat([self.segments, segments[:, None].expand(-1, acts.shape[2])])
        windows = torch.cat([self.windows, acts[:, RANDOM_START:]])
        self.values, order = values.topk(len(self.values), dim=0)
        self.segments = numbers.gather(0, order)
        self.windows = windows.gather(0, order[:, None].expand(-1, windows.shape[1], -1))
