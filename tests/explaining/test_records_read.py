"""How many records a scorer reads: more of them later give what they give at once."""

import pytest

from neuroexplain.explaining.run import run_explain
from neuroexplain.explaining.score import run_score
from neuroexplain.explaining.verify import verify_run
from neuroexplain.scorers.digits import DigitsSimulator
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.runs import list_sessions, load_run
from neuroexplain.store.units import load_unit
from tests.explaining.explained import NEURONS, by_words, content, explain, score_by_hand, weights_by_hand
from tests.fakes import ScriptedLlm


def reading(local, n_read=None, with_bills=None):
    scorer = DigitsSimulator(local)
    scorer.n_read, scorer.with_bills = n_read, with_bills
    return scorer


def again(store, scorer, by_score, **options):
    """The same explanations scored by a later command: `score`, or `explain` again."""
    if by_score:
        list(run_score(store, load_run(store), list_explanations(store, 1), scorer))
        return
    llm = ScriptedLlm(by_words)
    explain(store, llm, scorer, **options)
    assert llm.requests == []


@pytest.fixture
def other(collected, tmp_path):
    (tmp_path / "y.db").write_bytes((collected / "x.db").read_bytes())
    with open_store(str(tmp_path / "y.db")) as opened:
        yield opened


@pytest.mark.parametrize("by_score", [True, False], ids=["score", "explain"])
def test_sixteen_records_after_eight_are_those_of_sixteen_at_once(store, other, local, by_score):
    explain(store, ScriptedLlm(by_words), reading(local))
    run = load_run(store)
    ids = [e.id for e in list_explanations(store, 1)]
    for n in (8, 16):
        if n == 16:
            again(store, reading(local, 16), by_score)
        for p in list_predictions(store, ids):
            assert (p.n_read, p.with_bills, p.has_report) == (n, False, True)
            unit = load_unit(store, run, p.unit)
            drawn = {*weights_by_hand(run, unit, "report", n)}
            splits = {x.key: x.split for x in unit.exemplars}
            assert {r.key for r in p.records if splits[r.key] == "report"} <= drawn
            assert len(drawn) > n
    explain(other, ScriptedLlm(by_words), reading(local, 16))
    assert content(store) == content(other)
    assert list(verify_run(store, run)) == []


@pytest.mark.parametrize("by_score", [True, False], ids=["score", "explain"])
def test_fewer_records_later_change_nothing(store, local, by_score):
    explain(store, ScriptedLlm(by_words), reading(local, 16, with_bills=True))
    before = content(store)
    again(store, reading(local, 8, with_bills=False), by_score)
    assert content(store) == before


def test_what_is_read_again_is_counted_again(store, local):
    explain(store, ScriptedLlm(by_words), reading(local))
    again(store, reading(local, 16), by_score=True)
    predictions = list_predictions(store, [e.id for e in list_explanations(store, 1)])
    first, second = list_sessions(store, 1)
    assert second.scored_tokens == sum(32 * len(p.records) for p in predictions) > first.scored_tokens
    sent = sum(p.provenance.prompt_tokens for p in predictions)
    assert first.scorer_prompt_tokens + second.scorer_prompt_tokens == sent


@pytest.mark.parametrize("by_score", [True, False], ids=["score", "explain"])
def test_bills_score_may_come_later(store, other, local, by_score):
    explain(store, ScriptedLlm(by_words), reading(local))
    ids = [e.id for e in list_explanations(store, 1)]
    assert {s.score.subset for s in list_scores(store, ids)} == {"population"}
    again(store, reading(local, with_bills=True), by_score)
    assert {s.score.subset for s in list_scores(store, ids)} == {
        "population",
        "top_and_random",
        "top",
        "random",
    }
    explain(other, ScriptedLlm(by_words), reading(local, with_bills=True))
    assert content(store) == content(other)
    run = load_run(store)
    for p in list_predictions(store, ids):
        splits = {x.key: x.split for x in load_unit(store, run, p.unit).exemplars}
        top, random = (
            [r for r in p.records if r.kind == kind and splits[r.key] == "report"]
            for kind in ("top", "random")
        )
        bills = next(
            s.score
            for s in list_scores(store, [p.explanation_id])
            if (s.score.subset, s.score.metric) == ("top_and_random", "correlation")
        )
        assert bills.n_records == len(top) + min(len(top), len(random))
        expected = score_by_hand(run, load_unit(store, run, p.unit), p, "report")
        population = next(
            s.score.value
            for s in list_scores(store, [p.explanation_id])
            if (s.score.split, s.score.subset, s.score.metric) == ("report", "population", "correlation")
        )
        assert population == pytest.approx(expected)  # the strongest records have no part in it
    assert list(verify_run(store, run)) == []


@pytest.mark.parametrize("by_score", [True, False], ids=["score", "explain"])
def test_a_finished_command_says_so_and_does_nothing(store, local, by_score):
    scorer, llm = reading(local, 16, with_bills=True), ScriptedLlm(by_words)
    explain(store, llm, scorer)
    before, n_requests, n_sessions = content(store), local.usage.requests, len(list_sessions(store, 1))
    run = load_run(store)
    if by_score:
        first, *_ = run_score(store, run, list_explanations(store, 1), scorer)
    else:
        from neuroexplain.config import ExplainConfig

        first, *_ = run_explain(store, run, ExplainConfig(NEURONS, "excerpts"), llm, scorer)
    assert first.done == first.total == len(NEURONS)
    assert (local.usage.requests, len(llm.requests)) == (n_requests, len(NEURONS))
    assert (content(store), len(list_sessions(store, 1))) == (before, n_sessions)
