"""The protocol of a kind of unit: where a model is read, how many units there are, and what they write.

A new kind is a file in this folder with an object `KIND`, or a package's entry point in the group
`neuroexplain.sources`. No other file names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from neuroexplain.registry import Registry
from neuroexplain.units import Sign, Source

if TYPE_CHECKING:
    from torch import Tensor

    from neuroexplain.sources._choice import Choice
    from neuroexplain.sources._health import Health
    from neuroexplain.subject.model import Subject

# (units, their activations [batch, seq, units]): slices of a width, which together cover it in order
Slices: TypeAlias = "Iterable[tuple[slice, Tensor]]"


@runtime_checkable
class SourceKind(Protocol):
    """A kind of unit."""

    activations: tuple[
        str, ...
    ]  # what can be read of it, the values of --activation; the first is the default
    sign: Sign  # which activations are collected by default

    def find(self, subject: Subject, layer: int, activation: str) -> Source:
        """Where a layer's units are read. Raises NeuroexplainError if the model has no such place."""
        ...

    def encode(self, subject: Subject, source: Source, values: Tensor) -> Slices:
        """The units' activations from what was read at the module, [batch, seq, any]: whole or in slices.

        A slice's tensor is used before the next is computed, so a wide source need never be whole in memory.
        """
        ...

    def write_vectors(self, subject: Subject, source: Source) -> Tensor | None:
        """What each unit adds to the residual stream, [width, d_model]; None if it writes nothing."""
        ...


@runtime_checkable
class TakesDictionary(SourceKind, Protocol):
    """A kind whose units are latents: `--dictionary` names what encodes them."""

    def with_dictionary(self, choice: Choice, *, any_model: bool) -> TakesDictionary:
        """The kind with this dictionary, of which nothing is read yet.

        any_model: whether it may have been made for a model of another name.
        """
        ...

    def layers(self) -> tuple[int, ...]:
        """The layers that the dictionary holds, in ascending order. Raises NeuroexplainError without any."""
        ...

    def check(self, subject: Subject, sources: Mapping[int, Source], token_ids: Tensor) -> Iterator[Health]:
        """What some text, [n, 128] token ids, tells of how well each layer's dictionary fits."""
        ...


@runtime_checkable
class HasDirections(SourceKind, Protocol):
    """A kind whose units are told apart by their directions, so that each has nearest ones."""

    def directions(self, subject: Subject, source: Source) -> Tensor:
        """The direction of each unit, of any length, [width, any]."""
        ...


SOURCES: Registry[SourceKind] = Registry("sources", "KIND", "source")


def find_sources(
    subject: Subject, kind: str | SourceKind, activation: str, layers: Iterable[int]
) -> dict[int, Source]:
    """Each layer's source, by layer. Raises NeuroexplainError for an unknown kind."""
    source_kind = SOURCES.load(kind, "--source") if isinstance(kind, str) else kind
    return {layer: source_kind.find(subject, layer, activation) for layer in layers}


def whole(values: Tensor) -> Slices:
    """All units in one slice, for values that are the units' activations already."""
    return ((slice(0, values.shape[-1]), values),)


def dense_slices(indices: Tensor, values: Tensor, width: int, at_once: int) -> Iterator[tuple[slice, Tensor]]:
    """Sparse activations as dense slices of `at_once` units.

    indices: [batch, seq, n] int64, units of 0..width, none twice at a token. values: [batch, seq, n], their
    activations. All other activations are 0.
    """
    import torch

    for first in range(0, width, at_once):
        n = min(at_once, width - first)
        is_inside = (indices >= first) & (indices < first + n)
        # Values of other slices are written to an extra column, n, which is cut off.
        dense = torch.zeros((*indices.shape[:-1], n + 1), dtype=values.dtype, device=values.device)
        dense.scatter_(-1, torch.where(is_inside, indices - first, n), torch.where(is_inside, values, 0))
        yield slice(first, first + n), dense[..., :n]
