"""Where each model family keeps its layers, its MLP, its attention's output and its final norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neuroexplain.errors import NeuroexplainError
from neuroexplain.units import SEGMENT_LENGTH


@dataclass(frozen=True)
class Family:
    """Paths of attributes: `layers` and `norm` from the base model, the others from one layer."""

    layers: str = "layers"
    activation: str = "mlp.act_fn"  # its output is `act`
    down: str = "mlp.down_proj"  # its input is `post`
    attention_out: str = "self_attn.o_proj"  # its input holds the heads' outputs
    norm: str = "norm"
    norm_adds_one: bool = False  # the norm multiplies by 1 + weight


LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "olmo2", "granite", "smollm3", "stablelm")
FAMILIES = {
    **dict.fromkeys(LLAMA_LIKE, Family()),
    "gemma": Family(norm_adds_one=True),
    "gemma2": Family(norm_adds_one=True),
    "gemma3_text": Family(norm_adds_one=True),
    "phi3": Family(activation="mlp.activation_fn"),
    "phi": Family(
        activation="mlp.activation_fn",
        down="mlp.fc2",
        attention_out="self_attn.dense",
        norm="final_layernorm",
    ),
    "starcoder2": Family(activation="mlp.act", down="mlp.c_proj"),
    "gpt2": Family(
        layers="h", activation="mlp.act", down="mlp.c_proj", attention_out="attn.c_proj", norm="ln_f"
    ),
    "gpt_neox": Family(
        activation="mlp.act",
        down="mlp.dense_4h_to_h",
        attention_out="attention.dense",
        norm="final_layer_norm",
    ),
    "falcon": Family(
        layers="h",
        activation="mlp.act",
        down="mlp.dense_4h_to_h",
        attention_out="self_attention.dense",
        norm="ln_f",
    ),
    "opt": Family(
        layers="decoder.layers",
        activation="activation_fn",
        down="fc2",
        attention_out="self_attn.out_proj",
        norm="decoder.final_layer_norm",
    ),
}
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")  # names in configurations


def find_family(config: Any, name: str) -> Family:
    """The family of a Transformers configuration.

    Raises NeuroexplainError for a family that is not in FAMILIES, for a mixture of experts, and for a model
    that reads less than one segment at once. `name` is the model's, for the message.
    """
    model_type, known = config.model_type, ", ".join(sorted(FAMILIES))
    for key in EXPERT_COUNTS:
        if getattr(config, key, None):
            raise NeuroexplainError(
                f"{name} is a mixture of experts ({model_type}, {key} {getattr(config, key)}): not every "
                f"token reaches each of its MLP neurons, and neuroexplain reads one MLP a layer. "
                f"It reads {known}."
            )
    if model_type not in FAMILIES:
        raise NeuroexplainError(
            f"{name} is of the family {model_type!r}, whose MLP neuroexplain cannot find. It looks for a "
            f"list of layers with an activation module and a down-projection, and knows where they are in "
            f"{known}."
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and longest < SEGMENT_LENGTH:
        raise NeuroexplainError(f"{name} reads {longest} tokens at once; a segment has {SEGMENT_LENGTH}.")
    return FAMILIES[model_type]
