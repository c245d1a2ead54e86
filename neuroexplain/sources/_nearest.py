"""Which latents of a dictionary write in the most similar directions (pure)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from neuroexplain.arrays import NearestArrays
from neuroexplain.runtime.tuning import COSINES_AT_ONCE

N_NEAREST = 5


def nearest_by_cosine(
    directions: Float[Tensor, "width d"], n: int = N_NEAREST, at_once: int = COSINES_AT_ONCE
) -> NearestArrays:
    """Each latent's n others with the largest cosine above 0, the largest first, in float32.

    About `at_once` cosines are in memory at a time. A direction of length 0 is near nothing. Equal cosines at
    the edge come in any order.
    """
    directions = directions.float()
    unit = directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-30)
    n = min(n, len(unit) - 1)
    units, cosines = [], []
    with torch.inference_mode():
        for first in range(0, len(unit), max(1, at_once // len(unit))):
            rows = unit[first : first + max(1, at_once // len(unit))]
            block = rows @ unit.T  # [rows, width]
            own = torch.arange(len(rows), device=block.device)
            block[own, first + own] = -1.0
            best = block.topk(n, dim=1)
            units.append(best.indices.cpu())
            cosines.append(best.values.clamp(0, 1).cpu())
    return NearestArrays(torch.cat(units).numpy().astype("uint32"), torch.cat(cosines).numpy())
