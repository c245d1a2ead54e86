"""Mean, standard deviation, minimum, maximum and share above 0 of every neuron, streamed (pure)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from neuroexplain.types import StatsArrays


class RunningStats:
    """Statistics of one layer's neurons over all tokens seen; float64, merged batch by batch (Chan et al. 1979)."""

    def __init__(self, d_mlp: int, device: torch.device) -> None:
        self.n = 0
        self.mean = torch.zeros(d_mlp, dtype=torch.float64, device=device)
        self.squares = torch.zeros(d_mlp, dtype=torch.float64, device=device)  # sum of squared distances from the mean
        self.min = torch.full((d_mlp,), torch.inf, device=device)
        self.max = torch.full((d_mlp,), -torch.inf, device=device)
        self.positive = torch.zeros(d_mlp, dtype=torch.int64, device=device)

    def fold(self, acts: Float[Tensor, "batch seq d_mlp"]) -> None:
        """Add tokens' activations. Values that are not finite show in `min` and `max`.

        Each step reduces a segment's tokens first, contiguous neurons last: on a CPU that is ten times faster than var_mean.
        """
        n = acts.shape[0] * acts.shape[1]
        sums = acts.sum(dim=1, dtype=torch.float32)  # [batch, d_mlp]
        mean = sums.sum(dim=0, dtype=torch.float64) / n
        scratch = acts - mean.float()
        squares = scratch.square_().sum(dim=1).sum(dim=0, dtype=torch.float64)
        squares -= n * (mean - mean.float()).square()  # what the rounding of the mean added
        self.min = torch.minimum(self.min, acts.amin(dim=1).amin(dim=0).float())
        self.max = torch.maximum(self.max, acts.amax(dim=1).amax(dim=0).float())
        self.positive += torch.gt(acts, 0, out=scratch).sum(dim=1).sum(dim=0).long()
        total = self.n + n
        away = mean - self.mean
        self.squares += squares + away.square() * (self.n * n / total)
        self.mean += away * (n / total)
        self.n = total

    def finish(self) -> StatsArrays:
        """The statistics, [d_mlp] float64 each; std is that of the population."""
        std = (self.squares / self.n).sqrt()
        share = self.positive.double() / self.n
        return StatsArrays(*(x.double().cpu().numpy() for x in (self.mean, std, self.min, self.max, share)))
