"""Neurons known by construction, the script that judges simulators by them, and a simulator judged so."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from neuroexplain.demo.embedded_model import embedded_model
from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import VocabularyEntry
from neuroexplain.explaining import known_neurons
from neuroexplain.llm.engine import Usage
from neuroexplain.scorers.base import PredictedTrial, Predictions
from neuroexplain.scorers.digits import DigitsSimulator
from neuroexplain.scoring.side_evidence import Trial

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "tests" / "known" / "neurons.json"
NEURONS = {neuron["name"]: neuron for neuron in json.loads(FILE.read_text("utf-8"))}


class Listed:
    """Gives the listed answer to each explanation: levels, repeated over the record, or an error."""

    name, prompt = "listed", None

    def __init__(self, answers, in_flight=1):
        self.answers = answers
        self.engine = type("Engine", (), {"in_flight": in_flight})

    def simulate(self, explanation, records, vocabulary):
        answer = self.answers[explanation]
        if isinstance(answer, LlmReplyError):
            raise answer
        return Predictions(
            [PredictedTrial(np.resize(np.array(answer, np.float32), len(record))) for record in records]
        )


def known(tmp_path, explanations, activations, n=1):
    record = {"tokens": [f" w{i}" for i in range(len(activations))], "activations": activations}
    neuron = {
        "name": "one",
        "true": explanations[0],
        "false": explanations[1:],
        "top": [record],
        "random": [record],
    }
    path = tmp_path / "known.json"
    path.write_text(json.dumps([neuron] * n))
    return known_neurons.read_neurons(path, None)


def test_every_neuron_has_a_true_and_five_false_explanations_and_whole_records():
    assert len(NEURONS) >= 40
    for name, neuron in NEURONS.items():
        assert len({neuron["true"], *neuron["false"]}) == 6, name
        assert len(neuron["top"]) == len(neuron["random"]) >= 5, name
        for record in neuron["top"] + neuron["random"]:
            assert len(record["tokens"]) == len(record["activations"]) == 64, name
            assert min(record["activations"]) >= 0, name
        assert min(max(r["activations"]) for r in neuron["top"]) > 0, name


def test_position_alone_tells_little_and_activations_are_graded():
    peaks = [int(np.argmax(r["activations"])) for neuron in NEURONS.values() for r in neuron["top"]]
    assert np.mean(np.array(peaks) == 32) < 0.1
    assert len(set(peaks)) > 40
    graded = [
        len({a for r in neuron["top"] + neuron["random"] for a in r["activations"]}) > 2
        for neuron in NEURONS.values()
    ]
    assert np.mean(graded) > 0.9


@pytest.mark.parametrize(
    ("name", "fires"),
    [("digits", r"\d"), ("question marks", r"[?!]"), ("quotation marks", '"')],
    ids=lambda x: x,
)
def test_the_rule_holds_at_every_token(name, fires):
    for record in NEURONS[name]["top"] + NEURONS[name]["random"]:
        for token, activation in zip(record["tokens"], record["activations"], strict=True):
            assert bool(re.search(fires, token)) == (activation > 0), token


def test_the_true_one_wins_where_it_beats_every_false_one(tmp_path):
    neurons = known(tmp_path, ["t", "a", "b"], [0.0, 1.0, 0.0, 2.0])
    scorer = Listed({"t": [0, 1, 0, 2], "a": [0, 1, 0, 1], "b": [2, 0, 1, 0]})
    (outcome,) = known_neurons.evaluate(neurons, scorer)
    assert outcome.won
    assert outcome.true == pytest.approx(1)
    summary = known_neurons.summarize([outcome])
    a, b = (np.corrcoef(x, [0, 1, 0, 2])[0, 1] for x in ([0, 1, 0, 1], [2, 0, 1, 0]))
    assert summary == {
        "wins": 1,
        "n": 1,
        "mean_true": 1.0,
        "mean_false": pytest.approx((a + b) / 2, abs=1e-4),
        "mean_margin": pytest.approx(1 - a, abs=1e-4),
        "undefined": 0,
    }
    assert known_neurons.summarize_kinds([outcome]) == {"other": summary}


def test_halves_share_each_kind_and_cost_is_by_scored_token():
    halves = [known_neurons.read_neurons(FILE, 1, half) for half in ("choose", "report")]
    names = [{neuron.name for neuron in half} for half in halves]
    assert not names[0] & names[1]
    assert names[0] | names[1] == set(NEURONS)
    kinds = [Counter(neuron.kind for neuron in half) for half in halves]
    assert all(0 <= kinds[0][kind] - kinds[1][kind] <= 1 for kind in kinds[0])
    assert len(kinds[0]) == 6
    usage = Usage()
    usage.add(1000, 200, 1)
    cost = known_neurons.cost_of(usage, halves[0][:2], 1.25)
    assert (cost["computed"], cost["computed_per_token"]) == (800, round(800 / (2 * 6 * 2 * 64), 2))
    usage.add(1000, None, 1)
    assert known_neurons.cost_of(usage, halves[0], 1.25)["computed"] is None


def test_a_tie_is_no_win(tmp_path):
    (outcome,) = known_neurons.evaluate(
        known(tmp_path, ["t", "a"], [0.0, 1.0]), Listed({"t": [0, 1], "a": [0, 1]})
    )
    assert not outcome.won


def test_what_is_undefined_or_failed_is_counted_apart_and_never_a_zero(tmp_path):
    neurons = known(tmp_path, ["t", "a", "b"], [0.0, 1.0, 0.5])
    failed = LlmReplyError("llm_error", "no answer")
    (outcome,) = known_neurons.evaluate(neurons, Listed({"t": [0, 0, 0], "a": failed, "b": [0, 1, 0]}))
    assert (outcome.true, outcome.won, outcome.margin, len(outcome.false)) == (None, False, None, 1)
    assert outcome.reasons == ("a constant side", "llm_error: no answer")
    summary = known_neurons.summarize([outcome])
    assert (summary["wins"], summary["undefined"], summary["mean_true"], summary["mean_margin"]) == (
        0,
        2,
        None,
        None,
    )


def test_a_token_without_a_prediction_is_not_scored(tmp_path):
    (outcome,) = known_neurons.evaluate(
        known(tmp_path, ["t", "a"], [0.0, 1.0, 9.0, 2.0]), Listed({"t": [0, 1, np.nan, 2], "a": [1, 0, 0, 0]})
    )
    assert outcome.true == pytest.approx(1)


def test_neurons_of_one_name_stay_apart_with_many_requests_at_once(tmp_path):
    neurons = known(tmp_path, ["t", "a"], [0.0, 1.0], n=5)
    outcomes = list(known_neurons.evaluate(neurons, Listed({"t": [0, 1], "a": [1, 0]}, in_flight=4)))
    assert [x.correlations for x in outcomes] == [(1.0, -1.0)] * 5


@pytest.mark.model
def test_digits_prompts_are_short():
    """At most 40 prompt tokens a scored token, the neutral prompts included, for 16 crops of 32 tokens.

    And at most 6 of one prompt, after the part that all prompts share and a server keeps.
    """
    path = Path(embedded_model())
    engine = type(
        "Engine", (), {"tokenizer": AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)}
    )
    scorer = DigitsSimulator(engine)
    fixed = len(scorer.build_prompt("", [], {})[0])
    for neuron in NEURONS.values():
        texts = [r["tokens"][16:48] for kind in ("top", "random") for r in (neuron[kind] * 2)[:8]]
        ids = {text: i for i, text in enumerate(sorted({text for record in texts for text in record}))}
        vocabulary = {i: VocabularyEntry(i, text, False) for text, i in ids.items()}
        trials = [
            Trial("top", n, "report", 0, tuple(ids[text] for text in record))
            for n, record in enumerate(texts)
        ]
        lengths = [request.n_tokens for request in scorer.plan(neuron["true"], trials, vocabulary)]
        assert len(lengths) == 2 * 16  # a crop a prompt, and its neutral one
        assert sum(lengths) <= 40 * 16 * 32, neuron["name"]
        assert sum(lengths[::2]) - 16 * fixed <= 6 * 16 * 32


@pytest.mark.model
def test_a_true_explanation_outscores_false_ones(tmp_path):
    """By the command that users have, on neurons of each sort."""
    sorts = [
        "colours",
        "family",
        "months",
        "food",
        "vehicles",
        "speech verbs",
        "music",
        "pronouns",
        "negation",
        "digits",
    ]
    path = tmp_path / "some.json"
    path.write_text(json.dumps([NEURONS[name] for name in sorts]))
    command = [sys.executable, str(ROOT / "scripts" / "eval_simulators.py"), "--scorer", "lexical", "--json"]
    done = subprocess.run([*command, "--neurons", str(path)], capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    assert summary["n"] == len(sorts)
    assert summary["wins"] >= 8
    assert summary["mean_margin"] > 0.1
    assert summary["undefined"] == 0
    assert summary["tokens"] > 0
