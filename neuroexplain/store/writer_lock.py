"""One writer of a run at a time: a file beside the database, locked by the operating system.

The lock ends with the process, however that ends, so nothing is left to clean up. The file says who holds it.
A database on a PostgreSQL server has an advisory lock instead. It ends with its connection, whose application
name says who holds it.
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
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.engine import Store

SERVER_NAME_LENGTH = 63  # PostgreSQL cuts longer application names


@contextmanager
def writer_lock(store: Store, what: str, command: str, *, is_shared: bool = False) -> Iterator[None]:
    """Hold the lock of `what`, like `run 3`. Raises NeuroexplainError, naming the holder, if another has
    it.

    With `is_shared`, others that ask so may hold it too, on a PostgreSQL server: see store/leases.py.
    """
    since = time.strftime("%Y-%m-%d %H:%M")
    holder = f"neuroexplain {command}, process {os.getpid()} on {socket.gethostname()}, since {since}"
    with (
        _server_lock(store, what, holder, is_shared)
        if store.file is None
        else _file_lock(store, what, holder)
    ):
        yield


@contextmanager
def _file_lock(store: Store, what: str, holder: str) -> Iterator[None]:
    path = store.beside(f"{what.replace(' ', '-')}.lock")
    descriptor = _acquire(path, store, what)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, holder.encode("utf-8", "replace"))
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still locked: no other process can have taken it
        os.close(descriptor)


@contextmanager
def _server_lock(store: Store, what: str, holder: str, is_shared: bool) -> Iterator[None]:
    from sqlalchemy import text

    key = stable_hash("writer", what) % 2**31  # of this database alone: advisory locks are a database's own
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        lock = "pg_try_advisory_lock_shared" if is_shared else "pg_try_advisory_lock"
        if not connection.scalar(text(f"SELECT {lock}(:key)"), {"key": key}):
            other = connection.scalar(
                text(
                    "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid)"
                    " WHERE locktype = 'advisory' AND objid = :key AND pg_locks.granted"
                    " AND datname = current_database() AND pg_locks.database = datid"
                ),
                {"key": key},
            )
            raise _busy(store, what, other)
        name = {"name": holder.encode("ascii", "replace")[:SERVER_NAME_LENGTH].decode()}
        connection.execute(text("SELECT set_config('application_name', :name, false)"), name)
        try:
            yield
        finally:
            connection.invalidate()  # closed, not given back to the pool: the lock and the name end with it


def _busy(store: Store, what: str, holder: str | None) -> NeuroexplainError:
    return NeuroexplainError(
        f"Somebody writes to {what} of {store.name} already: {holder or 'another process'}.\n"
        "Wait until it ends, or stop it."
    )


def _acquire(path: Path, store: Store, what: str) -> int:
    """The descriptor of the locked file."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise NeuroexplainError(
                f"Cannot write beside {store.name}: {error.strerror}. Copy the database to a folder that "
                "can be written to."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 500).decode("utf-8", "replace")
            os.close(descriptor)
            raise _busy(store, what, holder) from error
        except OSError:  # a file system without locks: better unlocked than not at all
            return descriptor
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)  # the holder before removed the file meanwhile
