"""A person's own text -> activations of every layer's neurons on each of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.load import Subject


def read_text(
    subject: Subject, token_ids: Sequence[int], layers: Sequence[int], activation: str
) -> dict[int, Float[Tensor, "seq d_mlp"]]:
    """Each layer's activations on the tokens, [seq, d_mlp] float32 on the CPU."""
    found: dict[int, Tensor] = {}

    def keep(layer: int, acts: Tensor) -> None:
        found[layer] = acts[0].float().cpu()

    capture_activations(subject, torch.tensor([list(token_ids)], device=subject.device), layers, activation, keep)
    return found
