"""Judges: what they are asked, their values by hand, and a database that they score."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from neuroexplain.cli.main import app
from neuroexplain.demo.embedded_model import embedded_model
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import VocabularyEntry
from neuroexplain.explaining.verify import verify_run
from neuroexplain.llm.local import LocalEngine
from neuroexplain.scorers._judge import OpenJudge
from neuroexplain.scorers.detection import SCORER as DETECTION
from neuroexplain.scorers.fuzzing import SCORER as FUZZING
from neuroexplain.scoring import windows
from neuroexplain.scoring.side_evidence import Trial
from neuroexplain.scoring.windows import MarkedWindow
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.runs import load_run
from neuroexplain.web.app import make_app
from tests.answering import AnsweringServer
from tests.scorers.parquet import through_parquet
from tests.scorers.test_words import Answering
from tests.tokens import HOSTILE, vocabulary_of

NAMES = ("detection", "fuzzing")
METRICS = {"auroc", "auprc", "f1", "balanced_accuracy", "brier"}


def typed(*words, status=0):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == status, (done.output, done.exception)
    return done


def trials_of(n_tokens):
    return [Trial("random", place, "report", 0, (place,)) for place in range(n_tokens)]


def test_a_value_is_the_probability_of_yes_among_yes_and_no():
    judge = OpenJudge(DETECTION, Answering(lambda text: 0.8 if "mill" in text else 0.1))
    predicted = judge.run("rivers", trials_of(2), vocabulary_of([" mill", " geese"])).trials
    assert [float(p.values[0]) for p in predicted] == pytest.approx([0.8, 0.1])
    assert [float(p.detail[0]) for p in predicted] == pytest.approx([0.9, 0.9])


def test_a_window_without_an_answer_has_no_prediction():
    class Silent(Answering):
        def next_distributions(self, prompts, level_token_ids, shared=0, *, exact=False):
            return super().next_distributions(prompts, level_token_ids, shared) * 0

    (predicted,) = (
        OpenJudge(DETECTION, Silent(lambda text: 0.5)).run("x", trials_of(1), vocabulary_of([" mill"])).trials
    )
    assert math.isnan(predicted.values[0])
    assert predicted.detail[0] == 0


def test_every_window_has_a_prompt_of_its_own_behind_the_explanation():
    engine = Answering(lambda text: 0.5)
    judge = OpenJudge(DETECTION, engine)
    vocabulary = vocabulary_of([" mill", " geese"])
    judge.run("rivers", trials_of(2), vocabulary)
    judge.run("rivers", trials_of(2), vocabulary)  # asked once
    assert len(engine.asked) == 2
    first, second = engine.asked
    assert "rivers" in first
    assert ("mill" in first, "geese" in first) == (True, False)
    assert ("mill" in second, "geese" in second) == (False, True)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_window_stays_text(text):
    engine = Answering(lambda asked: 0.5)
    OpenJudge(DETECTION, engine).run("rivers", trials_of(2), vocabulary_of([text, " mill"]))
    assert all("<|" not in asked and "<start>" not in asked for asked in engine.asked)
    assert all(asked.rstrip().endswith("Answer yes or no.") for asked in engine.asked)


def test_fuzzing_is_asked_about_marked_tokens():
    engine = Answering(lambda text: 0.5)
    vocabulary = vocabulary_of([" the", " old", " mill", "stone", "\ufffd"])
    window = MarkedWindow("random", 0, "report", 0, (0, 1, 2, 3, 0), (2, 3))
    (predicted,) = OpenJudge(FUZZING, engine).run("rivers", [window], vocabulary).trials
    assert float(predicted.values[0]) == pytest.approx(0.5)
    (text,) = [asked.split("Text:")[-1] for asked in engine.asked]
    assert text.replace(" ", "").startswith("theold**millstone**the")


def test_a_mark_on_a_part_of_a_character_is_on_the_character():
    first, second = (VocabularyEntry(n, "\ufffd", False, data) for n, data in enumerate((b"\xc3", b"\xa9")))
    window = MarkedWindow("random", 0, "report", 0, (2, 0, 1, 2), (2,))
    tokens = {0: first, 1: second, 2: VocabularyEntry(2, " a", False, b" a")}
    assert FUZZING.text_of(window, tokens) == "a**\u00e9** a"


def test_values_do_not_depend_on_which_windows_are_asked_about_or_in_what_order(engine):
    vocabulary = vocabulary_of([*HOSTILE, " mill", " geese"])
    trials = trials_of(len(vocabulary))
    together = OpenJudge(DETECTION, engine).run("rivers", trials, vocabulary).trials
    backwards = OpenJudge(DETECTION, engine).run("rivers", trials[::-1], vocabulary).trials[::-1]
    for trial, own, other in zip(trials, together, backwards, strict=True):
        (alone,) = OpenJudge(DETECTION, engine).run("rivers", [trial], vocabulary).trials
        np.testing.assert_array_equal(own.values, other.values)
        np.testing.assert_array_equal(own.values, alone.values)
    assert np.isfinite([p.values for p in together]).all()


def test_the_plan_is_what_is_sent(engine):
    judge, vocabulary = OpenJudge(DETECTION, engine), vocabulary_of([" mill", " geese", " mill"])
    before = engine.usage.snapshot()
    planned = {r.key: r.n_tokens for r in judge.plan("rivers", trials_of(3), vocabulary)}
    predictions = judge.run("rivers", trials_of(3), vocabulary)
    used = engine.usage.since(before)
    assert len(planned) == used.requests == 2
    assert sum(planned.values()) == predictions.prompt_tokens == used.prompt_tokens


def test_a_real_model_answers_yes_or_no():
    """SmolLM2 is far too small to be right; its answers are answers, and the same in any company."""
    engine = LocalEngine(embedded_model())
    texts = [" mill", " geese", " She swam across the river", " and **then** he", "\n\n"]
    vocabulary, trials = vocabulary_of(texts), trials_of(len(texts))
    predicted = OpenJudge(DETECTION, engine).run("animals", trials, vocabulary).trials
    assert all(0 < float(p.values[0]) < 1 and float(p.detail[0]) > 0.02 for p in predicted)
    again = OpenJudge(DETECTION, engine).run("animals", trials[3:1:-1], vocabulary).trials
    expected = [float(p.values[0]) for p in predicted[3:1:-1]]
    assert [float(p.values[0]) for p in again] == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module", autouse=True)
def rarely_firing():
    """A tiny model's units fire in every window: only what is near the peak counts here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "POSITIVE_SHARE", 0.85)
        yield


@pytest.fixture(scope="module")
def server(hostile):
    """The address of a server that gives yes and no some probability, which a tiny model does not."""
    server = AnsweringServer(hostile / "model")
    yield server.url
    server.kill()


@pytest.fixture(scope="module")
def judged(hostile, server, tmp_path_factory):
    """A database whose explanations are judged by a command of ours, with controls."""
    copy = tmp_path_factory.mktemp("judged") / "x.db"
    copy.write_bytes((hostile / "x.db").read_bytes())
    options = ("--scorer", "detection,fuzzing", "--server", server, "--control", "--db", copy)
    typed("score", "0:0-9", *options)
    typed("explain", "--units", "1:10-12", "--explainer", "tokens", *options)
    return copy


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_is_stored_with_interval_and_control(judged, name):
    with open_store(str(judged), read_only=True) as store:
        ids = [e.id for e in list_explanations(store, 1)]
        scores = [s.score for s in list_scores(store, ids) if s.scorer == name and s.score.value is not None]
        predictions = [p for p in list_predictions(store, ids) if p.scorer == name]
        assert list(verify_run(store, load_run(store))) == []
    scores = [score for score in scores if score.value is not None]
    assert {s.metric for s in scores if s.split == "report"} == METRICS
    assert {s.metric for s in scores if s.split == "select"} <= {"auroc"}
    assert {s.subset for s in scores} == {"population"}
    assert all(0 <= s.value <= 1 for s in scores)
    assert all((s.ci_low is None) == (s.ci_reason is not None) for s in scores)
    assert all(s.ci_low <= s.value <= s.ci_high for s in scores if s.ci_low is not None)
    report = [s for s in scores if s.split == "report"]
    assert any(s.control is not None for s in report)
    assert all((s.control is None) == (s.control_reason is not None) for s in report)
    assert all({len(r.values) for r in p.records} == {1} for p in predictions)
    assert {p.n_read for p in predictions} == {16}


@pytest.mark.parametrize("name", NAMES)
def test_it_stands_in_query_show_and_the_viewer(judged, name):
    rows = json.loads(typed("query", "--scorer", name, "--json", "--db", judged).stdout)
    assert {(row["scorer"], row["metric"], row["subset"]) for row in rows} == {(name, "auroc", "population")}
    values = [row["score"] for row in rows]
    assert values == sorted(values, reverse=True)
    unit = f"{rows[0]['layer']}:{rows[0]['unit']}"
    page = json.loads(typed("show", unit, "--json", "--db", judged).stdout)
    predicted = [p for e in page["explanations"] for p in e["predictions"] if p["scorer"] == name]
    assert all(0 <= p["probability"] <= 1 and p["scored"][1] - p["scored"][0] == 32 for p in predicted)
    shown = typed("show", unit, "--db", judged).stdout
    assert all(name in shown for name in ("AUROC", "AUPRC", "F1", "balanced accuracy", "Brier score"))
    with open_store(str(judged), read_only=True) as store:
        client = TestClient(make_app(store))
        assert "balanced accuracy" in client.get(f"/{unit.replace(':', '/')}").text
        assert client.get(f"/api/neurons/{unit.replace(':', '/')}").status_code == 200
        assert client.get("/search", params={"scorer": name}).status_code == 200


def test_it_goes_through_parquet(judged, tmp_path):
    before, after = through_parquet(judged, tmp_path, *NAMES)
    assert before == after
    assert before[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_counts_what_the_run_sends(judged, server, tmp_path, name):
    copy = tmp_path / "x.db"
    copy.write_bytes(judged.read_bytes())
    command = ["explain", "--units", "1:13", "--explainer", "tokens", "--scorer", name]
    command += ["--server", server, "--db", copy]
    dry = typed(*command, "--dry-run")
    typed(*command)
    with open_store(str(copy), read_only=True) as store:
        (explanation,) = [e for e in list_explanations(store, 1) if str(e.unit) == "1:13"]
        (prediction,) = list_predictions(store, [explanation.id])
    assert f"about {len(prediction.records)} requests" in dry.stderr
    assert f"{prediction.provenance.prompt_tokens:,} prompt tokens" in dry.stderr


def test_it_is_refused_where_it_can_say_nothing(judged, server):
    with open_store(str(judged), read_only=True) as store:
        run = replace(load_run(store), n_sampled=0)
    with pytest.raises(NeuroexplainError, match="no sampled ones"):
        DETECTION.open(None, run)
    command = ["explain", "--units", "1:13", "--revise", "1", "--scorer", "detection", "--server", server]
    refused = CliRunner().invoke(app, [*command, "--db", str(judged)])
    assert isinstance(refused.exception, NeuroexplainError)
    assert "combined,detection" in str(refused.exception)
