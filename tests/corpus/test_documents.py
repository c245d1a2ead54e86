"""Where texts come from."""

import gzip
import json

import pytest

from neuroexplain.corpus import documents
from neuroexplain.corpus.documents import read_documents
from neuroexplain.corpus.files import find_files
from neuroexplain.errors import NeuroexplainError


@pytest.fixture
def data_set(tmp_path):
    """A folder as the hub's data sets are laid out: what `load_dataset` opens by name and by path alike."""
    texts = [f"document {n}" for n in range(40)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "data").mkdir()
    with gzip.open(tmp_path / "data" / "train-00000.jsonl.gz", "wt") as file:
        file.write(lines)
    return tmp_path, texts


def test_a_data_set_is_streamed_in_its_order_or_shuffled_by_the_seed(data_set, monkeypatch):
    folder, texts = data_set
    monkeypatch.setattr(documents, "find_files", lambda names, split: None)
    read = lambda seed: list(read_documents([str(folder)], None, "train", "text", seed))  # noqa: E731
    assert read(None) == texts
    assert read(0) == read(0)
    assert read(0) != read(1)
    assert sorted(read(0)) == sorted(texts)


@pytest.mark.parametrize(
    ("split", "column", "message"),
    [("validation", "text", "split validation"), ("train", "body", "it has text")],
)
def test_a_data_set_without_the_split_or_the_column_says_so(data_set, monkeypatch, split, column, message):
    monkeypatch.setattr(documents, "find_files", lambda names, split: None)
    with pytest.raises(NeuroexplainError, match=message):
        list(read_documents([str(data_set[0])], None, split, column, None))


def test_a_name_that_is_no_file_is_a_data_set_of_the_hub():
    assert find_files(["HuggingFaceFW/fineweb-edu"]) is None
    with pytest.raises(NeuroexplainError, match=r"no file texts\.txt"):
        find_files(["texts.txt"])
