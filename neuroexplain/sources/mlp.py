"""MLP neurons: `act` is the output of the activation function, `post` what enters the down-projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuroexplain.sources.base import Slices, whole
from neuroexplain.units import Sign, Source

if TYPE_CHECKING:
    from torch import Tensor

    from neuroexplain.subject.model import Subject


class Mlp:
    """d_mlp neurons in each layer."""

    activations = ("act", "post")
    sign: Sign = "positive"

    def find(self, subject: Subject, layer: int, activation: str) -> Source:
        is_act = activation == "act"
        module = subject.path(layer, subject.family.activation if is_act else subject.family.down)
        return Source(
            layer, "mlp", module, "output" if is_act else "input", subject.d_mlp, subject.dtype_name
        )

    def encode(self, subject: Subject, source: Source, values: Tensor) -> Slices:
        return whole(values)

    def write_vectors(self, subject: Subject, source: Source) -> Tensor:
        return subject.projection(source.layer, subject.family.down)


KIND = Mlp()
