"""The scorer `embedding`: cosines by hand, and a database that it scores without any LLM."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fastapi.testclient import TestClient

from neuroexplain.embedding.base import open_embedder
from neuroexplain.embedding.token_table import TokenTable
from neuroexplain.errors import EngineError, EngineLost, LlmReplyError, NeuroexplainError
from neuroexplain.evidence import Status
from neuroexplain.explaining.verify import verify_run
from neuroexplain.formats._parquet_rows import prediction_of
from neuroexplain.scorers.detection import SCORER as DETECTION
from neuroexplain.scorers.embedding import SCORER, OpenEmbedding
from neuroexplain.scoring import windows
from neuroexplain.scoring.codecs import CODECS
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.runs import load_run
from neuroexplain.web.app import make_app
from tests.embedding.stores import LetterEmbedder
from tests.scorers.parquet import through_parquet
from tests.scorers.test_judges import trials_of, typed
from tests.scoring.test_judge_scores import POSITIVE, evidence, prediction
from tests.tokens import HOSTILE, vocabulary_of


def values_of(opened, explanation, trials, tokens):
    return [float(predicted.values[0]) for predicted in opened.run(explanation, trials, tokens).trials]


def test_a_value_is_the_cosine_of_the_two_vectors():
    opened = OpenEmbedding(LetterEmbedder())
    tokens = vocabulary_of([" ab", " aab", " c", "ab"])
    assert values_of(opened, "ab", trials_of(4), tokens) == pytest.approx([1, 3 / 10**0.5, 0, 1])


def test_a_text_without_a_vector_has_no_prediction():
    opened = OpenEmbedding(LetterEmbedder())
    tokens = vocabulary_of([" ab", " ", " 12"])
    assert np.isnan(values_of(opened, "ab", trials_of(3), tokens)).tolist() == [False, True, True]
    assert np.isnan(values_of(opened, "34", trials_of(3), tokens)).all()


def test_windows_that_no_value_was_given_for_have_an_undefined_score():
    own = replace(prediction([np.nan] * 8, mass=1.0), scorer="embedding", codec="cosines", has_report=True)
    own = replace(own, records=tuple(replace(r, detail=None) for r in own.records))
    (score,) = SCORER.score(evidence(), own)
    assert (score.status, score.value) == (Status.LOW_DIGIT_MASS, None)
    assert score.reason == "none of the windows has a prediction"


def test_cosines_below_0_are_ranked_and_there_is_no_threshold():
    cosines = [0.1 if positive else -0.4 for positive in POSITIVE]
    own = replace(prediction(cosines), scorer="embedding", codec="cosines", has_report=True)
    scores = {s.metric: s.value for s in SCORER.score(evidence(), own) if s.split == "report"}
    assert scores == {"auroc": pytest.approx(1), "auprc": pytest.approx(1)}


def test_its_windows_are_those_of_detection():
    assert SCORER.trials(evidence()) == DETECTION.trials(evidence()) != []


def test_values_do_not_depend_on_the_windows_beside_them():
    tokens = vocabulary_of([*HOSTILE, " mill", " the river", "\n", "\ud800"])
    trials = trials_of(len(tokens))
    together = values_of(OpenEmbedding(TokenTable.load()), "rivers", trials, tokens)
    backwards = values_of(OpenEmbedding(TokenTable.load()), "rivers", trials[::-1], tokens)[::-1]
    np.testing.assert_array_equal(together, backwards)
    assert together[len(HOSTILE) + 1] > together[len(HOSTILE)]
    assert all(-1 <= value <= 1 for value in together if not np.isnan(value))


def test_a_text_is_embedded_once():
    embedder = LetterEmbedder()
    opened, tokens = OpenEmbedding(embedder), vocabulary_of([" ab", " c"])
    for explanation in ("ab", "c", "ab"):
        opened.run(explanation, trials_of(2), tokens)
    assert sorted(embedder.embedded) == ["a text", "ab", "c"]


class Faulty(LetterEmbedder):
    """Fails after the first text, which is that of the scorer's own trial."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def embed(self, texts):
        if self.embedded and self.error is not None:
            error, self.error = self.error, None
            raise error
        return super().embed(texts)


def test_an_answer_that_cannot_be_used_is_a_failed_attempt():
    opened, tokens = OpenEmbedding(Faulty(EngineError("gave 1 vector\nof 2"))), vocabulary_of([" ab"])
    with pytest.raises(LlmReplyError, match=r"^gave 1 vector$"):
        opened.run("ab", trials_of(1), tokens)
    assert values_of(opened, "ab", trials_of(1), tokens) == [pytest.approx(1)]
    with pytest.raises(EngineLost):
        OpenEmbedding(Faulty(EngineLost("gone"))).run("ab", trials_of(1), tokens)


def test_what_does_not_embed_is_refused_at_once():
    class Never(LetterEmbedder):
        def embed(self, texts):
            raise EngineError("no embedding model")

    with pytest.raises(EngineError, match="no embedding model"):
        OpenEmbedding(Never())


def test_a_revision_is_that_of_the_weights(monkeypatch):
    table = TokenTable.load()
    assert table.revision == TokenTable.load().revision
    changed = TokenTable(table.model, table._tokenizer, table._table.copy())
    changed._table[0, 0] += 1
    assert changed.revision != table.revision


@pytest.fixture(scope="module")
def scored(hostile, tmp_path_factory):
    """A database that a command of ours scored by vectors, without an LLM anywhere."""
    copy = tmp_path_factory.mktemp("embedding") / "x.db"
    copy.write_bytes((hostile / "x.db").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "POSITIVE_SHARE", 0.85)  # a tiny model's units fire in every window
        patch.setenv("NEUROEXPLAIN_SERVER", "http://127.0.0.1:9/v1")  # nothing listens there
        typed("score", "0:0-9", "--scorer", "embedding", "--db", copy)
        tokens = ("--explainer", "tokens", "--scorer", "embedding", "--db", copy)
        dry = typed("explain", "--units", "1:10-12", *tokens, "--dry-run")
        assert "about 0 requests with 0 prompt tokens" in dry.stderr
        typed("explain", "--units", "1:10-12", *tokens)
        yield copy


def test_scores_are_stored_with_interval_control_and_the_model(scored):
    with open_store(str(scored), read_only=True) as store:
        ids = [e.id for e in list_explanations(store, 1)]
        stored = [s for s in list_scores(store, ids) if s.scorer == "embedding"]
        predictions = [p for p in list_predictions(store, ids) if p.scorer == "embedding"]
        assert list(verify_run(store, load_run(store))) == []
    scores = [s.score for s in stored if s.score.value is not None]
    assert {s.metric for s in scores if s.split == "report"} == {"auroc", "auprc"}
    assert {s.metric for s in scores if s.split == "select"} == {"auroc"}
    assert all(s.ci_low <= s.value <= s.ci_high for s in scores if s.ci_low is not None)
    assert all((s.ci_low is None) == (s.ci_reason is not None) for s in scores)
    assert any(s.control is not None for s in scores)
    table = open_embedder()
    assert {(p.provenance.model, p.provenance.model_revision) for p in predictions} == {
        (table.model, table.revision)
    }
    assert {p.provenance.engine for p in predictions} == {"embedding"}
    assert {p.provenance.prompt_tokens for p in predictions} == {0}
    assert {p.n_read for p in predictions} == {16}


def test_it_stands_in_query_show_and_the_viewer(scored):
    rows = json.loads(typed("query", "--scorer", "embedding", "--json", "--db", scored).stdout)
    assert {(row["metric"], row["subset"]) for row in rows} == {("auroc", "population")}
    unit = f"{rows[0]['layer']}:{rows[0]['unit']}"
    page = json.loads(typed("show", unit, "--json", "--db", scored).stdout)
    own = [p for e in page["explanations"] for p in e["predictions"] if p["scorer"] == "embedding"]
    assert own
    assert all(-1 <= p["cosine"] <= 1 and p["scored"][1] - p["scored"][0] == 32 for p in own)
    assert "AUROC" in typed("show", unit, "--db", scored).stdout
    with open_store(str(scored), read_only=True) as store:
        client = TestClient(make_app(store))
        assert "embedding" in client.get(f"/{unit.replace(':', '/')}").text
        assert client.get("/search", params={"scorer": "embedding"}).status_code == 200


def test_it_goes_through_parquet(scored, tmp_path):
    before, after = through_parquet(scored, tmp_path, "embedding")
    assert before == after
    assert before[0] == {"cosines"}
    assert before[1]


@pytest.mark.parametrize(("name", "value"), [("cosines", 1.5), ("cosines", -1.5), ("probabilities", -0.5)])
def test_values_out_of_bounds_are_not_imported(name, value):
    record = {"kind": "random", "rank": 0, "first": 0, "values": [value], "detail": None, "control": None}
    row = {"layer": 0, "neuron": 0, "codec": name, "records": [record]}
    with pytest.raises(ValueError, match="impossible values"):
        prediction_of(row, [None])
    assert CODECS[name].bounds is not None


def test_it_is_refused_without_sampled_records_and_without_its_package(scored, monkeypatch):
    with open_store(str(scored), read_only=True) as store:
        run = replace(load_run(store), n_sampled=0)
    with pytest.raises(NeuroexplainError, match="no sampled ones"):
        SCORER.open(LetterEmbedder(), run)
    monkeypatch.setattr("neuroexplain.embedding.token_table.find_spec", lambda name: None)
    refused = typed_error("score", "0:0", "--scorer", "embedding", "--db", scored)
    assert "pip install 'neuroexplain[search]'" in refused


def typed_error(*words):
    from typer.testing import CliRunner

    from neuroexplain.cli.main import app

    done = CliRunner().invoke(app, list(map(str, words)))
    assert isinstance(done.exception, NeuroexplainError)
    return str(done.exception)
