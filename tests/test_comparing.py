"""Two side by side: pairs and figures equal those of plain Python, and what cannot be compared is refused."""

import itertools
import random

import numpy as np
import pytest
import scipy.stats
from sqlalchemy import insert

import neuroexplain as nx
from neuroexplain.comparing import compare, list_compared, load_rows
from neuroexplain.comparison import Pair, sort_pairs, summarize_pairs
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Explanation, Prediction, Provenance, Score
from neuroexplain.store import tables as t
from neuroexplain.store.engine import open_store
from neuroexplain.store.save_collected import create_run, finish_run
from neuroexplain.store.save_explained import save_explanation, save_prediction
from neuroexplain.units import UnitId
from tests.fakes import run_fields

WORDS = ["river", "money", "near", "AND"]
POPULATION, BILLS = "population", "top_and_random"
SAMPLED = {"n_sampled": 8, "split_rule": "passages"}


def new_run(store, fields):
    """A finished run of the fields; returns its id."""
    run_id = create_run(store, fields)
    finish_run(store, run_id, n_segments=0, n_documents=0, n_tokens=0)
    return run_id


def add(store, run_id, unit, explainer, text, scores, *, model="m", chosen=True, status="ok", candidate=0):
    """Save an explanation with (scorer, subset, value) scores; returns its id."""
    by = Provenance("none", None, model, None, None)
    e = Explanation(unit, explainer, status, text, by, candidate=candidate, chosen=chosen)
    e = save_explanation(store, run_id, e)
    for scorer in dict.fromkeys(scorer for scorer, _, _ in scores):
        its = [
            Score("report", subset, "correlation", "ok" if r is not None else "no_records", r, 320, 10)
            for name, subset, r in scores
            if name == scorer
        ]
        scored_by = Provenance("none", None, "s", None, None)
        save_prediction(store, run_id, Prediction(e.id, unit, scorer, "ok", (), scored_by), its)
    return e.id


@pytest.fixture(scope="module")
def filled(shared_database):
    """A store of three runs of one subject, and what was saved: (run, unit, explainer) -> id, text, scores.

    Runs 1 and 2 have population scores by `lexical` and `words`; run 3 has Bills' by `lexical` alone.
    """
    draw = random.Random(3)
    store = open_store(shared_database, create=True)
    saved = {}
    for place in range(3):
        run_id = new_run(store, run_fields(2, 60, **({} if place == 2 else SAMPLED)))
        for layer, index in itertools.product(range(2), range(60)):
            unit = UnitId(layer, index)
            row = {"run_id": run_id, "layer": layer, "unit": index, "status": "ok", "max_activation": 1.0}
            with store.write() as connection:
                connection.execute(insert(t.units).values(**row))
            for explainer in ("pairs", "category"):
                if draw.random() < 0.2 or (run_id > 1 and explainer == "category"):
                    continue
                text = " ".join(draw.sample(WORDS, 2))
                subsets = (BILLS,) if run_id == 3 else (POPULATION, BILLS)
                scorers = ("lexical",) if run_id == 3 or draw.random() < 0.3 else ("lexical", "words")
                scores = [
                    (
                        scorer,
                        subset,
                        draw.choice([None, 0.25, *(round(draw.uniform(-1, 1), 2) for _ in range(4))]),
                    )
                    for scorer in scorers
                    for subset in subsets
                ]
                if draw.random() < 0.3:  # an older one, which does not count
                    add(store, run_id, unit, explainer, "older", [("lexical", subsets[0], 0.9)], candidate=7)
                if draw.random() < 0.3:
                    add(
                        store,
                        run_id,
                        unit,
                        explainer,
                        "no",
                        [("lexical", subsets[0], 0.9)],
                        chosen=False,
                        candidate=5,
                    )
                number = add(store, run_id, unit, explainer, text, scores)
                saved[run_id, unit, explainer] = number, text, {(s, b): r for s, b, r in scores}
    add(store, 1, UnitId(0, 0), "human", "a person's", [], model="human")
    yield store, saved
    store.close()


def plain(saved, first, second, score, layers=None, word=None):
    """The pairs by looking at each unit, and how many units both explain."""
    pairs, n = [], 0
    for unit in sorted({unit for _, unit, _ in saved}):
        a, b = (saved.get((run, unit, explainer)) for run, explainer in (first, second))
        if a is None or b is None or (layers and unit.layer not in layers):
            continue
        if word is not None and word not in (a[1] + " " + b[1]).split():
            continue
        n += 1
        values = a[2].get(score), b[2].get(score)
        if None not in values:
            pairs.append(Pair(unit, "positive", a[0], b[0], *values))
    return pairs, n


@pytest.mark.parametrize("scorer", ["lexical", "words"])
@pytest.mark.parametrize(("layers", "word"), [(None, None), ((1,), None), (None, "river"), ((0,), "AND")])
def test_pairs_and_figures_equal_a_plain_count(filled, scorer, layers, word):
    store, saved = filled
    options = {"explainers": ("pairs", "category"), "runs": (1,), "scorer": scorer}
    c = compare(store, **options, layers=layers, text=word, sort="unit")
    pairs, n = plain(saved, (1, "pairs"), (1, "category"), (scorer, POPULATION), layers, word)
    assert c.pairs == pairs
    assert (c.summary.n, c.summary.n_unscored) == (len(pairs), n - len(pairs))
    differences = [pair.second - pair.first for pair in pairs]
    for mean, values in (
        (c.summary.first, [pair.first for pair in pairs]),
        (c.summary.second, [pair.second for pair in pairs]),
        (c.summary.difference, differences),
    ):
        assert mean.value == pytest.approx(np.mean(values))
        ends = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
        assert (mean.ci_low, mean.ci_high) == pytest.approx(ends)
    assert c.summary.n_second_higher == sum(d > 0 for d in differences)
    assert c.summary.n_equal == sum(d == 0 for d in differences)
    by_gain = compare(store, **options, layers=layers, text=word)
    assert [p.difference for p in by_gain.pairs] == sorted(differences, reverse=True)
    rows = load_rows(store, by_gain, 3, 2)
    for row, pair in zip(rows, by_gain.pairs[2:5], strict=True):
        assert (row.first.explanation, row.second.explanation) == tuple(
            saved[1, pair.unit, explainer][1] for explainer in ("pairs", "category")
        )
        assert (row.first.score, row.second.score, row.difference) == (*pair[4:], pair.difference)


def test_runs_with_other_headlines_are_compared_by_what_both_have(filled):
    store, saved = filled
    c = compare(store, runs=(1, 3), explainers=("pairs",), sort="unit")
    assert c.headline.subsets == (BILLS,)
    assert c.pairs == plain(saved, (1, "pairs"), (3, "pairs"), ("lexical", BILLS))[0]
    assert any("which both have" in note for note in c.notes)
    same = compare(store, runs=(1, 2), explainers=("pairs",), sort="unit")
    assert same.headline.subsets == (POPULATION,)
    assert not any("which both have" in note for note in same.notes)
    with pytest.raises(
        NeuroexplainError, match=r"no score in common .*run 3\) has Bills' score by lexical, s\."
    ):
        compare(store, runs=(1, 3), explainers=("pairs",), scorer="words")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": (1,)}, "Run 1 is explained by category, m; pairs, m. Name one"),
        ({"explainers": ("pairs",), "runs": (1, 1)}, "Both are pairs, m"),
        ({"explainers": ("pairs", "nobody"), "runs": (1,)}, "Run 1 has no explanation by nobody"),
        ({"runs": (1, 9), "explainers": ("pairs",)}, "no finished run 9"),
        ({"runs": (1, 2, 3)}, "--runs takes two"),
        ({"runs": (1, 2), "explainers": ("pairs",), "sort": "score"}, "there is second, first, unit"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_there_is(filled, options, message):
    with pytest.raises(NeuroexplainError, match=message):
        compare(filled[0], **options)


def test_units_of_another_model_are_not_the_same(filled, tmp_path):
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        for subject in ("a/gpt2", "b/llama"):
            run_id = new_run(store, {**run_fields(1, 4), "subject": subject})
            with store.write() as connection:
                unit = {"run_id": run_id, "layer": 0, "unit": 0, "status": "ok", "max_activation": 1.0}
                connection.execute(insert(t.units).values(**unit))
            add(store, run_id, UnitId(0, 0), "pairs", "x", [("lexical", BILLS, 0.5)])
        with pytest.raises(NeuroexplainError, match="their units are not the same"):
            compare(store, runs=(1, 2))


def test_people_are_not_compared_and_python_gives_a_frame(filled):
    store, _ = filled
    assert "human" not in {compared.explainer for compared in list_compared(store)}
    if store.file is None:
        return
    with nx.open(str(store.file)) as database:
        rows = database.compare(runs=(1,), explainers=("pairs", "category"), scorer="lexical", limit=4)
        frame = rows.to_frame()
    assert len(frame) == 4
    assert list(frame["difference"]) == sorted(frame["difference"], reverse=True)
    assert rows.to_dict()["summary"]["n"] == rows.summary.n > 4


def test_few_units_have_no_interval_and_none_no_mean():
    one = summarize_pairs([Pair(UnitId(0, 0), "positive", 1, 2, 0.25, 0.5)], 3)
    assert (one.difference.value, one.difference.ci_low, one.n_unscored) == (0.25, None, 2)
    none = summarize_pairs([], 0)
    assert (none.difference.value, none.share_second_higher) == (None, None)
    pairs = [Pair(UnitId(0, n), "positive", n, n, 0.0, value) for n, value in enumerate((0.5, 1.0, 0.5))]
    assert [pair.unit.index for pair in sort_pairs(pairs, "second")] == [1, 0, 2]
    assert [pair.unit.index for pair in sort_pairs(pairs, "first")] == [0, 2, 1]
