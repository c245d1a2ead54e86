"""A text of the user's own -> the activations of every layer's units on each of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from neuroexplain.sources.base import SOURCES
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.model import Subject
from neuroexplain.units import Source


def read_text(
    subject: Subject, token_ids: Sequence[int], sources: Mapping[int, Source]
) -> dict[int, Float[Tensor, "seq width"]]:
    """Each layer's activations on the tokens, [seq, width] float32 on the CPU."""
    activations: dict[int, Tensor] = {}

    def keep(layer: int, values: Tensor) -> None:
        source = sources[layer]
        slices = SOURCES.load(source.kind).encode(subject, source, values)
        activations[layer] = torch.cat([acts[0].float().cpu() for _, acts in slices], dim=-1)

    capture_activations(subject, torch.tensor([list(token_ids)], device=subject.device), sources, keep)
    return activations
