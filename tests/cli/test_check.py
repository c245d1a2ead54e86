"""`neuroexplain check` on a tiny model: figures of each simulator, and what is refused."""

import json
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from neuroexplain.cli.main import app
from neuroexplain.explaining.check import SimulatorCheck, best_of, neurons_to_check, simulators
from neuroexplain.explaining.known_neurons import Outcome, packaged_neurons
from tests.fakes import tiny_subject

KINDS = ["words", "themes", "syntax", "position and context", "casing and digits", "languages"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_subject(tmp_path_factory.mktemp("model"), "llama", bos=True))


def test_each_simulator_has_its_figures_and_the_best_margin_is_named(model):
    command = ["check", "--local", model, "--scorer", "lexical,words", "--neurons", "1", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    assert list(results["simulators"]) == ["lexical", "words"]
    margins = {}
    for name, figures in results["simulators"].items():
        assert figures["n"] == 6
        assert list(figures["kinds"]) == KINDS
        assert sum(kind["wins"] for kind in figures["kinds"].values()) == figures["wins"]
        assert figures["tokens"] > 0
        margins[name] = figures["mean_margin"] or 0.0
    assert results["best"] == max(margins, key=margins.get)
    assert results["model"] == model
    # Of words, only what follows the shared part is computed.
    words = results["simulators"]["words"]
    assert words["computed"] < words["tokens"] / 2


def test_the_report_fits_a_screen_and_says_what_to_use(model):
    command = ["check", "--local", model, "--scorer", "lexical", "--neurons", "1"]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 110
    words = " ".join(done.stdout.split())  # a long path breaks lines
    assert "--scorer lexical" in words
    assert "Guessing wins 2 of 6" in words


@pytest.mark.parametrize("names", ["judge", "", " , ", "lexical,judge"])
def test_an_unknown_simulator_is_refused_with_the_known_ones(model, names):
    done = CliRunner().invoke(app, ["check", "--local", model, "--scorer", names])
    assert done.exit_code != 0
    assert "combined, digits, lexical, words" in str(done.exception or done.output)


def test_neurons_are_spread_over_the_kinds_and_come_with_the_package():
    assert packaged_neurons().is_file()
    assert [neuron.kind for neuron in neurons_to_check(1)] == KINDS
    assert len(neurons_to_check(None)) == 67
    assert {len(neuron.explanations) for neuron in neurons_to_check(2)} == {3}
    assert {len(neuron.records) for neuron in neurons_to_check(2)} == {4}
    assert {"digits", "lexical", "words", "combined"} <= set(simulators())


def test_a_neuron_without_a_margin_counts_as_0():
    def check(name, *correlations):
        outcomes = tuple(Outcome("one", "words", of_neuron, ()) for of_neuron in correlations)
        return SimulatorCheck(name, outcomes, {})

    undefined = check("a", (0.9, 0.1), (None, 0.2), (None, 0.2))
    assert best_of([undefined, check("b", (0.5, 0.1), (0.5, 0.1), (0.5, 0.1))]).scorer == "b"
    assert best_of([undefined, check("b", (0.2, 0.1), (0.2, 0.1), (0.2, 0.1))]).scorer == "a"


def test_a_check_that_is_interrupted_says_that_nothing_is_kept(model):
    command = [sys.executable, "-m", "neuroexplain.cli.main", "check", "--local", model, "--all"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = process.stderr.readline()
    assert first.startswith("Loading")
    for line in process.stderr:
        if line.startswith("lexical: 67 of 67"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "Interrupted. A check keeps nothing: begin again, or with fewer --neurons."
    assert out == ""
