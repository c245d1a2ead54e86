"""What a kind of unit must say: where it is read in a model, how many units there are, and what they write.

A new kind is a file here with `KIND`, or a package's entry point in the group `neuroexplain.sources`; no other file names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeAlias

from neuroexplain.registry import Registry
from neuroexplain.units import Sign, Source

if TYPE_CHECKING:
    from torch import Tensor

    from neuroexplain.subject.load import Subject

Slices: TypeAlias = "Iterable[tuple[slice, Tensor]]"  # units, and their activations [batch, seq, units]: all of a width in turn


class SourceKind(Protocol):
    """A kind of unit."""

    activations: tuple[str, ...]  # what can be read of it, as --activation names it; the first is the default
    sign: Sign  # which activations are collected unless told

    def find(self, subject: Subject, layer: int, activation: str) -> Source:
        """Where a layer's units are read. Raises NeuroexplainError where the model has no such place."""
        ...

    def encode(self, subject: Subject, source: Source, values: Tensor) -> Slices:
        """What was read at the module, [batch, seq, any], as the units' activations: of all units at once, or in slices.

        A slice's tensor is read before the next is made, so a wide source need never be whole in memory.
        """
        ...

    def write_vectors(self, subject: Subject, source: Source) -> Tensor | None:
        """What each unit adds to the residual stream, [width, d_model]; None where it writes nothing."""
        ...


SOURCES: Registry[SourceKind] = Registry("sources", "KIND", "source")


def find_sources(subject: Subject, kind: str, activation: str, layers: Iterable[int]) -> dict[int, Source]:
    """Each layer's source, by layer."""
    found = SOURCES.load(kind, "--source")
    return {layer: found.find(subject, layer, activation) for layer in layers}


def whole(values: Tensor) -> Slices:
    """All units at once: what was read are the units' activations."""
    return ((slice(0, values.shape[-1]), values),)


def dense_slices(indices: Tensor, values: Tensor, width: int, at_once: int) -> Iterator[tuple[slice, Tensor]]:
    """Sparse activations as dense ones, `at_once` units at a time.

    indices [batch, seq, n] int64 names units of 0..width, each at most once a token; values [batch, seq, n] has their
    activations. All others are 0.
    """
    import torch

    for first in range(0, width, at_once):
        n = min(at_once, width - first)
        here = (indices >= first) & (indices < first + n)
        # What lies elsewhere is added to a place beyond the slice, which is cut off.
        dense = torch.zeros((*indices.shape[:-1], n + 1), dtype=values.dtype, device=values.device)
        dense.scatter_(-1, torch.where(here, indices - first, n), torch.where(here, values, 0))
        yield slice(first, first + n), dense[..., :n]
