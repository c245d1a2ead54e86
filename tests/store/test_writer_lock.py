"""Two writers of a run: the second one is told who the first is; whoever ends leaves no lock."""

import errno
import signal
import subprocess
import sys

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
def store(tmp_path):
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        yield store


def test_the_second_writer_of_a_run_is_told_who_the_first_is(store):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, store.name], stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        message = (
            rf"run 1 of .*x\.db already: neuroexplain explain, process {first.pid} on .*, since \d{{4}}-"
        )
        with pytest.raises(NeuroexplainError, match=message), writer_lock(store, "run 1", "score"):
            pass
        with writer_lock(store, "run 2", "explain"):  # another run is free
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
    with writer_lock(store, "run 1", "score"):
        pass
    assert not list(store.file.parent.glob("*.lock"))


def test_a_read_only_disk_is_one_message(store, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(writer_lock_module.os, "open", refuse)
    message = r"Cannot write beside .*Read-only file system.*Copy the database"
    with pytest.raises(NeuroexplainError, match=message), writer_lock(store, "run 1", "score"):
        pass
