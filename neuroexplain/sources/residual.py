"""The residual stream after a layer. A unit is one of its dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuroexplain.sources.base import Slices, whole
from neuroexplain.units import Sign, Source

if TYPE_CHECKING:
    from torch import Tensor

    from neuroexplain.subject.model import Subject


class Residual:
    """d_model units in each layer. A unit is a direction of the stream, and writes that direction."""

    activations = ("residual",)
    sign: Sign = "both"

    def find(self, subject: Subject, layer: int, activation: str) -> Source:
        width = subject.unembedding.shape[1]
        return Source(layer, "residual", subject.path(layer), "output", width, subject.dtype_name)

    def encode(self, subject: Subject, source: Source, values: Tensor) -> Slices:
        return whole(values)

    def write_vectors(self, subject: Subject, source: Source) -> Tensor:
        return subject.unembedding.new_ones(source.width).diag()


KIND = Residual()
