"""Which file system a file lies on: SQLite's write-ahead log needs memory that all its users share, so it
does not work over a network.
"""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path, PurePosixPath

from neuroexplain.errors import NeuroexplainError

MOUNTS = Path("/proc/self/mounts")  # Linux
NETWORK_TYPES = re.compile(
    r"(nfs\d*|cifs|smb\w*|lustre|gpfs|beegfs\w*|ceph|glusterfs|afs|9p|pvfs2|orangefs|panfs|wekafs|ocfs2|gfs2|"
    r"fuse\.(?!fuse-overlayfs|snapfuse|portal).*)"
)


def is_on_network(file: Path) -> bool:
    """Whether several machines may share the file's folder. False where mounts cannot be listed."""
    try:
        mounts = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    kind = find_type(str(file.absolute().parent.resolve()), mounts)
    return kind is not None and NETWORK_TYPES.fullmatch(kind) is not None


def drop_log_on_network(file: Path, name: str) -> None:
    """Let a database that was copied to a network file system do without its write-ahead log from now on.

    Raises NeuroexplainError if another process uses it meanwhile.
    """
    if not has_log(file) or not is_on_network(file) or not os.access(file, os.W_OK):
        return
    with closing(sqlite3.connect(file, timeout=5)) as connection:
        try:
            connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError as error:
            raise NeuroexplainError(
                f"{name} lies on a network file system, where its write-ahead log does not work, and another "
                f"process uses it ({error}). Stop that process, and run the same command again."
            ) from error


def has_log(file: Path) -> bool:
    """Whether a database is to be used with a write-ahead log: bytes 18 and 19 of its header say so."""
    with file.open("rb") as opened:
        return opened.read(20)[18:] == b"\x02\x02"


def find_type(folder: str, mounts: str) -> str | None:
    """The type of the file system that holds a folder, from the lines of /proc/self/mounts (pure)."""
    best: tuple[int, str] | None = None
    for line in mounts.splitlines():
        _, place, kind, *_ = [*line.split(" "), "", "", ""]
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), place)
        depth = len(PurePosixPath(place).parts)
        # The last one of those mounted on a place hides the others.
        if kind and PurePosixPath(folder).is_relative_to(place) and (best is None or depth >= best[0]):
            best = depth, kind
    return None if best is None else best[1]
