"""Mean, standard deviation, minimum, maximum and share above 0 of every unit, streamed (pure).

Each batch is summed up around the mean so far, which is known before the batch is read, so one pass over it
is enough and a compiler can make one kernel of it. Three functions give the same sums: `sum_segments` in fast
eager steps, `sum_segments_in_cache` for a CPU, and `plain_sum_segments` for the compiler.

Of sparse units a CPU sums up the few values that are not 0 alone (`fold_active`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuroexplain.arrays import StatsArrays
from neuroexplain.collecting.active_values import ActiveValues
from neuroexplain.runtime.tuning import CACHED_ACTIVATIONS

# Of each segment's tokens: the sums of distances from the center and of their squares, the least, the
# greatest, and the number above 0.
Sums = tuple[
    Float[Tensor, "batch width"],
    Float[Tensor, "batch width"],
    Float[Tensor, "batch width"],
    Float[Tensor, "batch width"],
    Int[Tensor, "batch width"],
]
SumUp = Callable[[Tensor, Tensor], Sums]  # of activations [batch, seq, width] and a center [width]


class RunningStats:
    """Statistics of one layer's units over all tokens, float64, merged by batch (Chan et al. 1979)."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.n = 0  # tokens
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        # The sum of squared distances from the mean.
        self.squares = torch.zeros(width, dtype=torch.float64, device=device)
        self.min = torch.full((width,), torch.inf, device=device)
        self.max = torch.full((width,), -torch.inf, device=device)
        self.positive = torch.zeros(width, dtype=torch.int64, device=device)  # tokens above 0

    def fold(self, acts: Float[Tensor, "batch seq width"], sum_up: SumUp | None = None) -> None:
        """Add tokens' activations of all units."""
        self.fold_slice(slice(0, acts.shape[2]), acts, sum_up)
        self.count(acts.shape[0] * acts.shape[1])

    def count(self, n: int) -> None:
        """Count n tokens, after all slices of units were folded."""
        self.n += n

    def fold_slice(
        self, units: slice, acts: Float[Tensor, "batch seq slice"], sum_up: SumUp | None = None
    ) -> None:
        """Add tokens' activations of some units; `count` follows when all units have theirs.

        `sum_up` is `sum_segments` (the default) or one of its equals. Values that are not finite show in
        `min` and `max`.
        """
        n = acts.shape[0] * acts.shape[1]
        if not self.n:
            first = acts.sum(dim=1, dtype=torch.float32).sum(dim=0, dtype=torch.float64) / n
            self.mean[units].copy_(first)
        center = self.mean[units].float()
        distances, squared, low, high, positive = (sum_up or sum_segments)(acts, center)
        offset = distances.sum(dim=0, dtype=torch.float64) / n  # of the batch's mean from the center
        batch_squares = squared.sum(dim=0, dtype=torch.float64) - n * offset.square()
        self._merge(units, n, center + offset, batch_squares)
        self._merge_extremes(units, low.amin(dim=0).float(), high.amax(dim=0).float(), positive.sum(dim=0))

    def fold_active(self, units: slice, active: ActiveValues) -> None:
        """Add tokens' activations of some units, given those that are not 0; `count` follows likewise.

        The sums are in float64, one value after another, which only a CPU does in the same order each time.
        """
        n, width = active.n_tokens, active.width
        values = active.values.double()
        mean = torch.bincount(active.units, values, width) / n
        squares = torch.bincount(active.units, values.square(), width) - n * mean.square()
        self._merge(units, n, mean, squares.clamp(min=0))
        n_active = torch.bincount(active.units, minlength=width)
        # Whoever is silent at a token has a 0 there.
        low = torch.where(n_active < n, 0.0, torch.inf)
        high = torch.where(n_active < n, 0.0, -torch.inf)
        low.scatter_reduce_(0, active.units, active.values, "amin")
        high.scatter_reduce_(0, active.units, active.values, "amax")
        self._merge_extremes(
            units, low, high, torch.bincount(active.units[active.values > 0], minlength=width)
        )

    def _merge(
        self,
        units: slice,
        n: int,
        batch_mean: Float[Tensor, "slice"],
        batch_squares: Float[Tensor, "slice"],
    ) -> None:
        """Merge the mean and the squared distances from it of n more tokens, float64."""
        mean = self.mean[units]
        total = self.n + n
        shift = batch_mean - mean  # from the mean so far
        self.squares[units] += batch_squares + shift.square() * (self.n * n / total)
        mean += shift * (n / total)

    def _merge_extremes(
        self,
        units: slice,
        low: Float[Tensor, "slice"],
        high: Float[Tensor, "slice"],
        positive: Int[Tensor, "slice"],
    ) -> None:
        least, greatest = self.min[units], self.max[units]
        torch.minimum(least, low, out=least)
        torch.maximum(greatest, high, out=greatest)
        self.positive[units] += positive

    def finish(self) -> StatsArrays:
        """The statistics, [width] float64 each; std is that of the population."""
        std = (self.squares.clamp(min=0) / self.n).sqrt()
        share = self.positive.double() / self.n
        return StatsArrays(*(x.double().cpu().numpy() for x in (self.mean, std, self.min, self.max, share)))


def sum_segments(acts: Float[Tensor, "batch seq width"], center: Float[Tensor, "width"]) -> Sums:
    """The sums of each segment, in eager steps.

    Tokens are reduced first, and neurons, which are contiguous, last: on a CPU that is ten times as fast as
    var_mean.
    """
    acts = acts.float()
    low, high = acts.amin(dim=1), acts.amax(dim=1)
    away = acts - center
    distances = away.sum(dim=1)
    squared = away.square_().sum(dim=1)
    positive = torch.gt(acts, 0, out=away).sum(dim=1).to(torch.int32)
    return distances, squared, low, high, positive


def sum_segments_in_cache(acts: Float[Tensor, "batch seq width"], center: Float[Tensor, "width"]) -> Sums:
    """The same, as many segments at a time as stay in a processor's cache."""
    at_once = max(1, CACHED_ACTIVATIONS // acts[0].numel())
    parts = [sum_segments(segments, center) for segments in torch.split(acts, at_once)]
    distances, squared, low, high, positive = (torch.cat(part) for part in zip(*parts, strict=True))
    return distances, squared, low, high, positive


def plain_sum_segments(acts: Float[Tensor, "batch seq width"], center: Float[Tensor, "width"]) -> Sums:
    """The same in expressions that a compiler turns into one pass; slow if it is not compiled."""
    away = acts.float() - center
    return away.sum(1), away.square().sum(1), acts.amin(1), acts.amax(1), (acts > 0).sum(1, dtype=torch.int32)
