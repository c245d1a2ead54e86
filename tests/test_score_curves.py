"""Curves of scores: each share equals a plain count, and no unit that was tried is left out unsaid."""

import pytest
from matplotlib.figure import Figure
from sqlalchemy import insert

from neuroexplain import plots
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Explanation, Prediction, Provenance, Score
from neuroexplain.runs import Run
from neuroexplain.score_curves import ScoreCurve, load_curves
from neuroexplain.store import tables as t
from neuroexplain.store.engine import open_store
from neuroexplain.store.save_collected import create_run, finish_run
from neuroexplain.store.save_explained import save_explanation, save_prediction
from neuroexplain.units import Source, UnitId
from tests.fakes import run_fields

BY_LEXICAL = Provenance("none", None, "s", None, None)
SAMPLED = {"n_sampled": 8, "split_rule": "passages"}
LATENTS = [Source(layer, "sae", "layers.1", "output", 40, "float32", encoder="./sae") for layer in range(2)]


def add(store, run_id, unit, value, *, scorer="lexical", subset="population", explainer="pairs", **other):
    """An explanation with one score, or without a score: a value that is text is the status instead."""
    by = Provenance("none", None, explainer, None, None)
    text = None if other.get("status", "ok") != "ok" else "rivers"
    fields = {"status": "ok", "text": text} | other
    e = save_explanation(store, run_id, Explanation(unit, explainer, provenance=by, **fields))
    if value is not None:
        status, number = (value, None) if isinstance(value, str) else ("ok", value)
        its = [Score("report", subset, "correlation", status, number, 320, 10)]
        save_prediction(store, run_id, Prediction(e.id, unit, scorer, "ok", (), BY_LEXICAL), its)


def new_run(store, **fields):
    run_id = create_run(store, run_fields(2, 40, **fields))
    with store.write() as connection:
        for layer in range(2):
            rows = [{"run_id": run_id, "layer": layer, "unit": n, "status": "ok"} for n in range(40)]
            connection.execute(insert(t.units), rows)
    finish_run(store, run_id, n_segments=0, n_documents=0, n_tokens=0)
    return run_id


@pytest.fixture(scope="module")
def filled(shared_database):
    """Neurons (run 1) and latents (run 2) with population scores, and run 3 with Bills' alone."""
    with open_store(shared_database, create=True) as store:
        neurons, latents = new_run(store, **SAMPLED), new_run(store, sources=LATENTS, **SAMPLED)
        bills = new_run(store)
        for n in range(20):
            add(store, neurons, UnitId(n % 2, n), n / 20)
            add(store, latents, UnitId(1, n), n / 40, subset="population")
            add(store, bills, UnitId(0, n), 0.5, subset="top_and_random")
        add(store, neurons, UnitId(0, 20), "constant_simulation")
        add(store, neurons, UnitId(0, 22), None, status="dead")
        add(store, neurons, UnitId(0, 24), None, status="parse_error")
        add(store, neurons, UnitId(0, 26), None, status="parse_error", candidate=0)
        add(store, neurons, UnitId(0, 26), 0.99, candidate=1)  # a later attempt was usable
        add(store, neurons, UnitId(0, 2), None, status="parse_error", candidate=1)  # after a usable one
        add(store, neurons, UnitId(0, 28), None)  # explained, and not scored
        add(store, neurons, UnitId(0, 30), 0.1, explainer="human")
        add(store, neurons, UnitId(0, 32), 0.1, chosen=False)
        add(store, neurons, UnitId(0, 0), 0.9, candidate=1)  # newer than its score of 0
        yield store


def test_every_unit_that_was_tried_is_counted(filled):
    (curve,) = load_curves(filled, (1,)).curves
    assert curve.scores == tuple(sorted([*(n / 20 for n in range(1, 20)), 0.99, 0.9]))
    assert curve.without == {"constant_simulation": 1, "dead": 1, "parse_error": 1}
    assert (curve.n, curve.n_not_scored) == (24, 1)
    assert curve.name == "neurons of run 1: pairs"
    assert plots.counts(curve) == (
        "21 of 24 units have a score; 1 never fires, 1 answer could not be read, 1 with the same prediction "
        "everywhere; 1 not given to the scorer, left out"
    )


def test_layers_choose_units(filled):
    (curve,) = load_curves(filled, (1,), layers=(1,)).curves
    assert curve.scores == tuple(n / 20 for n in range(1, 20, 2))
    assert not curve.without


def test_runs_of_other_units_stand_in_one_picture(filled):
    loaded = load_curves(filled, (2, 1, 2))
    assert [curve.name for curve in loaded.curves] == [
        "sae latents of run 2: pairs",
        "neurons of run 1: pairs",
    ]
    assert not loaded.notes


def test_runs_without_a_common_score_are_refused(filled):
    with pytest.raises(NeuroexplainError, match=r"(?s)run 1 has .*; run 3 has .*--bills"):
        load_curves(filled, (1, 3))
    with pytest.raises(NeuroexplainError, match=r"Run 3 of .* has no .* in layer 1"):
        load_curves(filled, (3,), layers=(1,))


def test_another_score_that_both_have_is_taken_and_told(filled):
    for n in (1, 2):
        add(filled, 1, UnitId(1, 30 + n), n / 10, subset="top_and_random", candidate=3)
    loaded = load_curves(filled, (1, 3))
    assert loaded.headline.subsets == ("top_and_random",)
    assert "headlines differ" in loaded.notes[0]


def test_one_run_has_a_curve_for_each_scorer_and_several_the_common_one(filled):
    for n in range(3):
        add(filled, 2, UnitId(0, n), 0.2, scorer="words")
    assert {curve.scored_by for curve in load_curves(filled, (2,)).curves} == {
        ("lexical", "s"),
        ("words", "s"),
    }
    assert {curve.scored_by[0] for curve in load_curves(filled, (1, 2)).curves} == {"lexical"}
    with pytest.raises(NeuroexplainError, match="no score in common"):
        load_curves(filled, (1, 2), scorer="words")


def made_curve(scores, **without):
    source = Source(0, "mlp", None, "output", 1, "float32")
    fields = dict.fromkeys(Run.__dataclass_fields__) | {"id": 1, "sources": (source,)}
    by = ("pairs$\\frac{", "m"), ("digits<script>", "m")
    return ScoreCurve(Run(**fields), *by, tuple(scores), without)


def test_the_drawn_share_is_that_of_a_plain_count():
    scores = [0.1, 0.3, 0.3, 0.7, -0.4]
    axes = Figure().subplots()
    plots.share_above(axes, [made_curve(scores, dead=3)])
    line = axes.lines[0]
    drawn = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert drawn == {value: sum(score > value for score in scores) / 8 for value in scores}


def test_a_curve_of_many_scores_keeps_its_ends():
    values, shares = plots.shares_above([n / 10_000 for n in range(10_000)], 20_000, 0.0)
    assert len(values) == plots.MOST_STEPS
    assert (shares[0], shares[-1], values[-1]) == (0.5, 0.0, 0.9999)
    for value, share in zip(values[1:], shares[1:], strict=True):
        assert share == pytest.approx((9_999 - round(value * 10_000)) / 20_000)


def test_a_run_whose_scores_are_all_undefined_is_in_the_legend(tmp_path):
    curves = [made_curve([0.2, 0.5]), made_curve([], constant_simulation=4)]
    svg, _ = plots.save_figure(lambda axes: plots.share_above(axes, curves), tmp_path / "out")
    text = svg.read_text()
    assert "<script>" not in text
    assert "0 of 4 units have a score" in text
