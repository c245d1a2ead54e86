"""A collected run of a tiny model, and what explains and scores it."""

import json
import sqlite3

import pytest

from neuroexplain.collecting.run import run_collect
from neuroexplain.config import CollectConfig
from neuroexplain.llm.local import LocalEngine
from neuroexplain.scorers.digits import DigitsSimulator
from neuroexplain.scorers.lexical import LexicalSimulator
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from tests.answering import AnsweringServer
from tests.fakes import tiny_subject, words


@pytest.fixture(scope="session")
def collected(tmp_path_factory):
    """A folder with a tiny model and a database that holds its collected neurons."""
    folder = tmp_path_factory.mktemp("collected")
    write_documents(folder / "text.jsonl", 120)
    model = tiny_subject(folder / "model")
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = 4096  # a prompt with eight crops of this text takes 2,100 tokens
    (model / "config.json").write_text(json.dumps(config))
    collect(folder, folder / "x.db", str(model))
    return folder


def write_documents(file, n):
    """n documents of 250 words, so that there are many passages."""
    file.write_text("".join(json.dumps({"text": words(250, seed=i)}) + "\n" for i in range(n)))


def collect(folder, db, model, **options):
    config = CollectConfig(model=model, dataset=(str(folder / "text.jsonl"),), positions=(32, 97), **options)
    with open_store(str(db), create=True) as store:
        list(run_collect(store, config))


@pytest.fixture(scope="session")
def collected_before(collected):
    """As an earlier version left it: records without splits and without samples."""
    file = collected / "old.db"
    collect(collected, file, str(collected / "model"), sampled_records=0)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE runs SET split_rule = 'ranks', split_segments = '{}'")
        connection.execute("UPDATE segments SET split = NULL")
    connection.close()
    return file


@pytest.fixture(scope="session")
def local(collected):
    return LocalEngine(str(collected / "model"))


@pytest.fixture
def store(collected, tmp_path):
    (tmp_path / "x.db").write_bytes((collected / "x.db").read_bytes())
    with open_store(str(tmp_path / "x.db")) as opened:
        yield opened


@pytest.fixture
def old_store(collected_before, tmp_path):
    (tmp_path / "old.db").write_bytes(collected_before.read_bytes())
    with open_store(str(tmp_path / "old.db")) as opened:
        yield opened


@pytest.fixture(params=["lexical", "digits"])
def scorer(request, local, store):
    return (
        DigitsSimulator(local)
        if request.param == "digits"
        else LexicalSimulator(local, load_run(store).tokenizer_sha256)
    )


@pytest.fixture
def serve(collected):
    """Starts servers, and ends them with the test."""
    servers = []

    def start(**answers):
        servers.append(AnsweringServer(collected / "model", **answers))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
