"""Vectors from a server: whole, in the order of the texts, or an error that says what came instead."""

import numpy as np
import pytest

from neuroexplain.errors import EngineError
from neuroexplain.llm import embeddings
from neuroexplain.llm.embeddings import ServerEmbedder

pytestmark = pytest.mark.usefixtures("impatient")


def vectors(*rows, order=None):
    places = order or range(len(rows))
    return 200, {"data": [{"index": i, "embedding": rows[i], "object": "embedding"} for i in places]}


def test_vectors_come_in_the_order_of_the_texts(scripted, monkeypatch):
    monkeypatch.setattr(embeddings, "TEXTS_A_REQUEST", 2)
    scripted.replies = [vectors([1, 2], [3, 4.5], order=[1, 0]), (503, {}), vectors([5, 6])]
    embedder = ServerEmbedder(f"{scripted.url}/v1/embeddings", max_wait=3.0)
    assert embedder.embed(["a", "b", "c"]).tolist() == [[1, 2], [3, 4.5], [5, 6]]
    assert [request["input"] for request in scripted.requests] == [["a", "b"], ["c"], ["c"]]
    assert scripted.requests[0]["model"] == "tiny"
    assert embedder.model == "server tiny"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (vectors([1, 2]), "asked for 2 vectors and gave 1"),
        (vectors([1, 2], [3]), "2 lengths"),
        (vectors([], []), "empty"),
        (vectors([1, 2], [3, 1e39]), "not finite"),
        ((200, {"data": [{"index": 0, "embedding": [1]}] * 2}), "gave 2"),
        ((200, b'{"data": [{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}]}'), "embed"),
        ((200, {"data": [{"index": 0, "embedding": "AAAA"}]}), "another shape"),
        ((400, {"error": {"message": "this model does not embed"}}), "this model does not embed"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(scripted, reply, message):
    scripted.replies = [reply] * 9
    with pytest.raises(EngineError, match=message):
        ServerEmbedder(scripted.url, max_wait=3.0).embed(["a", "b"])


def test_vectors_of_two_lengths_are_an_error(scripted, monkeypatch):
    monkeypatch.setattr(embeddings, "TEXTS_A_REQUEST", 1)
    scripted.replies = [vectors([1, 2]), vectors([1, 2, 3])]
    with pytest.raises(EngineError, match="different lengths"):
        ServerEmbedder(scripted.url, max_wait=0.3).embed(["a", "b"])


def test_one_of_several_models_is_named(scripted):
    scripted.models = (200, {"data": [{"id": "a"}, {"id": "b/c"}]})
    assert ServerEmbedder(f"{scripted.url}#b/c").model == "server b/c"
    for url in (scripted.url, f"{scripted.url}#d"):
        with pytest.raises(EngineError, match=r"serves a, b/c\. Name one:  --embedding http.*#MODEL"):
            ServerEmbedder(url)


@pytest.mark.parametrize("models", [(404, b"nothing here"), (200, b"<html>"), (200, {"data": 3})])
def test_a_page_that_lists_no_models_is_no_server(scripted, models):
    scripted.models = models
    with pytest.raises(EngineError, match="no server that lists models"):
        ServerEmbedder(scripted.url)


@pytest.mark.parametrize("url", ["ftp://x/v1", "http://me:secret@host/v1", "://"])
def test_a_url_with_a_key_or_of_another_kind_is_refused_without_repeating_it(url):
    with pytest.raises(EngineError, match="--embedding takes a URL") as raised:
        ServerEmbedder(url)
    assert "secret" not in str(raised.value)


def test_no_text_is_no_request(scripted):
    assert ServerEmbedder(scripted.url).embed([]).dtype == np.float32
    assert scripted.requests == []
