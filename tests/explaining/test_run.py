"""Candidates: what is asked, chosen and stored; and that stopping changes nothing."""

import subprocess
import sys
import time

import numpy as np
import pytest

from neuroexplain.config import ExplainConfig
from neuroexplain.errors import EngineLost, LlmReplyError, NeuroexplainError
from neuroexplain.explaining.run import run_explain
from neuroexplain.explaining.verify import verify_run
from neuroexplain.scorers.base import main_metrics
from neuroexplain.scorers.digits import DigitsSimulator
from neuroexplain.scorers.lexical import LexicalSimulator
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.failures import list_failures
from neuroexplain.store.runs import list_sessions, load_run
from neuroexplain.units import CROP_LENGTH
from tests.explaining.explained import NEURONS, by_words, chosen, content, explain, on_select, stored_select
from tests.fakes import ScriptedLlm


def test_the_best_candidate_on_select_is_chosen_and_alone_reported(store, scorer):
    explain(store, ScriptedLlm(by_words), scorer, candidates=4)
    run = load_run(store)
    for neuron in NEURONS:
        of_neuron = list_explanations(store, run.id, neuron)
        assert [e.candidate for e in of_neuron] == [0, 1, 2, 3]
        stored = [stored_select(store, e.id) for e in of_neuron]
        for e, correlation in zip(of_neuron, stored, strict=True):
            assert correlation == pytest.approx(on_select(store, neuron, e.id))
        best = int(np.argmax([-2 if correlation is None else correlation for correlation in stored]))
        assert [e.chosen for e in of_neuron] == [i == best for i in range(4)]
        for e in of_neuron:
            status = {s.score.status for s in list_scores(store, [e.id]) if s.score.split == "report"}
            assert (status == {"not_chosen"}) == (scorer.name == "digits" and not e.chosen)
    assert list(verify_run(store, run)) == []


def test_more_candidates_later_ask_only_what_is_missing(store, scorer, tmp_path, collected):
    first = ScriptedLlm(by_words)
    explain(store, first, scorer, candidates=2)
    more = ScriptedLlm(by_words)
    explain(store, more, scorer, candidates=4)
    assert (len(first.requests), len(more.requests)) == (2 * len(NEURONS), 2 * len(NEURONS))
    nothing = ScriptedLlm(by_words)
    explain(store, nothing, scorer, candidates=4)
    assert nothing.requests == []
    (tmp_path / "y.db").write_bytes((collected / "x.db").read_bytes())
    with open_store(str(tmp_path / "y.db")) as other:
        explain(other, ScriptedLlm(by_words), scorer, candidates=4)
        assert chosen(store) == chosen(other)


@pytest.mark.parametrize("after", [1, 3, 5, 8])
def test_stopped_anywhere_and_run_again_it_ends_the_same(store, local, tmp_path, collected, after):
    scorer = LexicalSimulator(local, load_run(store).tokenizer_sha256)
    events = run_explain(
        store, load_run(store), ExplainConfig(NEURONS, "excerpts", revise=1), ScriptedLlm(by_words), scorer
    )
    for _ in range(after):
        next(events)
    events.close()
    explain(store, ScriptedLlm(by_words), scorer, revise=1)
    (tmp_path / "y.db").write_bytes((collected / "x.db").read_bytes())
    with open_store(str(tmp_path / "y.db")) as other:
        explain(other, ScriptedLlm(by_words), scorer, revise=1)
        assert content(store) == content(other)


def test_an_engine_that_is_lost_keeps_what_was_complete(store, scorer):
    class Lost(ScriptedLlm):
        def generate(self, messages, **sampling):
            if len(self.requests) == 3:
                raise EngineLost("gone")
            return super().generate(messages, **sampling)

    with pytest.raises(EngineLost):
        explain(store, Lost(by_words), scorer)
    assert len(list_explanations(store, 1)) == 3
    again = ScriptedLlm(by_words)
    explain(store, again, scorer)
    assert len(again.requests) == len(NEURONS) - 3
    assert list(verify_run(store, load_run(store))) == []


def test_a_neuron_has_one_chosen_explanation_of_an_explainer_and_model(store, scorer):
    """The last command's, also one that asks nothing anew; but not one of another seed that gets no usable
    answer.
    """
    llm = ScriptedLlm(by_words)

    def chosen_ids():
        stored = list_explanations(store, 1, explainer="excerpts")
        return {explanation.unit: explanation.id for explanation in stored if explanation.chosen}

    explain(store, llm, scorer, candidates=3)
    first = chosen_ids()
    explain(store, llm, scorer, candidates=2, revise=1)
    explain(store, llm, scorer, "pairs")
    for neuron in NEURONS:
        of_neuron = list_explanations(store, 1, neuron)
        assert sum(e.chosen for e in of_neuron if e.explainer == "excerpts") == 1
        assert sum(e.chosen for e in of_neuron) == 2
    n_asked = len(llm.requests)
    explain(store, llm, scorer, candidates=3)
    assert (chosen_ids(), len(llm.requests)) == (first, n_asked)
    before = [e.id for e in list_explanations(store, 1) if e.chosen and e.status == "ok"]
    explain(store, ScriptedLlm(lambda messages, sampling: ""), scorer, candidates=2, seed=7)
    assert [e.id for e in list_explanations(store, 1) if e.chosen and e.status == "ok"] == before


def test_a_failed_request_is_a_row_with_a_reason_and_asked_again_only_when_told(store, scorer):
    def failing(messages, sampling):
        raise LlmReplyError("llm_error", "400: no", "no")

    explain(store, ScriptedLlm(failing), scorer)
    assert {
        (f.status, f.reason) for f in list_failures(store, load_run(store), main_metrics(), None, 99)
    } == {("llm_error", "400: no")}
    llm = ScriptedLlm(by_words)
    explain(store, llm, scorer)
    assert llm.requests == []
    explain(store, llm, scorer, retry_failed=True)
    assert len(llm.requests) == len(NEURONS)
    assert {e.status for e in list_explanations(store, 1)} == {"ok"}


def test_what_a_command_cost_is_kept(store, local):
    llm = ScriptedLlm(by_words)
    explain(store, llm, DigitsSimulator(local))
    (session,) = list_sessions(store, 1)
    predictions = list_predictions(store, [e.id for e in list_explanations(store, 1)])
    sent = sum(s.provenance.prompt_tokens for s in predictions)
    assert (session.n_neurons, session.n_failed, session.scorer_prompt_tokens) == (len(NEURONS), 0, sent)
    assert session.prompt_tokens == sent + llm.prompt_tokens * len(NEURONS)
    assert session.scored_tokens == sum(CROP_LENGTH * len(s.records) for s in predictions)


@pytest.mark.parametrize("pause", [0.0, 0.7, 2.0])
def test_killed_at_any_moment_and_run_again_it_ends_the_same(collected, tmp_path, pause):
    """The real command with a real, if tiny, model as explainer and as simulator."""

    def command(db):
        options = (
            "--layers",
            "0-1",
            "--limit",
            "8",
            "--explainer",
            "excerpts",
            "--candidates",
            "2",
            "--scorer",
            "lexical",
        )
        named = ("--local", str(collected / "model"), "--db", str(db))
        return [sys.executable, "-m", "neuroexplain.cli.main", "explain", *options, *named]

    for name in ("killed.db", "whole.db"):
        (tmp_path / name).write_bytes((collected / "x.db").read_bytes())
    with subprocess.Popen(command(tmp_path / "killed.db"), stderr=subprocess.PIPE) as running:
        with open_store(str(tmp_path / "killed.db"), read_only=True) as store:
            while not list_explanations(store, 1):
                assert running.poll() is None, running.stderr.read()
                time.sleep(0.01)
        time.sleep(pause)
        running.kill()
    for name in ("killed.db", "whole.db"):
        done = subprocess.run(command(tmp_path / name), capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr  # what a random model answers may be no hypothesis
    with open_store(str(tmp_path / "killed.db")) as killed, open_store(str(tmp_path / "whole.db")) as whole:
        assert content(killed) == content(whole)
        assert list(verify_run(killed, load_run(killed))) == []


@pytest.mark.parametrize(
    "options",
    [{"candidates": 0}, {"candidates": 101}, {"revise": -1}, {"explainer": "tokens", "candidates": 2}],
)
def test_impossible_candidates_are_refused(options):
    with pytest.raises(NeuroexplainError, match=r"--candidates|--revise"):
        ExplainConfig(NEURONS, **options)
