"""Two writers of a run: the second one is told who the first is; whoever ends leaves no lock."""

import errno
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from neuroexplain.errors import NeuroexplainError
from neuroexplain.store import writer_lock as writer_lock_module
from neuroexplain.store.engine import open_store
from neuroexplain.store.writer_lock import writer_lock

HOLD = """
import sys, time
from neuroexplain.store.engine import open_store
from neuroexplain.store.writer_lock import writer_lock
with open_store(sys.argv[1]) as store, writer_lock(store, "run 1", "explain"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def store(database):
    with open_store(database, create=True) as store:
        store.database = database
        yield store


def test_the_second_writer_of_a_run_is_told_who_the_first_is(store):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, store.database], stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        message = rf"run 1 of .* already: neuroexplain explain, process {first.pid} on "
        with pytest.raises(NeuroexplainError, match=message), writer_lock(store, "run 1", "score"):
            pass
        with writer_lock(store, "run 2", "explain"):  # another run is free
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
    for _ in range(100):  # a server notices the end of a connection a little later
        with suppress(NeuroexplainError), writer_lock(store, "run 1", "score"):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the lock outlived its holder")
    assert store.file is None or not list(store.file.parent.glob("*.lock"))


def test_a_read_only_disk_is_one_message(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    message = r"Cannot write beside .*Read-only file system.*Copy the database"
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        monkeypatch.setattr(writer_lock_module.os, "open", refuse)
        with pytest.raises(NeuroexplainError, match=message), writer_lock(store, "run 1", "score"):
            pass
