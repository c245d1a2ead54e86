"""Attention heads: what enters the output projection. A unit is a dimension of a head, written `15:3.40`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuroexplain.sources.base import Slices, whole
from neuroexplain.units import Sign, Source

if TYPE_CHECKING:
    from torch import Tensor

    from neuroexplain.subject.model import Subject


class Heads:
    """n_heads x head_dim units in each layer; their index is `head * head_dim + dimension`."""

    activations = ("heads",)
    sign: Sign = "both"

    def find(self, subject: Subject, layer: int, activation: str) -> Source:
        width = len(_output_projection(subject, layer))
        head_dim = width // subject.n_heads
        module = subject.path(layer, subject.family.attention_out)
        return Source(layer, "heads", module, "input", width, subject.dtype_name, group_size=head_dim)

    def encode(self, subject: Subject, source: Source, values: Tensor) -> Slices:
        return whole(values)

    def write_vectors(self, subject: Subject, source: Source) -> Tensor:
        return _output_projection(subject, source.layer)


def _output_projection(subject: Subject, layer: int) -> Tensor:
    """What each dimension of each head adds to the residual stream, [n_heads * head_dim, d_model]."""
    return subject.projection(layer, subject.family.attention_out)


KIND = Heads()
