"""A store to export from, its Parquet export, and a store to import into."""

import shutil

import pytest

from neuroexplain.formats.parquet import export_parquet
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run


@pytest.fixture(scope="module")
def store(hostile):
    with open_store(str(hostile / "x.db"), read_only=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def exported(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    list(export_parquet(store, load_run(store), folder))
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of an export, to be damaged."""
    shutil.copytree(exported, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def back(tmp_path):
    with open_store(str(tmp_path / "back.db"), create=True) as opened:
        yield opened
