"""A collected run of a tiny model, and what explains and scores it."""

import pytest

from neuroexplain.collecting.run import run_collect
from neuroexplain.config import CollectConfig
from neuroexplain.llm.local import LocalEngine
from neuroexplain.scorers.digits import DigitsSimulator
from neuroexplain.scorers.lexical import LexicalSimulator
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from tests.fakes import tiny_subject, words


@pytest.fixture(scope="session")
def collected(tmp_path_factory):
    """A folder with a tiny model and a database that holds its collected neurons."""
    folder = tmp_path_factory.mktemp("collected")
    (folder / "text.txt").write_text(words(30_000))
    model = str(tiny_subject(folder / "model"))
    with open_store(str(folder / "x.db"), create=True) as store:
        list(
            run_collect(
                store, CollectConfig(model=model, dataset=(str(folder / "text.txt"),), positions=(32, 97))
            )
        )
    return folder


@pytest.fixture(scope="session")
def local(collected):
    return LocalEngine(str(collected / "model"))


@pytest.fixture
def store(collected, tmp_path):
    (tmp_path / "x.db").write_bytes((collected / "x.db").read_bytes())
    with open_store(str(tmp_path / "x.db")) as opened:
        yield opened


@pytest.fixture(params=["lexical", "digits"])
def scorer(request, local, store):
    return (
        DigitsSimulator(local)
        if request.param == "digits"
        else LexicalSimulator(local, load_run(store).tokenizer_sha256)
    )
