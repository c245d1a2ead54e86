"""The measure of explainers: which records are read and judged, and what the shares are of."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuroexplain.config import ExplainConfig
from neuroexplain.explaining.explainers import EXPLAINERS
from neuroexplain.explaining.known_neurons import read_neurons
from neuroexplain.explaining.plan import Requests
from neuroexplain.scorers.base import PredictedTrial, Predictions
from neuroexplain.scorers.lexical import LexicalSimulator
from neuroexplain.store.explanations import list_explanations, list_scores
from neuroexplain.store.runs import load_run
from neuroexplain.units import UnitId
from tests.explaining.explained import NEURONS, by_words, explain
from tests.fakes import ScriptedLlm, tiny_subject

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "scripts" / "eval_explainers.py"
sys.path.insert(0, str(SCRIPT.parent))
spec = importlib.util.spec_from_file_location("eval_explainers", SCRIPT)
eval_explainers = importlib.util.module_from_spec(spec)
sys.modules["eval_explainers"] = eval_explainers
spec.loader.exec_module(eval_explainers)


def neuron(name, words, true, n_top=4, n_random=2):
    """A neuron of words: each top record has one of them (value 9 - its rank) among 63 silent tokens."""

    def record(text, value):
        tokens = [f" w{i}" for i in range(63)] + [text]
        return {"tokens": tokens, "activations": [0.0] * 63 + [value]}

    top = [record(f" {words[rank % len(words)]}", 9.0 - rank) for rank in range(n_top)]
    return {"name": name, "kind": "words", "true": true, "false": [], "top": top} | {
        "random": [record(f" {words[0]}", 0.0) for _ in range(n_random)]
    }


class WordSimulator:
    """Predicts 1 where a token's text stands in the explanation."""

    def simulate(self, explanation, records, vocabulary):
        values = [[float(vocabulary[i].text.strip() in explanation.split()) for i in ids] for ids in records]
        return Predictions([PredictedTrial(np.array(row, np.float32)) for row in values], 0)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "neurons.json"
    rows = [neuron(f"n{n}", [f"a{n}", f"b{n}", f"c{n}"], f"a{n} b{n} c{n}") for n in range(6)]
    path.write_text(json.dumps(rows))
    return path


def evaluated(file, answer, **config):
    """(summary, results) with an LLM that answers by a function of its messages."""
    requests = Requests.of(ExplainConfig((UnitId(0, 0),), **config), ScriptedLlm(answer))
    judge = eval_explainers.Judge(WordSimulator())
    results = eval_explainers.evaluate(read_neurons(file, None), requests, judge)
    return eval_explainers.summarize(results), results


def test_even_top_records_are_read_and_the_others_are_judged(file):
    (first, *_) = read_neurons(file, None)
    assert eval_explainers.read_places(first) == [0, 2]
    assert eval_explainers.judged_places(first) == [1, 3, 4, 5]
    seen = []
    evaluated(file, lambda messages, _: seen.append(messages[-1].content) or "x", explainer="category")
    assert seen[0] == "Words: a0, c0\nCategory:"  # the words of ranks 0 and 2


def test_a_true_hypothesis_has_all_of_the_true_score_and_wins_everywhere(file):
    def truth(messages, _):
        n = messages[-1].content.split("a")[1][0]
        return f"a{n} b{n} c{n}"

    summary, results = evaluated(file, truth, explainer="category")
    assert summary["whole_share_of_true"] == summary["rule_share_of_true"] == 1.0
    assert (summary["wins"], summary["copies"], summary["failed"], summary["n"]) == (6, 0, 0, 6)
    # All that the truth predicts are words that it names, so nothing is left beyond them.
    assert summary["beyond_words"] is None
    # On the judged records of n0: b0 at 8, a0 at 6 (rank 3), and a0 at 0 twice.
    predicted, true = np.zeros(256), np.zeros(256)
    predicted[63::64], true[63], true[127] = 1, 8, 6
    assert results[0].true.all_tokens == pytest.approx(np.corrcoef(predicted, true)[0, 1])


def test_a_failed_attempt_counts_as_0_and_a_copy_is_counted(file):
    worked = EXPLAINERS["excerpts"].load_prompt().pool[3].explanation
    summary, results = evaluated(file, lambda messages, _: "", explainer="excerpts")
    assert (summary["whole_share_of_true"], summary["failed"], summary["wins"]) == (0.0, 6, 0)
    assert results[0].reason == "the answer is empty"
    requests = Requests.of(ExplainConfig((UnitId(0, 0),), "excerpts"), ScriptedLlm(lambda *_: "x"))
    request = requests.request(UnitId(0, 0), 0)
    for text, copied in ((worked, True), ("a few words", True), ("hedgehogs", False)):
        assert eval_explainers.is_copied(replace(request, text=text), requests) == copied


def test_the_candidate_is_taken_that_scores_best_on_the_records_that_were_read(file):
    replies = iter(["b0", "a0 c0", "w1"] + ["x"] * 15)
    _, results = evaluated(file, lambda *_: next(replies), explainer="category", candidates=3)
    assert results[0].text == "a0 c0"  # b0 stands in no record that was read


def test_a_share_is_a_ratio_of_means_with_the_error_of_one():
    rng = np.random.default_rng(0)
    wholes = rng.uniform(0.3, 0.9, 400)
    parts = 0.5 * wholes + rng.normal(0, 0.2, 400)
    ratio, error = eval_explainers.share(list(parts), list(wholes))
    assert ratio == pytest.approx(parts.mean() / wholes.mean(), abs=1e-3)
    picks = rng.integers(0, 400, (2000, 400))
    assert error == pytest.approx(np.std(parts[picks].mean(1) / wholes[picks].mean(1)), rel=0.1)
    assert eval_explainers.share([0.1], [0.2]) == (None, None)
    assert eval_explainers.share([0.1, 0.2], [0.0, 0.0]) == (None, None)


def test_real_units_are_scored_as_explain_scores_them(store, local):
    run = load_run(store)
    scorer = LexicalSimulator(local, run.tokenizer_sha256)
    requests = Requests.of(ExplainConfig(NEURONS, "category"), ScriptedLlm(by_words))
    figures = eval_explainers.evaluate_units(store, run, NEURONS, requests, scorer)
    assert list_explanations(store, run.id) == []  # nothing is stored
    values = {}
    for explainer in ("category", "tokens"):
        explain(store, ScriptedLlm(by_words), scorer, explainer)
        ids = [e.id for e in list_explanations(store, run.id, explainer=explainer)]
        for part in ("whole", "rule"):
            headlines = [s.score for s in list_scores(store, ids, part) if run.headline.is_of(s.score)]
            values[explainer, part] = [score.value or 0.0 for score in headlines]
    assert figures["mean_rule"] == pytest.approx(np.mean(values["category", "rule"]), abs=6e-4)
    assert figures["mean_whole"] == pytest.approx(np.mean(values["category", "whole"]), abs=6e-4)
    assert figures["mean_bare_list"] == pytest.approx(np.mean(values["tokens", "whole"]), abs=6e-4)
    assert (figures["n"], figures["failed"]) == (len(NEURONS), 0)
    assert figures["wins"] <= figures["above_other"] <= len(NEURONS)


def test_the_script_reads_a_database(collected):
    command = [sys.executable, str(SCRIPT), "--db", str(collected / "x.db"), "--sample", "3", "--json"]
    model = str(collected / "model")
    done = subprocess.run(
        [*command, "--local", model, "--judge", model], capture_output=True, text=True, check=True
    )
    figures = json.loads(done.stdout)
    assert figures["n"] == 3
    assert {"mean_rule", "mean_whole", "mean_bare_list", "other_rule", "wins"} < set(figures)


def test_the_script_runs_by_a_real_model(file, tmp_path):
    model = str(tiny_subject(tmp_path / "model"))
    command = [sys.executable, str(SCRIPT), "--neurons", str(file), "--local", model, "--judge", model]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert figures["n"] == 6
    assert figures["prompt_tokens"] > 0
    assert {"rule_share_of_true", "whole_share_of_true", "beyond_words", "bare_list_beyond_words"} < set(
        figures
    )
    table = subprocess.run([*command, "--explainer", "tokens"], capture_output=True, text=True, check=True)
    assert "a0, c0" in table.stdout


@pytest.mark.parametrize(("revised", "taken"), [("a0 c0", "a0 c0"), ("w1", "a0")])
def test_a_revision_sees_the_mistakes_on_what_was_read_and_is_taken_if_its_rule_is_better(
    file, revised, taken
):
    questions = []

    def answer(messages, _):
        questions.append(messages)
        return "a0" if len(messages) == len(questions[0]) else revised

    _, (first, *_) = evaluated(file, answer, explainer="category", revise=1)
    assert first.text.split(" and other ")[-1] == taken
    *_, own_rule, mistakes = questions[1]
    assert own_rule.content == "a0"
    # Of the records that were read, c0 is missed by a0; b0 stands in none of them.
    assert " c0\t7\t0" in mistakes.content
    assert " a0\t10\t10" in mistakes.content
    assert "b0" not in mistakes.content


def test_of_a_union_each_hypothesis_is_predicted_alone(file):
    class Longest(WordSimulator):
        def simulate(self, explanation, records, vocabulary):
            assert ";" not in explanation
            return super().simulate(explanation, records, vocabulary)

    (first, *_) = read_neurons(file, None)
    judge = eval_explainers.Judge(Longest())
    every = [0, 1, 2, 3, 4, 5]
    assert judge.score(first, every, "a0; or b0; or c0") == judge.score(first, every, "a0 b0 c0")
    assert judge.score(first, every, "a0; or b0") == judge.score(first, every, "a0 b0")
