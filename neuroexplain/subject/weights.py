"""The memory that a model's weights will take, counted from its files before they are loaded."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

NUMBERS = {
    "F64",
    "F32",
    "F16",
    "BF16",
}  # types that are converted when they are loaded; others stay as stored
LARGEST_HEADER = 100 * 2**20  # bytes of a safetensors header to read, the library's own limit


def count_weight_bytes(model: Path, item_size: int) -> int:
    """Bytes of a model's weights as they are loaded, `item_size` bytes a number; 0 if they are not known.

    model: a folder or a .gguf file. Of a folder, the files that Transformers loads count, once.
    """
    if model.is_file():
        return _count_gguf(model, item_size)
    return sum(_count_file(file, item_size) for file in loaded_files(model))


def loaded_files(folder: Path) -> list[Path]:
    """The files with weights that Transformers loads: one format, its shards by the index where there is
    one.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            return sorted(_shards(index))
    return []


def _shards(index: Path) -> Iterable[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return []
    return [index.parent / name for name in names if (index.parent / name).is_file()]


def _count_file(file: Path, item_size: int) -> int:
    size = file.stat().st_size
    if file.suffix != ".safetensors":
        return size  # a pickle does not say what it holds
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length)) if length <= LARGEST_HEADER else {}
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        return sum(_tensor_bytes(tensor, item_size) for tensor in tensors) or size
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return size  # loading the file says what is wrong with it


def _tensor_bytes(tensor: Mapping[str, Any], item_size: int) -> int:
    begin, end = tensor["data_offsets"]
    n_stored: int = end - begin
    return math.prod(tensor["shape"]) * item_size if tensor["dtype"] in NUMBERS else n_stored


def _count_gguf(file: Path, item_size: int) -> int:
    """Numbers of a .gguf file are unpacked when it is loaded, whatever number of bits they have there."""
    from gguf import GGUFReader

    try:
        return sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors) * item_size
    except (OSError, ValueError, IndexError, KeyError):
        return 0  # loading the file says what is wrong with it
