"""The subject: a loaded model whose units are studied, and the modules at which they are read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from neuroexplain.errors import NeuroexplainError
from neuroexplain.subject.families import Family
from neuroexplain.units import Source


@dataclass(frozen=True)
class Subject:
    """A model under study: its body without the head, its tokenizer, and where its family keeps its parts."""

    name: str
    revision: str | None
    model: nn.Module  # the base model: token ids -> hidden states
    tokenizer: Any
    family: Family
    layers: list[nn.Module]
    unembedding: Tensor  # [vocab, d_model]
    d_mlp: int
    # What sources read of files to encode with, by source: freed with the model.
    encoders: dict[Source, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.unembedding.dtype

    @property
    def dtype_name(self) -> str:
        """The dtype as a run stores it: float32, bfloat16, float16."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        return self.unembedding.device

    @property
    def n_heads(self) -> int:
        config: Any = self.model.config
        return int(config.num_attention_heads)

    @cached_property
    def weights_sha256(self) -> str:
        """A hash of 64 values or more of each tensor of the model, in bfloat16 whatever the dtype.

        It tells models of one name with different weights apart.
        """
        tensors = (tensor.flatten() for tensor in self.model.state_dict().values())
        sample = torch.cat([tensor[:: max(1, len(tensor) // 64)].bfloat16() for tensor in tensors])
        return hashlib.sha256(sample.float().cpu().numpy().astype("<f4").tobytes()).hexdigest()

    def path(self, layer: int, below: str = "") -> str:
        """The path of a layer, or of a module below it, from the base model."""
        return ".".join(filter(None, (self.family.layers, str(layer), below)))

    def module(self, path: str) -> nn.Module:
        """The module at a path from the base model. Raises NeuroexplainError if it does not exist."""
        try:
            module: nn.Module = attribute_at(self.model, path)
        except AttributeError as error:
            raise NeuroexplainError(f"{self.name} has no module {path}: {error}.") from error
        return module

    def projection(self, layer: int, below: str) -> Tensor:
        """What each input of a linear module below a layer adds to the module's output, [inputs, outputs]."""
        linear = self.module(self.path(layer, below))
        weight: Tensor = linear.weight  # type: ignore[assignment]
        return weight if type(linear).__name__ == "Conv1D" else weight.T

    def norm_weight(self) -> Tensor:
        """The final norm's factors, [d_model]; ones if the model has no final norm or no factors."""
        weight: Tensor | None = getattr(attribute_at(self.model, self.family.norm), "weight", None)
        if weight is None:
            return torch.ones_like(self.unembedding[0])
        return weight + 1 if self.family.norm_adds_one else weight


def attribute_at(module: Any, path: str) -> Any:
    """The attribute at a dotted path. Raises AttributeError."""
    for name in path.split("."):
        module = getattr(module, name)
    return module
