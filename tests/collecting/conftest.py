"""A tiny model, a small corpus, and what one undisturbed run makes of them."""

import json

import pytest

from neuroexplain.collecting.run import run_collect
from neuroexplain.config import CollectConfig
from neuroexplain.store.engine import open_store
from tests.fakes import tiny_subject, words
from tests.runs import content


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny model, a corpus with repeated documents, and the options that the tests collect with."""
    folder = tmp_path_factory.mktemp("made")
    tiny_subject(folder / "model")
    texts = [words(n, seed=n) for n in (150, 400, 90, 700, 800, 900)] + [words(300, seed=9)] * 3
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = {
        "model": str(folder / "model"),
        "dataset": (str(folder / "text.jsonl"),),
        "top_k": 4,
        "sign": "both",
    }
    return folder, options | {
        "random_records": 5,
        "sampled_records": 10,
        "batch_size": 2,
        "checkpoint_every": 1e-6,
    }


@pytest.fixture(scope="module")
def undisturbed(made, tmp_path_factory):
    db = tmp_path_factory.mktemp("whole") / "x.db"
    with open_store(str(db), create=True) as store:
        list(run_collect(store, CollectConfig(**made[1])))
    return content(db)[0]
