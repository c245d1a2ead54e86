"""Where a database lies decides whether it has a write-ahead log."""

import sqlite3

import pytest

from neuroexplain.errors import NeuroexplainError
from neuroexplain.store import file_systems
from neuroexplain.store.engine import open_store
from neuroexplain.store.file_systems import find_type, is_on_network

MOUNTS = r"""overlay / overlay rw 0 0
proc /proc proc rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sda1 /home/me/local ext4 rw 0 0
host:/a /mnt/with\040space lustre rw 0 0
tmpfs /twice tmpfs rw 0 0
//server/share /twice cifs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "overlay"),
        ("/tmp/x", "overlay"),
        ("/home", "nfs4"),
        ("/home/me/runs", "nfs4"),
        ("/home/me/local/runs", "ext4"),
        ("/homework", "overlay"),
        ("/mnt/with space/x", "lustre"),
        ("/twice", "cifs"),
    ],
)
def test_the_deepest_mount_tells_the_type(folder, kind):
    assert find_type(folder, MOUNTS) == kind


def test_without_a_mount_there_is_no_type():
    assert find_type("/x", "") is None
    assert find_type("/x", "nonsense\n\n") is None


@pytest.mark.parametrize(
    ("kind", "is_network"),
    [
        ("nfs", True),
        ("nfs4", True),
        ("lustre", True),
        ("fuse.sshfs", True),
        ("gpfs", True),
        ("ext4", False),
        ("fuse.fuse-overlayfs", False),
        ("nfsd", False),
    ],
)
def test_a_shared_database_has_a_journal_and_no_log(tmp_path, monkeypatch, kind, is_network):
    (tmp_path / "mounts").write_text(f"x {tmp_path} {kind} rw 0 0\n")
    monkeypatch.setattr(file_systems, "MOUNTS", tmp_path / "mounts")
    file = tmp_path / "x.db"
    assert is_on_network(file) == is_network
    with open_store(str(file), create=True) as store, store.write() as connection:
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    assert mode == ("delete" if is_network else "wal")


def test_a_database_that_was_copied_to_a_shared_folder_loses_its_log(tmp_path, monkeypatch):
    file = tmp_path / "x.db"
    open_store(str(file), create=True).close()
    (tmp_path / "mounts").write_text(f"x {tmp_path} nfs4 rw 0 0\n")
    monkeypatch.setattr(file_systems, "MOUNTS", tmp_path / "mounts")
    with sqlite3.connect(file) as reader:
        reader.execute("SELECT * FROM runs")
        with pytest.raises(NeuroexplainError, match="another process uses it"):
            open_store(str(file))
    reader.close()
    with open_store(str(file)) as store, store.bulk_writing(), store.write() as connection:
        connection.exec_driver_sql("SELECT 1")
    assert sqlite3.connect(file).execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_without_a_list_of_mounts_a_folder_counts_as_local(tmp_path, monkeypatch):
    monkeypatch.setattr(file_systems, "MOUNTS", tmp_path / "missing")
    assert not is_on_network(tmp_path / "x.db")
