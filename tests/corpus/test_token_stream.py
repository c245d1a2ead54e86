"""The corpus as a file of tokens: whole, or not there."""

from pathlib import Path

import numpy as np
import pytest

from neuroexplain.corpus.token_stream import TokenStream, TokenWriter, find_tokens
from neuroexplain.corpus.tokenizing import tokenize
from neuroexplain.errors import NeuroexplainError
from tests.fakes import tiny_tokenizer, words

DOCUMENTS = [np.arange(n, dtype=np.uint32) + 1000 * n for n in (3, 0, 300, 129, 77)]


def write(path, documents=DOCUMENTS):
    with TokenWriter(path) as writer:
        for ids in documents:
            writer.add(ids)
        return writer.finish()


def test_tokens_written_are_found_again(tmp_path):
    written, reopened, temporary = (
        write(tmp_path / "x"),
        find_tokens(tmp_path / "x"),
        TokenStream.of(DOCUMENTS),
    )
    joined = np.concatenate(DOCUMENTS)
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    for stream in (written, reopened, temporary):
        assert (stream.n_tokens, stream.n_documents, stream.n_segments) == (509, 5, 3)
        np.testing.assert_array_equal(
            stream.rows(np.array([2, 0, 1])), joined[:384].reshape(3, 128)[[2, 0, 1]]
        )
        for segment, n in zip(stream.segments(np.array([2, 0, 1]), 0), (2, 0, 1), strict=True):
            assert segment.segment == n
            np.testing.assert_array_equal(segment.token_ids, joined[128 * n : 128 * n + 128])
        assert list(stream.segments(np.array([], np.int64), 0)) == []
        segments, positions, starts = (
            np.array([[0, 0, 2]]),
            np.array([[2, 3, 100]]),
            np.array([[0, 1, 60]], np.uint8),
        )
        documents, offsets, ids = stream.locate(segments, positions, starts)
        assert (documents.tolist(), offsets.tolist()) == ([[0, 2, 3]], [[0, -2, 13]])
        np.testing.assert_array_equal(ids, joined[segments * 128 + positions])


def test_a_file_that_is_cut_off_is_none(tmp_path):
    write(tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    for n in (0, 10, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        (tmp_path / "x").write_bytes(whole[:n])
        assert find_tokens(tmp_path / "x") is None
    assert find_tokens(tmp_path / "nothing") is None


def test_a_corpus_that_breaks_off_leaves_no_file(tmp_path):
    def documents():
        yield DOCUMENTS[0]
        raise NeuroexplainError("the data set broke off")

    with pytest.raises(NeuroexplainError, match="the data set broke off"):
        write(tmp_path / "x", documents())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_plainly(tmp_path):
    """/dev/full is a disk without room."""
    with TokenWriter(tmp_path / "x") as writer:
        writer._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
        with pytest.raises(NeuroexplainError, match=r"No space left on device.*Make room"):
            writer.add(DOCUMENTS[2])
    assert list(tmp_path.iterdir()) == []


def test_documents_are_tokenized_as_one_by_one():
    tokenizer = tiny_tokenizer(bos=True)
    texts = [words(n % 37, seed=n) for n in range(150)] + ["", "lone \ud800 surrogate"]
    expected = [
        [*tokenizer(text.encode("utf-8", "replace").decode()).input_ids, tokenizer.eos_token_id]
        for text in texts
    ]
    assert [ids.tolist() for ids in tokenize(texts, tokenizer)] == expected
