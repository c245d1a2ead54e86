"""The files of an export and their hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path

CARD = "README.md"


def list_files(folder: Path) -> dict[str, Path]:
    """The Parquet files by their path in the folder, in ascending order."""
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.glob("*/*.parquet"))}


def sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
