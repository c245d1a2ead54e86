"""Which tokens a unit's write vector promotes and suppresses (Geva et al. 2022) (pure)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuroexplain.arrays import VocabularyArrays

UNITS_AT_ONCE = 512  # bounds memory: 512 x vocabulary logits


def read_vocabulary(
    write_vectors: Float[Tensor, "width d_model"],
    norm_weight: Float[Tensor, "d_model"],
    unembedding: Float[Tensor, "vocab d_model"],
    n: int = 10,
) -> VocabularyArrays:
    """The n tokens with the highest and the n with the lowest logit `unembedding @ (norm_weight * vector)`, strongest first."""
    parts: list[list[np.ndarray]] = [[], [], [], []]
    n = min(n, len(unembedding))
    with torch.inference_mode():
        scaled = (unembedding * norm_weight).T
        for some in torch.split(write_vectors, UNITS_AT_ONCE):
            logits = (some @ scaled).float()
            high, low = logits.topk(n, dim=1), logits.topk(n, dim=1, largest=False)
            for part, found in zip(parts, (high.indices, high.values, low.indices, low.values), strict=True):
                part.append(found.cpu().numpy())
    ids, logits_high, low_ids, logits_low = (np.concatenate(part) for part in parts)
    return VocabularyArrays(ids.astype(np.uint32), logits_high, low_ids.astype(np.uint32), logits_low)
