"""The embedders in this process."""

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer

from neuroexplain.embedding import token_table
from neuroexplain.embedding.base import open_embedder
from neuroexplain.embedding.token_table import TokenTable
from neuroexplain.errors import NeuroexplainError

TEXTS = [
    "words about the sea",
    "",
    "a",
    "ships " * 300,
    "🜲 é \x00",
    "words about the sea",
    "<script>' OR 1=1",
]


@pytest.fixture(scope="module")
def table():
    return TokenTable.load()


@pytest.mark.parametrize("n", [1, 2, 3, 1_024])
def test_a_vector_does_not_depend_on_the_texts_beside_it(table, monkeypatch, n):
    at_once = table.embed(TEXTS)
    monkeypatch.setattr(token_table, "TEXTS_AT_ONCE", n)
    places = np.random.default_rng(n).permutation(len(TEXTS))
    assert np.array_equal(table.embed([TEXTS[i] for i in places]), at_once[places])


def test_a_vector_is_the_mean_of_its_tokens(table):
    for text, vector in zip(TEXTS, table.embed(TEXTS), strict=True):
        ids = table._tokenizer.encode(text, add_special_tokens=False).ids
        tokens = table._table[ids].astype(np.float64)
        assert vector == pytest.approx(tokens.mean(axis=0) if ids else np.zeros(256), abs=1e-5)


def test_its_vectors_are_those_of_the_package(table):
    """The package's own loader looks for its tokenizer in another folder and would download it."""
    from wordllama.inference import WordLlamaInference

    texts = [text for text in TEXTS if text]
    theirs = WordLlamaInference(table._table, Tokenizer.from_str(table._tokenizer.to_str())).embed(texts)
    assert table.embed(texts) == pytest.approx(theirs, abs=1e-5)


def test_the_package_is_read_and_not_imported():
    code = (
        "import sys; from neuroexplain.embedding.base import open_embedder; open_embedder().embed(['sea']);"
        "print([m for m in ('wordllama', 'requests', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_named_with_the_way_to_it(monkeypatch):
    monkeypatch.setattr(token_table, "find_spec", lambda name: None)
    with pytest.raises(NeuroexplainError, match=r"pip install 'neuroexplain\[search\]'"):
        open_embedder()


def test_a_package_without_its_table_is_named(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("wordllama", tmp_path / "__init__.py")
    monkeypatch.setattr(token_table, "find_spec", lambda name: spec)
    with pytest.raises(NeuroexplainError, match=r"has no weights/.*safetensors"):
        open_embedder()


class FakeSentenceTransformer:
    """As sentence_transformers.SentenceTransformer is called."""

    def __init__(self, name):
        if name == "none":
            raise OSError("none is not a local folder and is not a valid model identifier")
        self.value = np.nan if name == "broken" else 1.0

    def encode(self, sentences, *, show_progress_bar, convert_to_numpy):
        assert isinstance(sentences, list)
        assert not show_progress_bar
        return np.full((len(sentences), 3), self.value, np.float64)


def test_a_model_of_sentence_transformers(monkeypatch):
    package = SimpleNamespace(SentenceTransformer=FakeSentenceTransformer)
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    embedder = open_embedder("all-MiniLM-L6-v2")
    assert embedder.model == "sentence-transformers all-MiniLM-L6-v2"
    assert embedder.embed(("a", "b")).dtype == np.float32
    with pytest.raises(NeuroexplainError, match="--embedding none cannot be loaded"):
        open_embedder("none")
    with pytest.raises(NeuroexplainError, match="not finite"):
        open_embedder("broken").embed(["a"])


def test_without_sentence_transformers_its_models_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(NeuroexplainError, match="pip install sentence-transformers"):
        open_embedder("all-MiniLM-L6-v2")
