"""Every path of a query through the indexes gives what filtering and sorting in plain Python gives."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from sqlalchemy import insert

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Explanation, Headline, Prediction, Provenance, Score
from neuroexplain.runs import Run
from neuroexplain.scorers.base import choose_headline
from neuroexplain.store import tables as t
from neuroexplain.store.engine import open_store
from neuroexplain.store.reader import Reader
from neuroexplain.store.runs import list_runs
from neuroexplain.store.save_collected import create_run
from neuroexplain.store.save_explained import save_explanation, save_prediction
from neuroexplain.store.score_summaries import count_scores_by_layer, join_counts, summarize_scores
from neuroexplain.store.search import query_explanations
from neuroexplain.units import UnitId
from tests.fakes import run_fields

WORDS = ["relief", "river", "money", "AND", "near"]
FIELDS = run_fields(3, 12)


@pytest.fixture(scope="module")
def filled_store(shared_database):
    """A store and its expected rows: 36 neurons, explanations by two explainers, scores by two scorers.

    Some explanations are not chosen, some failed, and some scores are undefined.
    """
    draw = random.Random(5)
    store = open_store(shared_database, create=True)
    create_run(store, FIELDS)  # another run, whose rows must not be found
    expected = []
    for run_id in (1, create_run(store, FIELDS)):
        for layer, n in itertools.product(range(3), range(12)):
            strongest = draw.choice([None, 1.0, 2.0, draw.random()])
            peaks = draw.sample(range(6), 2)
            with store.write() as connection:
                neuron = {
                    "run_id": run_id,
                    "layer": layer,
                    "unit": n,
                    "status": "ok",
                    "max_activation": strongest,
                }
                connection.execute(insert(t.units).values(**neuron))
                rows = [
                    {"run_id": run_id, "token_id": p, "layer": layer, "unit": n, "count": 1} for p in peaks
                ]
                connection.execute(insert(t.peak_tokens), rows)
            for explainer in draw.sample(["pairs", "excerpts"], draw.choice([0, 1, 2])):
                text = " ".join(draw.sample(WORDS, 2))
                status, chosen = draw.choice(["ok", "ok", "ok", "llm_error"]), draw.random() < 0.8
                by = Provenance("none", None, "m", None, None)
                e = Explanation(
                    UnitId(layer, n), explainer, status, text if status == "ok" else None, by, chosen=chosen
                )
                e = save_explanation(store, run_id, e)
                scores = []
                for scorer in (
                    draw.sample(["digits", "lexical"], draw.choice([0, 1, 2])) if status == "ok" else ()
                ):
                    r = draw.choice([None, 0.3, round(draw.uniform(-1, 1), 2)])
                    low = None if r is None else draw.choice([None, r, r - 0.1, r - draw.random()])
                    score_status = "ok" if r is not None else "no_records"
                    score = Score(
                        "report", "top_and_random", "correlation", score_status, r, 320, 10, ci_low=low
                    )
                    save_prediction(store, run_id, Prediction(e.id, e.unit, scorer, "ok", (), by), [score])
                    scores.append((scorer, r, low))
                for scorer, r, low in scores or [(None, None, None)]:
                    if run_id == 2 and status == "ok":
                        expected.append((layer, n, e.id, text, chosen, scorer, r, strongest, peaks, low))
    return store, expected


def plain(expected, text, layers, min_score, max_score, sort, peak_token_ids, chosen_only, limit):
    kept = [
        x
        for x in expected
        if (text is None or set(text.lower().split()) <= set(x[3].lower().split()))
        and (layers is None or x[0] in layers)
        and (min_score is None or (x[6] is not None and x[6] >= min_score))
        and (max_score is None or (x[6] is not None and x[6] <= max_score))
        and (peak_token_ids is None or set(peak_token_ids) & set(x[8]))
        and (x[4] or not chosen_only)
    ]
    values = {"score": (6,), "weakest": (6,), "lower": (9, 6), "activation": (7,), "unit": ()}[sort]
    place = [(x[0], x[1], x[2], x[5] or "") for x in kept]
    sign = 1 if sort == "weakest" else -1
    first = [[(x[value] is None, sign * (x[value] or 0)) for value in values] for x in kept]
    order = sorted(range(len(kept)), key=lambda i: (first[i], place[i]))[:limit]
    return [(kept[i][0], kept[i][1], kept[i][2], kept[i][5], kept[i][6]) for i in order]


@pytest.mark.parametrize("few", [4_000, 5, 0])
@pytest.mark.parametrize("sort", ["score", "weakest", "lower", "activation", "unit"])
def test_a_query_equals_filtering_and_sorting(filled_store, monkeypatch, few, sort):
    monkeypatch.setattr("neuroexplain.store.search.FEW", few)
    monkeypatch.setattr("neuroexplain.store.search.FEW_SCORES", few)
    store, expected = filled_store
    run = next(run for run in list_runs(store) if run.id == 2)
    texts, layers, peaks = (None, "relief", "near AND"), (None, (1,), (0, 2)), (None, (2,), (0, 5))
    scores = ((None, None), (0.1, None), (None, 0.2), (-0.5, 0.5))
    for text, layer_choice, peak, (low, high), chosen, limit in itertools.product(
        texts, layers, peaks, scores, (True, False), (3, 99)
    ):
        options = {"text": text, "layers": layer_choice, "min_score": low, "max_score": high, "sort": sort}
        options |= {"peak_token_ids": peak, "chosen_only": chosen, "limit": limit}
        rows = query_explanations(store, run, **options)
        result = [(x.unit.layer, x.unit.index, x.explanation_id, x.scorer, x.correlation) for x in rows]
        expected_rows = plain(expected, **options)
        if limit == 3 and sort in (
            "score",
            "weakest",
            "lower",
        ):  # undefined scores stand before unscored ones, in any order
            assert [x[4] for x in result] == [x[4] for x in expected_rows], options
        else:
            same_rows = sorted(result, key=repr) == sorted(expected_rows, key=repr)
            assert same_rows if limit == 99 else len(result) == len(expected_rows), options
            if sort in ("score", "weakest", "lower"):
                assert [x[4] for x in result] == [x[4] for x in expected_rows], options
            if sort == "unit":
                assert [x[:3] for x in result] == [x[:3] for x in expected_rows], options


@pytest.mark.parametrize("shared_database", ["sqlite"], indirect=True)  # PostgreSQL chooses by its statistics
def test_lower_ends_are_read_from_their_index(filled_store):
    """Without it, all scores of a run would be sorted."""
    store, _ = filled_store
    run = next(run for run in list_runs(store) if run.id == 2)
    queries, rows = [], Reader.rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "rows", lambda self, sql, **v: queries.append((sql, v)) or rows(self, sql, **v))
        for bounds in ({}, {"layers": [1, 2]}, {"max_score": 0.2}, {"min_score": -1}):
            patch.setattr("neuroexplain.store.search.FEW_SCORES", 0)
            query_explanations(store, run, sort="lower", limit=2, **bounds)
    beside = {"intruder_found", "hard"}
    searches = [(sql, values) for sql, values in queries if beside.isdisjoint(values.values())]
    assert len(searches) == 4
    with store.read() as reader:
        for sql, values in searches:
            plan = [row.detail for row in rows(reader, "EXPLAIN QUERY PLAN " + sql, **values)]
            assert "ix_scores_lower" in plan[0], plan


def test_bills_score_and_that_beyond_the_words_stand_beside_the_headline(database):
    """A score that was not asked for is None; those of `select` and of other subsets are not taken for it."""
    values = {("report", "correlation", "population"): 0.3, ("report", "correlation", "top_and_random"): 0.5}
    values |= {
        ("report", "correlation_beyond_words", "population"): 0.2,
        ("report", "auprc", "population"): 0.1,
    }
    values |= {("select", "correlation", "population"): 0.9, ("report", "correlation", "top"): 0.8}
    values |= {("select", "correlation_beyond_words", "population"): 0.7}
    with open_store(database, create=True) as store:
        run_id = create_run(store, FIELDS | {"n_sampled": 40, "split_rule": "passages"})
        by = Provenance("none", None, "m", None, None)
        for n, left_out in ((0, ()), (1, ("correlation_beyond_words", "top_and_random"))):
            with store.write() as connection:
                unit = {"run_id": run_id, "layer": 0, "unit": n, "status": "ok", "max_activation": 1.0}
                connection.execute(insert(t.units).values(**unit))
            e = save_explanation(store, run_id, Explanation(UnitId(0, n), "pairs", "ok", "rivers", by))
            scores = [
                Score(split, subset, metric, "ok", value, 320, 10)
                for (split, metric, subset), value in values.items()
                if metric not in left_out and subset not in left_out
            ]
            save_prediction(store, run_id, Prediction(e.id, e.unit, "lexical", "ok", (), by), scores)
        (run,) = list_runs(store)
        rows = query_explanations(store, run)
        by_auprc = query_explanations(store, run, headline=choose_headline(run, "auprc"))
    assert [(x.score, x.correlation, x.beyond_words) for x in rows] == [(0.3, 0.5, 0.2), (0.3, None, None)]
    assert [(x.score, x.metric, x.correlation, x.beyond_words) for x in by_auprc] == [
        (0.1, "auprc", 0.5, 0.2),
        (0.1, "auprc", None, None),
    ]


def test_a_run_in_numbers_is_what_its_rows_give(database):
    draw = random.Random(3)
    expected: dict = {}
    with open_store(database, create=True) as store:
        run_id = create_run(store, FIELDS | {"n_sampled": 40, "config": {"sign": "both"}})
        for layer, n in itertools.product(range(2), range(12)):
            with store.write() as connection:
                unit = {"run_id": run_id, "layer": layer, "unit": n, "status": "ok", "max_activation": 1.0}
                connection.execute(insert(t.units).values(**unit))
            for explainer, side, chosen in itertools.product(
                ("pairs", "tokens"), ("positive", "negative"), (True, False)
            ):
                by = Provenance("none", None, "m", None, None)
                e = Explanation(
                    UnitId(layer, n), explainer, "ok", "a", by, int(not chosen), chosen, side=side
                )
                e = save_explanation(store, run_id, e)
                value = draw.choice([None, round(draw.uniform(-1, 1), 3), round(draw.uniform(-1, 1), 3)])
                control = None if value is None else draw.choice([None, value, value - 0.1, value + 0.1])
                status = "ok" if value is not None else draw.choice(["few_records", "constant_simulation"])
                own = Score("report", "population", "correlation", status, value, 9, 9, control=control)
                others = [
                    Score("select", "population", "correlation", "ok", 0.9, 9, 9),
                    Score("report", "population", "auprc", "ok", 0.9, 9, 9),
                    Score("report", "top_and_random", "correlation", "ok", 0.9, 9, 9),
                ]
                save_prediction(
                    store, run_id, Prediction(e.id, e.unit, "lexical", "ok", (), by), [own, *others]
                )
                if chosen:
                    key = layer, explainer, "m", side, "lexical", "m"
                    expected.setdefault(key, []).append(own)
        (run,) = list_runs(store)
        summaries = summarize_scores(store, run)
        totals = join_counts(run, count_scores_by_layer(store, run), all_layers=True)
    assert len(summaries) == len(expected) == 8
    assert (len(totals), {s.layer for s in totals}) == (4, {None})
    for s in (*summaries, *totals):
        layers = range(2) if s.layer is None else (s.layer,)
        key = s.explainer, s.model, s.side, s.scorer, s.scorer_model
        own = [score for layer in layers for score in expected[layer, *key]]
        values = [score.value for score in own if score.value is not None]
        assert s.n_scored == len(values)
        undefined = Counter(score.status for score in own if score.value is None)
        assert dict(s.undefined) == undefined
        assert list(s.undefined.values()) == sorted(undefined.values(), reverse=True)
        assert s.mean == pytest.approx(np.mean(values))
        low, high = scipy.stats.t.interval(
            0.95, len(values) - 1, np.mean(values), np.std(values, ddof=1) / len(values) ** 0.5
        )
        assert (s.ci_low, s.ci_high) == pytest.approx((low, high))
        compared = [score for score in own if score.control is not None]
        above = [score for score in compared if score.value > score.control]
        assert s.share_above_control == pytest.approx(len(above) / len(compared))


def test_a_metric_is_looked_for_where_the_run_has_it():
    sampled = make_run(n_sampled=40, n_random=32)
    two_sided = make_run(n_sampled=40, n_random=32, config={"sign": "both"})
    old = make_run(n_random=32)
    for metric in ("correlation", "correlation_beyond_words", "auprc"):
        assert choose_headline(sampled, metric) == Headline(metric, ("population",))
    assert choose_headline(sampled, "r_squared") == Headline("r_squared", ("top_and_random",))
    assert choose_headline(two_sided, "r_squared").subsets == ("top_and_random", "bottom_and_random")
    assert choose_headline(old, "correlation").subsets == ("top_and_random",)
    with pytest.raises(NeuroexplainError, match="no auprc, because it has no sampled records"):
        choose_headline(old, "auprc")


def make_run(**other):
    config = {"n_random": 4, "config": {}, "split_rule": "passages"} | other
    return Run(
        *(1, "finished", "s", None, "float32", "act", (0,), 1, 4),
        **{"seed": 0, "tokenizer_sha256": "", "n_segments": 1, "n_documents": 1, "n_tokens": 128},
        **{"started_at": "", "finished_at": None} | config,
    )
