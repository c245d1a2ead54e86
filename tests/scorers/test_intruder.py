"""The scorer `intruder`: what it is asked, and a database whose units it judges."""

import json

import numpy as np
import pytest
from fastapi.testclient import TestClient

from neuroexplain.errors import NeuroexplainError
from neuroexplain.explaining.verify import verify_run
from neuroexplain.score_words import intruder_verdict
from neuroexplain.scorers._questions import find_number_ids
from neuroexplain.scorers.intruder import SCORER, OpenIntruder
from neuroexplain.scoring import windows
from neuroexplain.scoring.intruders import IntruderRound
from neuroexplain.scoring.windows import MarkedWindow
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.runs import load_run
from neuroexplain.web.app import make_app
from tests.answering import AnsweringServer
from tests.explaining.conftest import collect, write_documents
from tests.fakes import tiny_subject, tiny_tokenizer
from tests.scorers.parquet import through_parquet
from tests.scorers.test_judges import typed
from tests.scorers.test_words import Spelling
from tests.tokens import vocabulary_of

VOCABULARY = vocabulary_of([" mill", " geese", " odd"])


def window(*token_ids, marked=(0,)):
    return MarkedWindow("sampled", 0, "report", 0, token_ids, marked)


def round_with_odd_at(place):
    members = (window(0, 1), window(0), window(1, 0), window(1))
    return IntruderRound("random", 0, "report", 0, (2,), members, window(2), place)


class Choosing:
    """Finds the piece that says `odd`; counts what it is asked."""

    engine, in_flight = "local", 1

    def __init__(self):
        self.tokenizer, self.asked = tiny_tokenizer(), []

    def next_distributions(self, prompts, level_token_ids, shared=0, *, exact=False):
        assert len(level_token_ids) == 5
        self.asked += [
            self.tokenizer.decode(prompt).split("Which piece is the odd one")[1] for prompt in prompts
        ]
        answers = np.full((len(prompts), 5), 0.05)
        for row, text in enumerate(self.asked[-len(prompts) :]):
            lines = [line for line in text.splitlines() if line.strip()[:2] in ("1.", "2.", "3.", "4.", "5.")]
            answers[row, ["odd" in line for line in lines].index(True)] = 0.7
        return answers


@pytest.mark.parametrize("place", range(5))
def test_the_odd_one_s_probability_comes_first_wherever_it_stands(place):
    judge = OpenIntruder(Choosing())
    (predicted,) = judge.run("any text", [round_with_odd_at(place)], VOCABULARY).trials
    assert predicted.values.tolist() == pytest.approx([0.7, 0.05, 0.05, 0.05, 0.05])
    (asked,) = judge.engine.asked
    assert f"{place + 1}. **odd**" in asked


def test_explanations_are_not_read_and_a_unit_is_asked_about_once():
    judge, trials = OpenIntruder(Choosing()), [round_with_odd_at(place) for place in (1, 3)]
    first = judge.run("rivers", trials, VOCABULARY)
    second = judge.run("the sea", trials, VOCABULARY)
    assert len(judge.engine.asked) == 2
    assert not any("rivers" in asked for asked in judge.engine.asked)
    assert second.prompt_tokens == 0 < first.prompt_tokens
    planned = {request.key: request.n_tokens for request in judge.plan("rivers", trials, VOCABULARY)}
    assert sum(planned.values()) == first.prompt_tokens


def test_numbers_are_single_tokens():
    names = ["1", "2", " 1", " 2"]
    known = Spelling(lambda text: [names.index(text)])
    assert find_number_ids(known, 2) == [[0, 2], [1, 3]]
    assert all(find_number_ids(tiny_tokenizer(), 5))
    for encode in (lambda text: [7, 8], lambda text: [7]):
        with pytest.raises(NeuroexplainError, match="no single tokens for the numbers 1 to 5"):
            find_number_ids(Spelling(encode), 5)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A database whose units are judged, with a scorer's controls asked for as well."""
    folder = tmp_path_factory.mktemp("intruder")
    write_documents(folder / "text.jsonl", 120)
    model, db = tiny_subject(folder / "model"), folder / "x.db"
    collect(folder, db, str(model))
    typed("explain", "--units", "0:0-9", "--explainer", "tokens", "--local", model, "--db", db)
    server = AnsweringServer(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "POSITIVE_SHARE", 0.8)  # a tiny model's units fire in every window
        typed("score", "0:0-9", "--scorer", "intruder", "--server", server.url, "--control", "--db", db)
        yield db
    server.kill()


def scores_of(file):
    with open_store(str(file), read_only=True) as store:
        ids = [e.id for e in list_explanations(store, 1)]
        assert list(verify_run(store, load_run(store))) == []
        predictions = [p for p in list_predictions(store, ids) if p.scorer == "intruder"]
        return [s for s in list_scores(store, ids) if s.scorer == "intruder"], predictions


def test_shares_are_stored_with_interval_and_no_control(judged):
    scores, predictions = scores_of(judged)
    defined = [s.score for s in scores if s.score.value is not None]
    assert len(defined) > 2
    assert all(s.ci_low <= s.value <= s.ci_high for s in defined)
    assert {s.control_reason for s in defined} == {"no explanation is read"}
    assert {p.control_explanation_id for p in predictions} == {None}
    assert {len(r.values) for p in predictions for r in p.records} == {5}
    by_unit = {}
    for s in scores:
        by_unit.setdefault(s.unit, set()).add(s.score.value)
    assert all(len(values) == 1 for values in by_unit.values())


def test_query_and_the_viewer_say_so_beside_the_score(judged):
    rows = json.loads(typed("query", "--layer", "0", "--json", "--db", judged).stdout)
    known = [row for row in rows if row["intruder"] is not None]
    assert known
    assert all(row["scorer"] == "lexical" for row in known)
    at_chance = [row for row in known if row["intruder_low"] <= 0.2 and row["intruder_high"] < 0.5]
    assert at_chance  # the server's numbers mean nothing
    text = typed("query", "--layer", "0", "--db", judged).stdout
    assert "chance" in text
    unit = at_chance[0]["unit"]
    assert "odd one found (at chance" in typed("show", f"0:{unit}", "--db", judged).stdout
    with open_store(str(judged), read_only=True) as store:
        client = TestClient(make_app(store))
        assert "odd one found (at chance" in client.get(f"/0/{unit}").text
        assert ", chance" in client.get("/search").text
        assert "intruder" in client.get("/api/query").json()["results"][0]
    best = json.loads(typed("query", "--scorer", "intruder", "--json", "--db", judged).stdout)
    assert {(row["metric"], row["subset"]) for row in best} == {("intruder_found", "windows")}


def test_it_goes_through_parquet(judged, tmp_path):
    before, after = through_parquet(judged, tmp_path, "intruder")
    assert before == after
    assert before[1]


def test_it_is_refused_for_runs_without_samples(judged):
    from dataclasses import replace

    with open_store(str(judged), read_only=True) as store:
        run = replace(load_run(store), n_sampled=0)
    with pytest.raises(NeuroexplainError, match="no sampled ones"):
        SCORER.open(None, run)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.21, 0.9, ""),
        (0.2, 0.49, "chance"),
        (0.0, 0.1, "chance"),
        (0.1, 0.5, "unclear"),
        (None, None, "unclear"),
    ],
)
def test_what_is_said_of_an_interval(low, high, verdict):
    assert intruder_verdict(low, high) == verdict
