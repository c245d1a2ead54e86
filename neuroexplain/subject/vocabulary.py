"""Which tokens a unit's write vector promotes and suppresses (Geva et al. 2022) (pure)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuroexplain.arrays import VocabularyArrays
from neuroexplain.runtime.tuning import VOCABULARY_UNITS_AT_ONCE


def read_vocabulary(
    write_vectors: Float[Tensor, "width d_model"],
    norm_weight: Float[Tensor, "d_model"],
    unembedding: Float[Tensor, "vocab d_model"],
    n: int = 10,
) -> VocabularyArrays:
    """Each unit's n tokens of highest and n of lowest logit, strongest first.

    The logits are `unembedding @ (norm_weight * write_vector)`. Equal logits come in any order.
    """
    columns: list[list[np.ndarray]] = [[], [], [], []]
    n = min(n, len(unembedding))
    with torch.inference_mode():
        scaled = (unembedding * norm_weight).T
        for vectors in torch.split(write_vectors, VOCABULARY_UNITS_AT_ONCE):
            logits = (vectors @ scaled).float()
            high, low = logits.topk(n, dim=1), logits.topk(n, dim=1, largest=False)
            for column, values in zip(
                columns, (high.indices, high.values, low.indices, low.values), strict=True
            ):
                column.append(values.cpu().numpy())
    high_ids, high_logits, low_ids, low_logits = (np.concatenate(column) for column in columns)
    return VocabularyArrays(high_ids.astype(np.uint32), high_logits, low_ids.astype(np.uint32), low_logits)
