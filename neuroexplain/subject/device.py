"""The device and the dtype in which a model runs."""

from __future__ import annotations

import platform

import torch

from neuroexplain.errors import NeuroexplainError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str) -> torch.device:
    """The named device; `auto` is a GPU if there is one. Raises NeuroexplainError if it cannot be used."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise NeuroexplainError(
            f"The device {device!r} cannot be used: {reason}. Try --device cpu, cuda or auto."
        ) from error
    return chosen


def device_name(device: torch.device) -> str:
    """The name of the GPU, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The named dtype; `auto` is bfloat16 if the device computes in it, else float32.

    A processor that only emulates bfloat16 read 30 tokens/s in it and 510 in float32.
    """
    if dtype == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        return torch.bfloat16 if _processor_computes_in_bfloat16() else torch.float32
    if dtype not in DTYPES:
        raise NeuroexplainError(f"The dtype {dtype!r} is not one of {', '.join(DTYPES)}, auto.")
    return DTYPES[dtype]


def _processor_computes_in_bfloat16() -> bool:
    """Whether the processor has the instructions and oneDNN, which multiplies the matrices, may use them.

    ONEDNN_MAX_CPU_ISA can forbid it: with AVX2, a product in bfloat16 took 4.5 times that in float32.
    """
    return torch.cpu._is_avx512_bf16_supported() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
