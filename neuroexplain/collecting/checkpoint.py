"""A checkpoint file: the state of a collection, always whole, either the one before or the new one."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from neuroexplain.errors import NeuroexplainError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the state (tensors, numbers, strings) to a new file, then move that to the path.

    Raises NeuroexplainError if it cannot be written; the checkpoint before stays.
    """
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as opened:
            torch.save(state, opened)
            opened.flush()
            os.fsync(opened.fileno())
        new.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        new.unlink(missing_ok=True)
        advice = "Make room first."
        if path.exists():
            advice = "The one before is intact: make room and run the same command again."
        raise NeuroexplainError(f"Could not write the checkpoint {path}: {error}. {advice}") from error


def find_checkpoint(path: Path) -> dict[str, Any] | None:
    """The saved state with its tensors on the CPU; None if there is no file.

    Raises NeuroexplainError if the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise NeuroexplainError(
            f"Cannot read the checkpoint {path}: {error}. Delete it to start over."
        ) from error
    return state
