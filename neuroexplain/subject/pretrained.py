"""A model's name -> the arguments of Transformers' `from_pretrained`, and its errors -> a message."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from neuroexplain.errors import NeuroexplainError

# What from_pretrained raises for files that it cannot read.
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, struct.error)


def pretrained_arguments(
    name: str, revision: str | None, trust_remote_code: bool = False
) -> tuple[str, dict[str, Any]]:
    """The folder or hub name and the keyword arguments for a hub name, a folder or a .gguf file.

    Without `trust_remote_code`, code that comes with a model is not run, and nobody is asked. Raises
    NeuroexplainError if a file or folder does not exist, or if the folder holds an adapter alone.
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
    if (path / "adapter_config.json").is_file():
        raise _is_adapter(path)
    arguments: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    return name, arguments if revision is None else arguments | {"revision": revision}


def cannot_load(kind: str, name: str, error: BaseException) -> NeuroexplainError:
    """The error for a model or tokenizer (the kind) that cannot be loaded, with the cause's first line."""
    if "trust_remote_code" in str(error):
        return NeuroexplainError(
            f"The {kind} {name} comes with code of its own, which is not run unless you allow it. Read that "
            "code, and if you trust it:  --trust-remote-code"
        )
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return NeuroexplainError(
        f"Cannot load the {kind} {name}: {reason}\nGive a folder, a .gguf file or a hub name."
    )


def _is_adapter(folder: Path) -> NeuroexplainError:
    """The error for a folder of PEFT: an adapter is no model until it is merged into its base model."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    return NeuroexplainError(
        f"{folder} holds an adapter (PEFT) of {base or 'another model'}, not a model. Merge the two with "
        f"PEFT and give the merged folder:  AutoPeftModelForCausalLM.from_pretrained({str(folder)!r})"
        ".merge_and_unload().save_pretrained(MERGED)"
    )
