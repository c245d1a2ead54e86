"""A hook's name -> the module at which a model is read: names of TransformerLens, and paths of modules.

In a Hugging Face decoder: `blocks.N.hook_resid_pre` is the input of layer N, `hook_resid_post` its output,
`hook_resid_mid` the input of the norm before the MLP, `hook_attn_out` and `hook_mlp_out` what attention and
MLP add (in Gemma after norms of their own), `attn.hook_z` the input of the attention's output projection,
`mlp.hook_in` and `mlp.hook_post` the inputs of the MLP and of its down-projection, `ln2.hook_normalized` the
MLP's norm before its factors. A path such as `model.layers.3.mlp.output` is a module and its side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuroexplain.errors import NeuroexplainError
from neuroexplain.subject.model import Subject

Side = Literal["input", "output"]
NORMALIZED = "ln2.hook_normalized"
_EPSILONS = ("variance_epsilon", "eps")  # names of what a norm adds to the variance
_HOOK = re.compile(r"blocks\.(\d{1,4})\.([\w.]+)")


@dataclass(frozen=True)
class Site:
    """A place in a model: a layer, and what enters or leaves a module."""

    layer: int
    module: str  # path from the base model
    side: Side
    is_normalized: bool = False  # whether it is read as the module, a norm, has it before its factors


@dataclass(frozen=True)
class Parts:
    """Modules below a layer."""

    mlp_norm: str = "post_attention_layernorm"
    mlp: str = "mlp"
    mlp_out: str = "mlp"  # its output is what the MLP adds
    attention_out: str = "self_attn"  # its output is what attention adds


_GEMMA_2 = Parts(
    mlp_norm="pre_feedforward_layernorm",
    mlp_out="post_feedforward_layernorm",
    attention_out="post_attention_layernorm",
)
PARTS: Mapping[str, Parts] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), Parts()),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA_2),
    "gpt2": Parts(mlp_norm="ln_2", attention_out="attn"),
    "gpt_neox": Parts(attention_out="attention"),
}


def find_site(subject: Subject, name: str) -> Site:
    """The place of a hook's name or of a module's path.

    Raises NeuroexplainError if the name is not known, or if the model has no such layer or module.
    """
    hook = _HOOK.fullmatch(name)
    site = _site_of_path(subject, name) if hook is None else _site_of_hook(subject, int(hook[1]), hook[2])
    if site.layer >= len(subject.layers):
        raise NeuroexplainError(
            f"{name} is in layer {site.layer}, and {subject.name} has {len(subject.layers)} layers, counted "
            "from 0: it is another model."
        )
    subject.module(site.module)  # raises if it does not exist
    return site


def width_at(subject: Subject, site: Site) -> int:
    """How many numbers are read at a token."""
    weight = getattr(subject.module(site.module), "weight", None)
    if weight is None or weight.ndim < 2:
        return subject.unembedding.shape[1]
    inputs_first = type(subject.module(site.module)).__name__ == "Conv1D"
    return int(weight.shape[0] if inputs_first == (site.side == "input") else weight.shape[1])


def added_to_stream(
    subject: Subject, site: Site, vectors: Float[Tensor, "n width"]
) -> Float[Tensor, "n d_model"] | None:
    """What vectors at the site add to the residual stream; None where they are not added to it.

    Before the output projection of attention or MLP that is what the projection makes of them.
    """
    module = subject.module(site.module)
    weight = getattr(module, "weight", None)
    if site.side == "input" and weight is not None and weight.ndim == 2:
        matrix = weight if type(module).__name__ == "Conv1D" else weight.T
        added: Tensor = vectors @ matrix.to(vectors)
        return added
    is_in_stream = site.side == "output" or module in subject.layers or _is_norm(module)
    return None if site.is_normalized or not is_in_stream else vectors


def normalized(norm: nn.Module, values: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
    """What a LayerNorm or an RMSNorm makes of the values before its factors, float32."""
    values = values.float()
    epsilon = next(float(getattr(norm, name)) for name in _EPSILONS if hasattr(norm, name))
    if isinstance(norm, nn.LayerNorm):
        values = values - values.mean(dim=-1, keepdim=True)
    return values * torch.rsqrt(values.square().mean(dim=-1, keepdim=True) + epsilon)


def _is_norm(module: nn.Module) -> bool:
    return any(hasattr(module, name) for name in _EPSILONS)


def _site_of_hook(subject: Subject, layer: int, hook: str) -> Site:
    config: Any = subject.model.config
    parts = PARTS.get(str(config.model_type))
    if parts is None:
        raise NeuroexplainError(
            f"{subject.name} is of the family {config.model_type!r}, in which the places of hooks are not "
            f"known: they are in {', '.join(PARTS)}."
        )
    family = subject.family
    places: dict[str, tuple[str, Side]] = {
        "hook_resid_pre": ("", "input"),
        "hook_resid_mid": (parts.mlp_norm, "input"),
        "hook_resid_post": ("", "output"),
        "hook_attn_out": (parts.attention_out, "output"),
        "hook_mlp_out": (parts.mlp_out, "output"),
        "attn.hook_z": (family.attention_out, "input"),
        "mlp.hook_in": (parts.mlp, "input"),
        "mlp.hook_post": (family.down, "input"),
        NORMALIZED: (parts.mlp_norm, "input"),
    }
    if getattr(config, "use_parallel_residual", False):
        del places["hook_resid_mid"]  # MLP and attention read the same: nothing is between them
    if hook not in places:
        raise NeuroexplainError(
            f"blocks.{layer}.{hook} is no place that is read of {subject.name}. There is {', '.join(places)}."
        )
    below, side = places[hook]
    return Site(layer, subject.path(layer, below), side, hook == NORMALIZED)


def _site_of_path(subject: Subject, name: str) -> Site:
    """`model.layers.3.mlp.output`, with or without what is above the layers."""
    list_name = subject.family.layers.rpartition(".")[2]
    match = re.fullmatch(rf"(?:[\w.]+\.)?{list_name}\.(\d{{1,4}})\.?([\w.]*?)\.?(input|output)", name)
    if match is None:
        raise NeuroexplainError(
            f"{name} is no hook's name like blocks.3.hook_resid_post and no module of {subject.name} like "
            f"{subject.path(3)}.output. Name the place that the dictionary reads:  --site HOOK"
        )
    side: Side = "input" if match[3] == "input" else "output"
    return Site(int(match[1]), subject.path(int(match[1]), match[2]), side)
