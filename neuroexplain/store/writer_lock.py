"""One writer of a run at a time: a file beside the database, locked by the operating system.

The lock ends with the process, however that ends, so nothing is left to clean up. The file says who holds it.
A database on a server is not locked: its transactions keep it whole, but two commands may do the same work
twice.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuroexplain.errors import NeuroexplainError
from neuroexplain.store.engine import Store


@contextmanager
def writer_lock(store: Store, what: str, command: str) -> Iterator[None]:
    """Hold the lock of `what`, like `run 3`. Raises NeuroexplainError, naming the holder, if another has
    it.
    """
    if store.file is None:
        yield
        return
    path = store.beside(f"{what.replace(' ', '-')}.lock")
    descriptor = _acquire(path, store.name, what)
    try:
        since = time.strftime("%Y-%m-%d %H:%M")
        holder = f"neuroexplain {command}, process {os.getpid()} on {socket.gethostname()}, since {since}"
        os.ftruncate(descriptor, 0)
        os.write(descriptor, holder.encode("utf-8", "replace"))
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still locked: no other process can have taken it
        os.close(descriptor)


def _acquire(path: Path, name: str, what: str) -> int:
    """The descriptor of the locked file."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise NeuroexplainError(
                f"Cannot write beside {name}: {error.strerror}. Copy the database to a folder that can be "
                "written to."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 500).decode("utf-8", "replace") or "another process"
            os.close(descriptor)
            raise NeuroexplainError(
                f"Somebody writes to {what} of {name} already: {holder}.\nWait until it ends, or stop it."
            ) from error
        except OSError:  # a file system without locks: better unlocked than not at all
            return descriptor
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)  # the holder before removed the file meanwhile
