"""A model's name -> the arguments of Transformers' `from_pretrained`, and its errors -> a message."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from neuroexplain.errors import NeuroexplainError

# What from_pretrained raises for files that it cannot read.
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, struct.error)


def pretrained_arguments(name: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """The folder or hub name and the keyword arguments for a hub name, a folder or a .gguf file.

    Raises NeuroexplainError if a file or folder does not exist.
    """
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


def cannot_load(kind: str, name: str, error: BaseException) -> NeuroexplainError:
    """The error for a model or tokenizer (the kind) that cannot be loaded, with the cause's first line."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return NeuroexplainError(
        f"Cannot load the {kind} {name}: {reason}\nGive a folder, a .gguf file or a hub name."
    )
