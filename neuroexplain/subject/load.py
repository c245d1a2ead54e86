"""A model's name -> the loaded model: any causal language model, or a subject of a known family."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.tuning import keep_freed_memory
from neuroexplain.subject.device import choose_device, choose_dtype
from neuroexplain.subject.families import find_family
from neuroexplain.subject.model import Subject, attribute_at
from neuroexplain.subject.pretrained import UNREADABLE, cannot_load, pretrained_arguments
from neuroexplain.subject.weights import count_weight_bytes


class LoadedModel(NamedTuple):
    """A causal language model of Transformers with its tokenizer."""

    model: Any
    tokenizer: Any
    revision: str | None


def load_subject(
    name: str,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> Subject:
    """Load a model to study from a hub name, a folder or a .gguf file.

    Raises NeuroexplainError if it cannot be loaded, does not fit in memory, is of an unknown family or is
    quantized: packed weights cannot be read as numbers.
    """
    if not name.endswith(".gguf"):
        config = _find_config(name, revision, trust_remote_code)
        if config is not None:
            find_family(config, name)  # raises before the weights are read
            _check_not_quantized(config, name)
    return subject_of(
        name, load_causal_lm(name, dtype, device, revision, trust_remote_code=trust_remote_code)
    )


def subject_of(name: str, loaded: LoadedModel) -> Subject:
    """A loaded model as one to study. Raises NeuroexplainError if it is of an unknown family."""
    model, tokenizer, revision = loaded
    family = find_family(model.config, name)
    body = model.base_model
    layers = list(attribute_at(body, family.layers))
    try:
        down = attribute_at(layers[0], family.down)
        attribute_at(layers[0], family.activation)
    except AttributeError as error:
        raise NeuroexplainError(
            f"{name} calls itself {model.config.model_type!r}, but has no {family.activation} "
            f"or {family.down}: {error}"
        ) from error
    is_conv = type(down).__name__ == "Conv1D"
    return Subject(
        name=name,
        revision=revision,
        model=body,
        tokenizer=tokenizer,
        family=family,
        layers=layers,
        unembedding=model.get_output_embeddings().weight.detach(),
        d_mlp=int(down.weight.shape[0] if is_conv else down.weight.shape[1]),
    )


def load_causal_lm(
    name: str,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """The model of a hub name, a folder or a .gguf file, in evaluation mode.

    Raises NeuroexplainError if it cannot be loaded or does not fit in memory.
    """
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(dtype, torch_device)
    folder, arguments = pretrained_arguments(name, revision, trust_remote_code)
    _check_memory(name, torch_dtype, torch_device)
    if torch_device.type == "cpu":
        keep_freed_memory()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **arguments)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch_dtype, **arguments)
    except (*UNREADABLE, SafetensorError) as error:
        raise cannot_load("model", name, error) from error
    if hasattr(model.config, "quantization_config") and name.endswith(".gguf"):
        del model.config.quantization_config  # loading has unpacked the weights
    model.eval().requires_grad_(False)
    # Not `.to(dtype)`: that would round the frequencies of the positions, which stay float32.
    loaded_revision = getattr(model.config, "_commit_hash", None) or revision
    return LoadedModel(model.to(torch_device), tokenizer, loaded_revision)


def _find_config(name: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The model's configuration; None if it cannot be read: loading the model gives a better message."""
    from transformers import AutoConfig

    folder, arguments = pretrained_arguments(name, revision, trust_remote_code)
    try:
        return AutoConfig.from_pretrained(folder, **arguments)
    except (OSError, ValueError, KeyError):
        return None


def _check_not_quantized(config: Any, name: str) -> None:
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        settings = quantization if isinstance(quantization, dict) else vars(quantization)
        raise NeuroexplainError(
            f"{name} is quantized ({settings.get('quant_method', 'unknown method')}): its weights are packed "
            "and cannot be read as numbers. Give the checkpoint that is not quantized, or a .gguf file, "
            "which is unpacked. Quantized models can explain and score:  --local"
        )


def _check_memory(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Raise NeuroexplainError if a local model's weights take more bytes than are free."""
    import psutil

    needed = count_weight_bytes(Path(name), dtype.itemsize)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise NeuroexplainError(
            f"{name} does not fit: its weights take about {needed / 2**30:.1f} GiB; {device} has "
            f"{free / 2**30:.1f} GiB free."
        )
