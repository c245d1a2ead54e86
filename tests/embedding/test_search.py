"""A search by meaning equals ranking all explanations in plain Python, and finds what a person means."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest

import neuroexplain as nx
from neuroexplain.embedding.index import MeaningIndex
from neuroexplain.embedding.ranking import content_words, cosines_with, fuse_ranks, to_int8
from neuroexplain.embedding.token_table import TokenTable
from neuroexplain.errors import NeuroexplainError
from neuroexplain.lookup import find_explanations
from neuroexplain.store import search_by_meaning
from neuroexplain.store.engine import open_store
from neuroexplain.store.save_explained import save_explanations
from neuroexplain.store.search import query_explanations
from neuroexplain.units import UnitId
from tests.conftest import HOSTILE_EXPLANATION
from tests.embedding.stores import LetterEmbedder, explanation_of, fill_run, score

FOLDER = Path(__file__).parent
WORDS = "sea ships salt AND river near money the gold".split()


@pytest.fixture(scope="module")
def filled(shared_database):
    """(store, run, index, expected): 90 explanations, some failed, not chosen or scored, and another run."""
    choose = random.Random(8)
    with open_store(shared_database, create=True) as store:
        fill_run(store, ["sea ships", "the sea", "gold"])  # of another run: must not be found
        texts = [" ".join(choose.choices(WORDS, k=choose.randint(1, 4))) for _ in range(90)]
        texts = [None if choose.random() < 0.1 else text for text in texts]
        run = fill_run(store, texts)
        candidates = [
            explanation_of(i, f"{text} salt", candidate=1, chosen=False)
            for i, text in enumerate(texts)
            if text
        ]
        save_explanations(store, run.id, candidates[::3])
        rows = query_explanations(store, run, chosen_only=False, limit=1_000)
        chosen = {row.explanation_id for row in query_explanations(store, run, limit=1_000)}
        expected = []
        for row in rows:
            scores = [
                (scorer, round(choose.uniform(-1, 1), 2))
                for scorer in choose.sample(["digits", "lexical"], choose.choice([0, 0, 1, 2]))
            ]
            for scorer, value in scores:
                score(store, run, row.explanation_id, row.unit, value, scorer)
            is_chosen = row.explanation_id in chosen
            expected.append((row.explanation_id, row.unit, row.explanation, is_chosen, scores))
        index = MeaningIndex(store, run, LetterEmbedder())
        index.refresh()
        yield store, run, index, sorted(expected, key=lambda x: x[0])


def plain(expected, like, *, text, layers, min_score, max_score, chosen_only, limit, depth):
    """(id, scorer) of the rows, by looking at every explanation."""

    def scores_of(scores):
        return [
            scorer
            for scorer, value in sorted(scores)
            if (min_score is None or value >= min_score) and (max_score is None or value <= max_score)
        ]

    bounded = min_score is not None or max_score is not None
    kept = [
        (id_, words, scores_of(scores) or [None])
        for id_, unit, words, chosen, scores in expected
        if (text is None or set(text.lower().split()) <= set(words.lower().split()))
        and (layers is None or unit.layer in layers)
        and (chosen or not chosen_only)
        and (not bounded or scores_of(scores))
    ]
    embedder = LetterEmbedder()
    vectors = to_int8(embedder.embed([words for _, words, _ in kept]))
    cosines = cosines_with([vectors], embedder.embed([like])[0])
    nearest = [kept[i][0] for i in np.argsort(-cosines, kind="stable")][:depth]
    wanted = {word.lower() for word in content_words(like)}
    holding = [(len(words), id_) for id_, words, _ in kept if wanted and wanted <= set(words.lower().split())]
    best = fuse_ranks([nearest, [id_ for _, id_ in sorted(holding)][:depth]])
    scorers = {id_: names for id_, _, names in kept}
    return [(id_, scorer) for id_ in best for scorer in scorers[id_]][:limit]


@pytest.mark.parametrize("depth", [500, 7])
@pytest.mark.parametrize("few", [20_000, 20, 0])
def test_a_search_equals_ranking_all_that_meet_the_conditions(filled, monkeypatch, few, depth):
    monkeypatch.setattr(search_by_meaning, "MANY", few)
    monkeypatch.setattr(search_by_meaning, "MANY_SCORES", few)
    monkeypatch.setattr("neuroexplain.store.search.FEW", few)
    monkeypatch.setattr(search_by_meaning, "DEPTH", depth)
    store, run, index, expected = filled
    scores = ((None, None), (0.1, None), (None, 0.2), (-0.5, 0.5))
    for like, text, layers, (low, high), chosen, limit in itertools.product(
        ("the sea", "near AND", "zebra"),
        (None, "salt"),
        (None, (1,), (0, 2)),
        scores,
        (True, False),
        (3, 999),
    ):
        options = {"text": text, "layers": layers, "min_score": low, "max_score": high}
        options |= {"chosen_only": chosen, "limit": limit}
        rows = query_explanations(store, run, like=index.similarities(like), **options)
        result = [(row.explanation_id, row.scorer) for row in rows]
        assert result == plain(expected, like, **options, depth=depth), (like, options)


@pytest.mark.parametrize("many", [200_000, 2])
def test_only_the_units_that_are_named_are_searched(filled, monkeypatch, many):
    monkeypatch.setattr(search_by_meaning, "MANY", many)
    store, run, index, expected = filled
    named = {UnitId(0, 3), UnitId(0, 4), UnitId(2, 9)}
    rows = query_explanations(store, run, like=index.similarities("sea"), units=named, chosen_only=False)
    assert {row.explanation_id for row in rows} == {x[0] for x in expected if x[1] in named}
    assert rows


def test_python_searches_by_meaning_and_keeps_the_vectors(tmp_path):
    file = str(tmp_path / "x.db")
    with open_store(file, create=True) as store:
        fill_run(store, ["months of the year", "ships and sailing", "birds"])
    with nx.open(file) as db:
        rows = db.query(like="a boat on the sea", layers=[0, 1])
        assert [row.explanation for row in rows] == ["ships and sailing", "months of the year"]
        assert db.query(like="poultry", limit=1).to_frame()["explanation"].tolist() == ["birds"]
        with pytest.raises(NeuroexplainError, match="sentence-transformers"):
            db.query(like="poultry", embedding="no-such-model")


def test_pages_follow_each_other(filled):
    store, run, index, _ = filled
    like = index.similarities("ships near gold")
    whole = query_explanations(store, run, like=like, limit=40)
    pages = [query_explanations(store, run, like=like, limit=10, offset=n) for n in (0, 10, 20, 30)]
    assert list(itertools.chain(*pages)) == whole
    assert len(whole) == 40


def test_words_that_many_hold_do_not_rank(filled, monkeypatch):
    store, run, index, _ = filled
    monkeypatch.setattr(search_by_meaning, "MOST_BY_WORDS", 2)
    like = index.similarities("sea")
    found = [row.explanation_id for row in query_explanations(store, run, like=like, limit=5)]
    chosen = {row.explanation_id for row in query_explanations(store, run, limit=999)}
    order = np.argsort(-like.values, kind="stable")
    nearest = [id_ for id_ in like.explanation_ids[order].tolist() if id_ in chosen]
    assert list(dict.fromkeys(found)) == nearest[: len(set(found))]


@pytest.mark.parametrize(
    "like", [HOSTILE_EXPLANATION, "' OR 1=1 --", '"', "NEAR(a b) *", "\x00", "\udcff", "🜲"]
)
def test_hostile_texts_are_only_texts(filled, like):
    store, run, index, _ = filled
    rows = query_explanations(store, run, like=index.similarities(like), limit=5)
    assert len(rows) == 5


def test_a_text_without_anything_is_refused(filled):
    with pytest.raises(NeuroexplainError, match="nothing to search"):
        filled[2].similarities(" \n")


def test_meaning_is_an_order_of_its_own(filled):
    store, run, index, _ = filled
    with pytest.raises(NeuroexplainError, match="Leave one of them out"):
        find_explanations(store, run, like=index.similarities("sea"), sort="score")


def test_a_run_without_explanations_has_no_rows(tmp_path):
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        run = fill_run(store, [None])
        index = MeaningIndex(store, run, LetterEmbedder())
        index.refresh()
        assert query_explanations(store, run, like=index.similarities("sea")) == []


def mean_reciprocal_rank(pairs, monkeypatch, folder, part=None):
    """Of the answers to all queries; part: of one ranking alone."""
    if part == "words":
        monkeypatch.setattr(search_by_meaning, "_nearest", lambda conditions, like: [])
    if part == "vectors":
        monkeypatch.setattr(search_by_meaning, "_by_words", lambda conditions, text: [])
    with open_store(str(folder / f"{part}.db"), create=True) as store:
        run = fill_run(store, pairs["explanations"])
        index = MeaningIndex(store, run, TokenTable.load())
        index.refresh()
        total = 0.0
        for pair in pairs["queries"]:
            rows = query_explanations(store, run, like=index.similarities(pair["query"]), limit=2_000)
            texts = [row.explanation for row in rows]
            total += 1 / (texts.index(pair["answer"]) + 1) if pair["answer"] in texts else 0.0
    monkeypatch.undo()
    return total / len(pairs["queries"])


@pytest.mark.parametrize(("name", "least"), [("search_oracle", 0.88), ("search_pairs", 0.81)])
def test_people_find_what_they_mean(monkeypatch, tmp_path, name, least):
    """search_pairs holds 60 pairs of ours, by which the words' part was chosen: docs/decisions.md."""
    pairs = json.loads((FOLDER / f"{name}.json").read_text())
    both, words, vectors = (
        mean_reciprocal_rank(pairs, monkeypatch, tmp_path, part) for part in (None, "words", "vectors")
    )
    print(f"{name}: joined {both:.3f}, words {words:.3f}, vectors {vectors:.3f}")
    assert both >= least
    assert both >= max(words, vectors) - 0.01
