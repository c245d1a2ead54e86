"""Write a folder that appears when it is complete, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuroexplain.errors import NeuroexplainError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into. It is renamed to `folder` at the end, or removed if an error occurs.

    Raises NeuroexplainError if `folder` exists or cannot be written.
    """
    if folder.exists():
        raise NeuroexplainError(f"{folder} exists already. Give the name of a new folder.")
    try:
        outer = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))  # a name not in use
        try:
            partial = outer / folder.name
            partial.mkdir()  # mkdtemp lets only its owner read; this folder has the usual rights
            yield partial
            partial.rename(folder)
        finally:
            shutil.rmtree(outer, ignore_errors=True)
    except OSError as error:
        raise NeuroexplainError(f"Cannot write {folder}: {error.strerror or error}.") from error
