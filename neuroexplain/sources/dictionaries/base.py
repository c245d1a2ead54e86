"""A dictionary, whose latents are units, and the protocol of a format in which dictionaries are saved.

A new format is a file in this folder with an object `FORMAT`, or a package's entry point in the group
`neuroexplain.sources.dictionaries`. No other file names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from neuroexplain.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from neuroexplain.sources.dictionaries._files import Folder

LatentKind = Literal["sae", "transcoder"]
Norm = Literal["none", "layer_norm", "constant_norm_rescale"]


@dataclass(frozen=True)
class Relu:
    """z where z > 0."""


@dataclass(frozen=True)
class JumpRelu:
    """z where z > 0 and z > threshold."""

    threshold: Tensor  # [n]


@dataclass(frozen=True)
class Gated:
    """relu(z * magnitude_scale + magnitude_bias) where z + gate_bias > 0."""

    gate_bias: Tensor  # [n]
    magnitude_scale: Tensor  # [n]
    magnitude_bias: Tensor  # [n]


@dataclass(frozen=True)
class TopK:
    """Of each token the k largest z, where they are above 0; of equal ones those with smaller numbers."""

    k: int


@dataclass(frozen=True)
class GroupMax:
    """The latents are k equal groups of neighbours; of each group the largest z, where it is above 0."""

    k: int


Rule: TypeAlias = Relu | JumpRelu | Gated | TopK | GroupMax


@dataclass(frozen=True)
class Entry:
    """One dictionary of a folder: what is known of it before its weights are read."""

    where: str  # its folder or file, from the root of the whole; empty: the root itself
    kind: LatentKind
    layer: int | None  # that it reads; None if the folder does not tell
    site: str | None  # what it reads: a hook's name (subject/sites.py), or a module and a side; None likewise
    written: str | None = None  # what it predicts; None: what it reads
    model: str | None = None  # the model that it was made for; None if the folder does not tell
    l0: float | None = None  # the published number of latents that are active at a token; None likewise


@dataclass(frozen=True)
class Dictionary:
    """An encoder, its rule, and what each latent writes; on one device, in the file's dtype.

    With x the values read: y = norm(x) * scale - pre_bias, z = y @ encoder.T + bias, latents = rule(z). The
    prediction is (latents @ write_vectors + output_bias) / written_scale + x @ skip; an SAE's norm is undone.
    """

    encoder: Tensor  # [n, d_in]
    bias: Tensor  # [n]
    rule: Rule
    write_vectors: Tensor  # [n, d_out]
    output_bias: Tensor  # [d_out]
    pre_bias: Tensor | None = None  # [d_in]
    norm: Norm = "none"
    scale: float = 1.0  # factor on what is read
    written_scale: float = 1.0  # factor on what is predicted
    skip: Tensor | None = None  # [d_in, d_out]
    zeroes_first: bool = False  # whether the first token of a text has no active latent

    @property
    def width(self) -> int:
        """The number of latents."""
        return len(self.encoder)

    @property
    def d_in(self) -> int:
        """The size of what is read at a token."""
        return self.encoder.shape[1]

    def on(self, device: torch.device) -> Dictionary:
        """The dictionary with all that encodes on a device. The write vectors stay where they are."""
        rule = self.rule
        tensors = {name: tensor.to(device) for name, tensor in _tensors_of(rule).items()}
        values = {name: value.to(device) for name, value in vars(self).items() if _is_tensor(value)}
        values["write_vectors"] = self.write_vectors
        return replace(self, rule=type(rule)(**vars(rule) | tensors), **values)

    def faults(self) -> list[str]:
        """What does not fit together in its tensors' shapes; empty if everything does."""
        if self.encoder.ndim != 2 or self.write_vectors.ndim != 2:
            shapes = f"{_shape(self.encoder)} and {_shape(self.write_vectors)}"
            return [f"encoder and decoder are to be matrices, and are {shapes}"]
        n, d_in = self.encoder.shape
        d_out = self.write_vectors.shape[1]
        expected: Mapping[str, tuple[Tensor | None, tuple[int, ...]]] = {
            "the encoder's bias": (self.bias, (n,)),
            "the decoder": (self.write_vectors, (n, d_out)),
            "the decoder's bias": (self.output_bias, (d_out,)),
            "the bias that is subtracted": (self.pre_bias, (d_in,)),
            "the skip connection": (self.skip, (d_in, d_out)),
            **{name.replace("_", " "): (x, (n,)) for name, x in _tensors_of(self.rule).items()},
        }
        faults = [
            f"{name} is {_shape(tensor)} in place of {list(shape)}"
            for name, (tensor, shape) in expected.items()
            if tensor is not None and tuple(tensor.shape) != shape
        ]
        if isinstance(self.rule, TopK | GroupMax) and not 1 <= self.rule.k <= n:
            faults.append(f"k is {self.rule.k}, with {n} latents")
        elif isinstance(self.rule, GroupMax) and n % self.rule.k:
            faults.append(f"{n} latents do not make {self.rule.k} equal groups")
        return faults


class Format(Protocol):
    """A way in which dictionaries are saved."""

    name: str  # the library or release, for messages
    files: str  # the files that tell it, for messages

    def find(self, folder: Folder) -> Iterable[Entry]:
        """The folder's dictionaries of this format. Reads names of files and configurations only.

        Raises NeuroexplainError for a configuration that cannot be read.
        """
        ...

    def read(self, folder: Folder, entry: Entry, input_scale: float | None) -> Dictionary:
        """One dictionary, on the CPU. input_scale: the user's factor on what is read; None: the folder tells.

        Raises NeuroexplainError for files that cannot be read, for an unknown architecture, and if anything
        is missing without which it would be read wrongly.
        """
        ...


FORMATS: Registry[Format] = Registry("sources.dictionaries", "FORMAT", "format")


def _tensors_of(rule: Rule) -> dict[str, Tensor]:
    return {name: value for name, value in vars(rule).items() if _is_tensor(value)}


def _is_tensor(value: object) -> bool:
    return hasattr(value, "ndim")


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
