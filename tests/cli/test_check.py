"""`neuroexplain check` on a tiny model: figures of each simulator, and what is refused."""

import json
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict, replace

import pytest
from typer.testing import CliRunner

from neuroexplain.cli.main import app
from neuroexplain.errors import NeuroexplainError
from neuroexplain.explaining.check import best_of, check_simulators, neurons_to_check, simulators
from neuroexplain.explaining.known_neurons import Outcome, packaged_neurons
from neuroexplain.llm.local import LocalEngine
from neuroexplain.runs import SimulatorCheck
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import list_checks
from neuroexplain.store.save_explained import save_checks
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
        assert figures["n_neurons"] == 6
        assert list(figures["kinds"]) == KINDS
        assert sum(kind["n_won"] for kind in figures["kinds"].values()) == figures["n_won"]
        margins[name] = figures["mean_margin"]
    assert results["best"] == max(margins, key=margins.get)
    assert results["model"] == model
    # Of words, only what follows the shared part is computed: a word and the end of the question.
    assert 0 < results["simulators"]["words"]["computed_per_token"] < 60


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


def test_a_neuron_without_a_margin_counts_as_0(monkeypatch, model):
    outcomes = {
        "lexical": [(0.9, 0.1), (None, 0.2), (None, 0.2)],  # 0.8 on one neuron of three
        "words": [(0.5, 0.1), (0.5, 0.1), (0.5, 0.1)],
    }

    def evaluate(_, simulator):
        of_scorer = outcomes[simulator.scorer.name]
        return (Outcome(str(n), "words", correlations, ()) for n, correlations in enumerate(of_scorer))

    monkeypatch.setattr("neuroexplain.explaining.check.evaluate", evaluate)
    with closing(LocalEngine(model)) as engine:
        results = [
            result for _, result in check_simulators(["lexical", "words"], engine, neurons_to_check(1))
        ]
    lexical, words = (result for result in results if isinstance(result, SimulatorCheck))
    assert (lexical.n_won, lexical.n_undefined, lexical.n_neurons) == (1, 2, 3)
    assert lexical.mean_margin == pytest.approx(0.8 / 3)
    assert lexical.mean_true == pytest.approx(0.9)
    assert words.mean_margin == pytest.approx(0.4)
    assert best_of([lexical, words]) is words


@pytest.fixture
def db(hostile, tmp_path, monkeypatch):
    """A copy of a database with scores, as neuroexplain.db of the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copy(hostile / "x.db", tmp_path / "neuroexplain.db")
    return tmp_path / "neuroexplain.db"


def printed(*command):
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_figures_are_stored_with_the_run_and_stand_beside_its_scores(model, db):
    with open_store(str(db), read_only=True) as store:
        earlier = {(c.scorer, c.scorer_model): c for c in list_checks(store, 1)}
    figures = json.loads(
        printed("check", "--local", model, "--scorer", "lexical", "--neurons", "1", "--json")
    )
    with open_store(str(db), read_only=True) as store:
        stored = {(c.scorer, c.scorer_model): c for c in list_checks(store, 1)}
    new = stored["lexical", model]
    assert asdict(new) == figures["simulators"]["lexical"]
    assert stored == {**earlier, ("lexical", model): new}
    again = replace(new, n_won=5)
    with open_store(str(db)) as store:
        save_checks(store, 1, [again])
        assert {(c.scorer, c.scorer_model): c for c in list_checks(store, 1)} == {
            **stored,
            ("lexical", model): again,
        }


def test_runs_and_show_say_how_far_a_simulator_can_be_trusted(hostile, db):
    about = "wins 7 of 12 known neurons (guessing wins 4), margin 0.25"
    own, other = sorted(line for line in printed("runs").splitlines() if "known neurons" in line)
    assert own == f"run 1, lexical, model {about}"
    assert other.endswith(about)
    assert "not the scorer" in other
    checks = json.loads(printed("runs", "--json"))[0]["checks"]
    assert [check["n_won"] for check in checks] == [7, 7]
    (line,) = (line for line in printed("show", "0:3").splitlines() if "known neurons" in line)
    assert line.strip() == f"lexical, model, which {about}"
    assert json.loads(printed("show", "0:3", "--json"))["checks"] == checks


def test_a_run_that_is_not_there_is_said_before_the_model_is_loaded(model, db):
    for more, reason in ((["--run", "9"], "no finished run 9"), (["--db", "absent.db"], "absent.db")):
        done = CliRunner().invoke(app, ["check", "--local", "no such model", *more])
        assert reason in str(done.exception)


def test_without_a_database_nothing_is_stored(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["check", "--local", model, "--scorer", "lexical", "--neurons", "1"])
    assert done.exit_code == 0, done.output
    assert "Stored" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_default_database_that_cannot_take_the_figures_does_not_stop_a_check(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neuroexplain.db").write_text("no database")
    command = ["check", "--local", model, "--scorer", "lexical", "--neurons", "1", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["best"] == "lexical"
    assert "printed and not stored" in done.stderr
    named = CliRunner().invoke(app, [*command, "--db", "neuroexplain.db"])
    assert named.exit_code != 0
    assert named.stdout == ""


def test_figures_that_cannot_be_stored_are_printed_all_the_same(model, db, monkeypatch):
    def fail(*_):
        raise NeuroexplainError("the disk is full")

    monkeypatch.setattr("neuroexplain.store.save_explained.save_checks", fail)
    command = ["check", "--local", model, "--scorer", "lexical", "--neurons", "1", "--json"]
    done = CliRunner().invoke(app, command)
    assert "the disk is full" in str(done.exception)
    assert json.loads(done.stdout)["best"] == "lexical"


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
