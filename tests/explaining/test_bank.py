"""Labels from a bank: the best of all by `lexical` on the select records, found without a request a label."""

from dataclasses import replace

import numpy as np
import pytest

from neuroexplain.cli.select_units import keep_units
from neuroexplain.config import ExplainConfig
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Explanation, Provenance
from neuroexplain.explaining.bank import LabelBank, best_correlation
from neuroexplain.explaining.estimate import estimate_explain
from neuroexplain.explaining.predictions import begin_prediction
from neuroexplain.explaining.run import run_explain
from neuroexplain.explaining.trials import SideTrials
from neuroexplain.explaining.verify import verify_run
from neuroexplain.llm.prompts import load_prompt
from neuroexplain.scorers.base import compute_scores
from neuroexplain.scorers.lexical import LexicalSimulator
from neuroexplain.scoring.side_evidence import SideEvidence, tokens_needed
from neuroexplain.store.explanations import list_explanations, list_scores
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import load_unit
from neuroexplain.store.vocabulary import load_tokens, load_vocabulary
from tests.explaining.explained import NEURONS
from tests.fakes import ScriptedLlm

PROMPT = replace(load_prompt("explain/bank"), text="# a comment\nred\n\ngeese\nmoon\nseven\nmill\n")


@pytest.fixture
def lexical(local, store):
    return LexicalSimulator(local, load_run(store).tokenizer_sha256)


def select_score(store, unit, label, scorer):
    """The population score of a text on `select`, by the way of `explain`."""
    run = load_run(store)
    stored = load_unit(store, run, unit)
    tokens = load_tokens(store, run.id, tokens_needed(stored.exemplars))
    evidence = SideEvidence.of(run, stored, "positive", tokens)
    nobody = Provenance("none", None, "none", None, None)
    begun = begin_prediction(Explanation(unit, "human", "ok", label, nobody), "whole", scorer, evidence)
    prediction = SideTrials(scorer, evidence, tokens).extend(begun, [label], ("select",))
    scores = compute_scores(evidence, prediction)
    key = ("select", "correlation", "population")
    (score,) = [s for s in scores if (s.split, s.metric, s.subset) == key]
    return score.value


def test_the_label_of_the_bank_is_the_best_on_select(store, local, lexical):
    run = load_run(store)
    bank = LabelBank(local, PROMPT, run)
    assert bank.labels == ["red", "geese", "moon", "seven", "mill"]
    steps = list(bank.read(load_vocabulary(store, run.id)))
    assert (steps[-1].done, steps[-1].total) == (5, 5)
    chosen = []
    for unit in NEURONS:
        stored = load_unit(store, run, unit)
        tokens = load_tokens(store, run.id, tokens_needed(stored.exemplars))
        chosen.append(bank.choose(SideEvidence.of(run, stored, "positive", tokens)))
        scores = [select_score(store, unit, label, lexical) for label in bank.labels]
        scores = [-2 if score is None else score for score in scores]
        assert scores[bank.labels.index(chosen[-1])] == pytest.approx(max(scores), abs=1e-9)  # labels may tie
    assert len(set(chosen)) > 1  # else any bank would do


def test_a_whole_vocabulary_has_the_ratios_of_single_tokens(store, lexical):
    entries = load_vocabulary(store, load_run(store).id)
    texts = ["rivers", "the moon"]
    for text, ratios in zip(texts, lexical.likelihood.of_vocabulary(texts, entries), strict=True):
        single, _ = lexical.likelihood.ratios(text, entries)
        np.testing.assert_allclose(ratios, single, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_column_is_that_of_weighted_correlations(seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 3, (40, 6)).astype(np.float32)
    values[:, 2] = 1.0  # constant
    values[:, 5] = values[:, 0]  # of equals the first
    truth, weights = rng.normal(size=40) + values[:, 0], rng.integers(1, 5, 40)
    rows = np.repeat(np.arange(40), weights)
    with np.errstate(invalid="ignore"):
        correlations = [np.corrcoef(values[rows, n], truth[rows])[0, 1] for n in range(6)]
    correlations[2] = -2
    assert best_correlation(values, truth, weights.astype(float)) == int(np.argmax(correlations[:5]))
    assert best_correlation(values, np.ones(40), weights.astype(float)) is None
    assert best_correlation(values[:, [2]], truth, weights.astype(float)) is None


def test_labels_have_examples_are_scored_and_are_not_chosen_again(store, local, lexical):
    run, config = load_run(store), ExplainConfig(NEURONS, "bank")
    stages = {progress.stage for progress in run_explain(store, run, config, local, lexical)}
    assert "reading the bank" in stages
    labels = set(load_prompt("explain/bank").text.splitlines())
    explanations = list_explanations(store, run.id)
    assert [e.unit for e in explanations] == list(NEURONS)
    for e in explanations:
        assert (e.explainer, e.status, e.reply) == ("bank", "ok", None)
        assert e.rule in labels
        assert not e.rule.startswith("#")
        assert 1 <= len(e.examples) <= 5
        assert e.provenance.prompt_sha256 == load_prompt("explain/bank").sha256
        assert (e.provenance.model, dict(e.provenance.sampling)) == (local.model, {})
        for part in ("whole", "rule"):
            assert any(run.headline.is_of(s.score) for s in list_scores(store, [e.id], part))
    assert list(verify_run(store, run)) == []
    again = {progress.stage for progress in run_explain(store, run, config, local, lexical)}
    assert "reading the bank" not in again


def test_a_bank_takes_a_model_in_this_process_and_has_no_candidates(store, local, lexical):
    run = load_run(store)
    with pytest.raises(NeuroexplainError, match="--local MODEL"):
        list(run_explain(store, run, ExplainConfig(NEURONS, "bank"), ScriptedLlm(lambda *_: ""), lexical))
    with pytest.raises(NeuroexplainError, match="not with bank"):
        ExplainConfig(NEURONS, "bank", candidates=2)


def test_a_dry_run_compares_no_labels(store, local, lexical, monkeypatch):
    monkeypatch.setattr(LabelBank, "read", None)
    estimate = estimate_explain(store, load_run(store), ExplainConfig(NEURONS, "bank"), local, lexical)
    assert (estimate.n_units, estimate.n_prompt_tokens) == (len(NEURONS), 0)


def test_units_with_a_good_label_or_an_explanation_by_an_llm_can_be_left_out(store, local, lexical):
    run, units = load_run(store), list(NEURONS)
    list(run_explain(store, run, ExplainConfig(NEURONS, "bank"), local, lexical))
    list(run_explain(store, run, ExplainConfig(NEURONS, "tokens"), None, lexical))
    assert keep_units(store, run, units, "unexplained", None) == units
    best = {}
    for e in list_explanations(store, run.id):
        values = [s.score.value for s in list_scores(store, [e.id]) if run.headline.is_of(s.score)]
        best[e.unit] = max([best.get(e.unit, -2.0), *(v for v in values if v is not None)])
    middle = sorted(best.values())[2]
    assert keep_units(store, run, units, None, middle) == [unit for unit in units if best[unit] < middle]
    llm = ScriptedLlm(lambda *_: "rivers")
    list(run_explain(store, run, ExplainConfig(NEURONS[:2], "excerpts"), llm, lexical))
    assert keep_units(store, run, units, "unexplained", None) == units[2:]
    assert keep_units(store, run, units, None, None) == units
    assert keep_units(store, run, units[:2], "unexplained", None) == []
    with pytest.raises(NeuroexplainError, match="'bad' is not known"):
        keep_units(store, run, units, "bad", None)
