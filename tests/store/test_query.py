"""Every path of a query through the indexes gives what filtering and sorting in plain Python gives."""

import itertools
import random

import pytest
from sqlalchemy import insert

from neuroexplain.evidence import Explanation, Prediction, Provenance, Score
from neuroexplain.store import tables as t
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import list_runs
from neuroexplain.store.save_collected import create_run
from neuroexplain.store.save_explained import save_explanation, save_prediction
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
                    score_status = "ok" if r is not None else "no_records"
                    score = Score("report", "top_and_random", "correlation", score_status, r, 320, 10)
                    save_prediction(store, run_id, Prediction(e.id, e.unit, scorer, "ok", (), by), [score])
                    scores.append((scorer, r))
                for scorer, r in scores or [(None, None)]:
                    if run_id == 2 and status == "ok":
                        expected.append((layer, n, e.id, text, chosen, scorer, r, strongest, peaks))
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
    value = {"score": 6, "activation": 7, "unit": None}[sort]
    place = [(x[0], x[1], x[2], x[5] or "") for x in kept]
    first = [() if value is None else (x[value] is None, -(x[value] or 0)) for x in kept]
    order = sorted(range(len(kept)), key=lambda i: (first[i], place[i]))[:limit]
    return [(kept[i][0], kept[i][1], kept[i][2], kept[i][5], kept[i][6]) for i in order]


@pytest.mark.parametrize("few", [4_000, 5, 0])
@pytest.mark.parametrize("sort", ["score", "activation", "unit"])
def test_a_query_equals_filtering_and_sorting(filled_store, monkeypatch, few, sort):
    monkeypatch.setattr("neuroexplain.store.search.FEW", few)
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
        if limit == 3 and sort == "score":  # undefined scores stand before unscored ones, in any order
            assert [x[4] for x in result] == [x[4] for x in expected_rows], options
        else:
            same_rows = sorted(result, key=repr) == sorted(expected_rows, key=repr)
            assert same_rows if limit == 99 else len(result) == len(expected_rows), options
            if sort == "score":
                assert [x[4] for x in result] == [x[4] for x in expected_rows], options
            if sort == "unit":
                assert [x[:3] for x in result] == [x[:3] for x in expected_rows], options
