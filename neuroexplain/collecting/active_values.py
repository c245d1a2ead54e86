"""The activations of sparse units that are not 0: a few of all (pure)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ActiveValues:
    """Of a slice of units, in the order of tokens."""

    units: Int[Tensor, "m"]  # places in the slice
    values: Float[Tensor, "m"]  # float32; also what is not a number
    width: int  # of the slice
    n_tokens: int

    @classmethod
    def of(cls, acts: Float[Tensor, "batch seq slice"]) -> ActiveValues:
        """Those of some tokens."""
        batch, seq, width = acts.shape
        place = _places((acts != 0).reshape(-1))
        token, unit = place // width, place % width
        return cls(unit, acts[token // seq, token % seq, unit].float(), width, batch * seq)


def _places(is_active: Bool[Tensor, "n"]) -> Int[Tensor, "m"]:
    """Where it holds. NumPy's search of mostly false values takes a seventh of torch's time on a CPU."""
    if is_active.device.type != "cpu":
        return is_active.nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(is_active.numpy()))
