"""What a collection has kept so far, in one file that is always whole: the old one or the new one."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from neuroexplain.errors import NeuroexplainError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the state (tensors, numbers, strings) beside the file, then put it in its place.

    Raises NeuroexplainError where it cannot be written; the checkpoint before stays as it was.
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
        kept = (
            "The one before is intact: make room and run the same command again."
            if path.exists()
            else "Make room first."
        )
        raise NeuroexplainError(f"Could not write the checkpoint {path}: {error}. {kept}") from error


def find_checkpoint(path: Path) -> dict[str, Any] | None:
    """The saved state with its tensors on the CPU; None where there is none. Raises NeuroexplainError where it is broken."""
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise NeuroexplainError(
            f"Cannot read the checkpoint {path}: {error}. Delete it to start over."
        ) from error
    return found
