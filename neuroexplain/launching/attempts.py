"""The files of a shard that several workers may try to compute, one after the other or at the same time.

Each attempt has a file of its own, so a worker that is thought dead and is not cannot spoil another's. It
goes on from the newest attempt before. The first attempt that is whole gets the shard's own name; nothing
else has it, so a file of this name is whole.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path


def begin_attempt(final: Path) -> Path:
    """The file of a new attempt at the shard's file `final`, with what the newest attempt before had done.

    Copied are the database, as of its last transaction, and the checkpoint beside it.
    """
    new = final.with_name(f"{final.stem}.attempt-{secrets.token_hex(4)}.db")
    for before in sorted(list_attempts(final), key=_modified, reverse=True):
        if _copy(before, new):
            return new
        _remove(new)
    return new


def keep_attempt(attempt: Path, final: Path) -> None:
    """Give a whole attempt the shard's name, unless another one has it, and remove all attempts' files."""
    try:
        os.link(attempt, final)  # only one can succeed
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not final.exists():
            attempt.rename(final)
    for file in list_attempts(final):
        _remove(file)


def list_attempts(final: Path) -> list[Path]:
    """The databases of the attempts at a shard's file."""
    if not final.parent.is_dir():
        return []
    begin = f"{final.stem}.attempt-"
    return [f for f in final.parent.iterdir() if f.name.startswith(begin) and f.name.endswith(".db")]


def _modified(file: Path) -> float:
    """When an attempt last wrote: to its database, or a checkpoint."""
    times = [0.0]
    for path in [file, *_beside(file)]:
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)


def _copy(before: Path, new: Path) -> bool:
    """Whether an attempt could be copied: if not, it is begun anew."""
    try:
        with (
            closing(sqlite3.connect(before, timeout=30)) as source,
            closing(sqlite3.connect(new)) as target,
        ):
            source.backup(target)
            is_sound: bool = target.execute("PRAGMA quick_check").fetchone() == ("ok",)
        for path in _beside(before):
            if path.name.endswith(".checkpoint"):
                shutil.copyfile(path, new.with_name(new.name + path.name.removeprefix(before.name)))
    except (sqlite3.Error, OSError):
        return False
    return is_sound


def _beside(file: Path) -> list[Path]:
    """Log, journal, checkpoint and lock of a database."""
    return [f for f in file.parent.iterdir() if f.name.startswith(f"{file.name}") and f != file]


def _remove(file: Path) -> None:
    for path in [*_beside(file), file]:
        path.unlink(missing_ok=True)
