"""Vectors are made once for each text, stored, and never served for another text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, select, text, update

from neuroexplain.embedding import index as index_module
from neuroexplain.embedding.index import MeaningIndex, embed_block
from neuroexplain.errors import NeuroexplainError
from neuroexplain.store import tables as t
from neuroexplain.store.dialect import IDS_A_BLOCK
from neuroexplain.store.engine import open_store
from neuroexplain.store.save_collected import delete_run
from neuroexplain.store.save_explained import save_explanations
from neuroexplain.store.search import query_explanations
from neuroexplain.store.vectors import list_blocks
from tests.embedding.stores import LetterEmbedder, explanation_of, fill_run

TEXTS = ["abc", "b b", None, "sea", "sea", "ship"]


@pytest.fixture
def store(database):
    with open_store(database, create=True) as opened:
        yield opened


def search(store, run, embedder, like="sea"):
    """(text, cosine) of all explanations, by id, after bringing the vectors up to date."""
    index = MeaningIndex(store, run, embedder)
    index.refresh()
    like = index.similarities(like)
    assert (np.diff(like.explanation_ids) > 0).all()
    rows = query_explanations(store, run, like=like, limit=999, chosen_only=False)
    texts = {row.explanation_id: row.explanation for row in rows}
    assert sorted(texts) == like.explanation_ids.tolist()
    return [
        (texts[id_], value) for id_, value in zip(like.explanation_ids.tolist(), like.values, strict=True)
    ]


def add_explanations(store, run, ids, texts, candidate=7):
    """Explanations of given ids, straight into the table, as another writer might."""
    with store.write() as connection:
        e = t.explanations
        row = dict(connection.execute(select(e).where(e.c.run_id == run.id)).mappings().first())
        rows = [
            row | {"id": id_, "text": words, "status": "ok", "candidate": candidate, "request_key": f"k{id_}"}
            for id_, words in zip(ids, texts, strict=True)
        ]
        connection.execute(insert(e), rows)


def test_each_text_is_embedded_once_and_then_read(store):
    run = fill_run(store, TEXTS)
    first, second = LetterEmbedder(), LetterEmbedder()
    found = search(store, run, first)
    assert sorted(first.embedded) == sorted([x for x in TEXTS if x] + ["sea"])  # the last one is the search
    assert search(store, run, second) == found
    assert second.embedded == ["sea"]


def test_a_changed_text_gets_a_new_vector_and_others_keep_theirs(store):
    run = fill_run(store, TEXTS)
    search(store, run, LetterEmbedder())
    with store.write() as connection:
        changed = update(t.explanations).where(t.explanations.c.text == "ship").values(text="sea sea")
        connection.execute(changed)
    embedder = LetterEmbedder()
    values = dict(search(store, run, embedder))
    assert embedder.embedded == ["sea sea", "sea"]
    assert values["sea sea"] == pytest.approx(1, abs=0.01)


def test_a_failed_attempt_that_succeeds_later_is_found(store):
    run = fill_run(store, TEXTS)
    search(store, run, LetterEmbedder())
    save_explanations(store, run.id, [explanation_of(2, "aaa")])
    embedder = LetterEmbedder()
    assert "aaa" in dict(search(store, run, embedder))
    assert embedder.embedded == ["aaa", "sea"]


@pytest.mark.parametrize("place", [IDS_A_BLOCK - 1, IDS_A_BLOCK, 5 * IDS_A_BLOCK + 3])
def test_new_explanations_are_found_in_any_block_for_every_model(store, place):
    run = fill_run(store, TEXTS)
    for model in ("one", "two"):
        search(store, run, LetterEmbedder(model))
    add_explanations(store, run, [place], ["new"])
    add_explanations(store, run, [place - 1], ["before"])
    for model in ("one", "two"):
        embedder = LetterEmbedder(model)
        assert {"new", "before"} <= set(dict(search(store, run, embedder)))
        assert sorted(embedder.embedded) == ["before", "new", "sea"]
    add_explanations(store, run, [place + 1], ["last"])
    assert "last" in dict(search(store, run, LetterEmbedder("two")))
    assert "last" in dict(search(store, run, LetterEmbedder("one")))


def test_a_held_index_sees_what_others_write(store):
    run = fill_run(store, TEXTS)
    index = MeaningIndex(store, run, LetterEmbedder())
    index.refresh()
    add_explanations(store, run, [70], ["new"])
    search(store, run, LetterEmbedder())  # another process embeds it
    index.refresh()
    assert len(index.similarities("sea").values) == 6
    with store.write() as connection:
        connection.execute(update(t.explanations).where(t.explanations.c.id == 70).values(text="sea"))
    search(store, run, LetterEmbedder())
    index.refresh()
    assert index.similarities("sea").values[-1] == pytest.approx(1, abs=0.01)
    assert index.embedder.embedded.count("new") == 0


def test_an_interrupted_embedding_goes_on(store):
    run = fill_run(store, TEXTS)
    add_explanations(store, run, [IDS_A_BLOCK, 2 * IDS_A_BLOCK], ["second", "third"])
    steps = MeaningIndex(store, run, LetterEmbedder()).steps()
    next(steps), next(steps)
    steps.close()
    assert [state.is_current for state in list_blocks(store, run.id, "letters").values()] == [
        *(True, False, False)
    ]
    embedder = LetterEmbedder()
    assert len(search(store, run, embedder)) == 7
    assert embedder.embedded == ["second", "third", "sea"]


def test_a_text_that_changes_while_it_is_embedded_is_embedded_again(store):
    run = fill_run(store, TEXTS)

    class Slow(LetterEmbedder):
        def embed(self, texts):
            with store.write() as connection:
                ship = t.explanations.c.text == "ship"
                connection.execute(update(t.explanations).where(ship).values(text="sea sea"))
            return super().embed(texts)

    MeaningIndex(store, run, Slow()).refresh()
    assert dict(search(store, run, LetterEmbedder()))["sea sea"] == pytest.approx(1, abs=0.01)


def test_a_run_takes_its_vectors_along(store):
    first, second = fill_run(store, TEXTS), fill_run(store, ["sea"])
    for run in (first, second):
        search(store, run, LetterEmbedder())
    delete_run(store, first.id)
    with store.read() as reader:
        assert reader.column("SELECT run_id FROM vectors") == [second.id]


def test_a_damaged_block_is_made_anew(store):
    run = fill_run(store, TEXTS)
    found = search(store, run, LetterEmbedder())
    with store.write() as connection:
        connection.execute(text("UPDATE vectors SET scales = text_hashes"))
    assert search(store, run, LetterEmbedder()) == found
    with store.write() as connection:
        connection.execute(text("UPDATE vectors SET text_hashes = explanation_ids"))
    assert search(store, run, LetterEmbedder()) == found


def test_a_reader_embeds_for_itself_and_writes_nothing(tmp_path, monkeypatch):
    file = tmp_path / "x.db"
    with open_store(str(file), create=True) as store:
        run = fill_run(store, TEXTS)
    with open_store(str(file), read_only=True) as store:
        assert len(search(store, run, LetterEmbedder())) == 5
        assert list_blocks(store, run.id, "letters") == {}
        monkeypatch.setattr(index_module, "MOST_UNSTORED", 5)
        with pytest.raises(NeuroexplainError, match=r"query --db .*x.db --run 1 --like TEXT"):
            search(store, run, LetterEmbedder())
    with open_store(str(file)) as store:
        search(store, run, LetterEmbedder())
    with open_store(str(file), read_only=True) as store:
        embedder = LetterEmbedder()
        search(store, run, embedder)
        assert embedder.embedded == ["sea"]


def test_other_dimensions_of_the_same_model_are_an_error(tmp_path):
    class Wider(LetterEmbedder):
        def embed(self, texts):
            return np.pad(super().embed(texts), ((0, 0), (0, 3)))

    with open_store(str(tmp_path / "x.db"), create=True) as store:
        run = fill_run(store, TEXTS)
        search(store, run, LetterEmbedder())
        with pytest.raises(NeuroexplainError, match="26 dimensions, and it gives 29"):
            search(store, run, Wider())


@given(
    st.dictionaries(st.integers(0, 9), st.sampled_from(["a", "ab", "c c", ""]), max_size=8),
    st.dictionaries(st.integers(0, 9), st.sampled_from(["a", "ab", "c c", ""]), max_size=8),
)
def test_a_block_that_grew_equals_one_made_at_once(before, after):
    earlier = embed_block(sorted(before.items()), None, LetterEmbedder())
    embedder = LetterEmbedder()
    grown = embed_block(sorted(after.items()), earlier, embedder)
    at_once = embed_block(sorted(after.items()), None, LetterEmbedder())
    assert grown.checksum == at_once.checksum
    assert np.array_equal(grown.vectors.scales, at_once.vectors.scales)
    assert len(grown.vectors.numbers) == len(after)
    if after:
        assert np.array_equal(grown.vectors.numbers, at_once.vectors.numbers)
    assert embedder.embedded == [words for id_, words in sorted(after.items()) if before.get(id_) != words]
