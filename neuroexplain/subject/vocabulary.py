"""Which tokens a unit's write vector promotes and suppresses (Geva et al. 2022) (pure)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuroexplain.arrays import VocabularyArrays
from neuroexplain.runtime.tuning import VOCABULARY_UNITS_AT_ONCE

BLOCK = 64  # tokens


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
            high, low = _largest(logits, n), _largest(logits.neg_(), n)
            for column, values in zip(columns, (*high, low[0], low[1].neg()), strict=True):
                column.append(values.cpu().numpy())
    high_ids, high_logits, low_ids, low_logits = (np.concatenate(column) for column in columns)
    return VocabularyArrays(high_ids.astype(np.uint32), high_logits, low_ids.astype(np.uint32), low_logits)


def _largest(
    logits: Float[Tensor, "units vocab"], n: int
) -> tuple[Int[Tensor, "units n"], Float[Tensor, "units n"]]:
    """(ids, logits) of each row's n largest, largest first.

    They lie in the n blocks of largest maximum, so only these are sorted: on a processor `topk` of whole rows
    takes several times as long.
    """
    n_units, n_tokens = logits.shape
    n_blocks = n_tokens // BLOCK
    if n_blocks <= n:
        values, ids = logits.topk(n, dim=1)
        return ids, values
    blocks = logits[:, : n_blocks * BLOCK].view(n_units, n_blocks, BLOCK)
    chosen = blocks.amax(dim=2).topk(n, dim=1).indices
    rest = torch.arange(n_blocks * BLOCK, n_tokens, device=logits.device).expand(n_units, -1)
    inside = torch.arange(BLOCK, device=logits.device)
    candidates = torch.cat([(chosen[:, :, None] * BLOCK + inside).flatten(1), rest], dim=1)
    values, places = logits.gather(1, candidates).topk(n, dim=1)
    return candidates.gather(1, places), values
