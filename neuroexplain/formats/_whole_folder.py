"""What an export writes appears when it is whole, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuroexplain.errors import NeuroexplainError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `folder` at the end; it is removed where that is not reached.

    Raises NeuroexplainError where `folder` exists or cannot be written.
    """
    if folder.exists():
        raise NeuroexplainError(f"{folder} exists already. Name a folder that does not.")
    try:
        around = Path(
            tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)
        )  # a name that nobody has
        try:
            partial = around / folder.name
            partial.mkdir()  # with the rights that any new folder has
            yield partial
            partial.rename(folder)
        finally:
            shutil.rmtree(around, ignore_errors=True)
    except OSError as error:
        raise NeuroexplainError(f"Cannot write {folder}: {error.strerror or error}.") from error
