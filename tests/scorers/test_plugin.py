"""A scorer that none of our files names works everywhere: share_scorer.py."""

import json

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

import neuroexplain as nx
from neuroexplain.cli.main import app
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Headline
from neuroexplain.explaining.verify import verify_run
from neuroexplain.scorers.base import SCORERS, choose_headline
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.web.app import make_app
from tests.scorers.parquet import through_parquet
from tests.scorers.share_scorer import SCORER, OpenShare


@pytest.fixture(scope="module", autouse=True)
def registered():
    SCORERS.register("share", SCORER)
    yield
    SCORERS.unregister("share")


def typed(*words, status=0):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == status, (done.output, done.exception)
    return done.stdout


@pytest.fixture(scope="module")
def scored(hostile, tmp_path_factory):
    """A database whose explanations are scored by it, as a command of ours writes them."""
    copy = tmp_path_factory.mktemp("plugin") / "x.db"
    copy.write_bytes((hostile / "x.db").read_bytes())
    typed(
        "explain",
        "--units",
        "0:0-5",
        "--explainer",
        "tokens",
        "--scorer",
        "lexical,share",
        "--local",
        hostile / "model",
        "--db",
        copy,
    )
    typed("score", "0:1", "--text", "the river", "--scorer", "share", "--db", copy)
    return copy


def test_it_stands_in_query_and_show(scored):
    rows = json.loads(typed("query", "--scorer", "share", "--json", "--db", scored))
    assert rows
    assert {(row["scorer"], row["metric"], row["subset"]) for row in rows} == {
        ("share", "named_share", "population")
    }
    values = [row["score"] for row in rows]
    assert values == sorted(values, reverse=True)
    lowest = json.loads(typed("query", "--metric", "named_gap", "--max-score", "0", "--json", "--db", scored))
    assert all(row["metric"] == "named_gap" and row["score"] <= 0 for row in lowest)
    assert "named share" in typed("query", "--scorer", "share", "--db", scored).replace("_", " ")
    page = json.loads(typed("show", "0:1", "--json", "--db", scored))
    scores = [s for e in page["explanations"] for s in e["scores"] if s["scorer"] == "share"]
    assert {s["metric"] for s in scores} == {"named_share", "named_gap"}
    predictions = [p for e in page["explanations"] for p in e["predictions"] if p["scorer"] == "share"]
    assert all(len(p["predicted"]) == 32 for p in predictions)
    assert "named share" in typed("show", "0:1", "--db", scored).replace("_", " ")


def test_it_stands_in_the_viewer_the_api_and_plots(scored, tmp_path):
    with open_store(str(scored), read_only=True) as store:
        client = TestClient(make_app(store))
        assert "named share" in client.get("/0/1").text
        assert ">share<" in client.get("/search").text
        page = client.get("/search", params={"scorer": "share"})
        assert page.status_code == 200
        assert "share, words" in page.text
        answer = client.get("/api/query", params={"scorer": "share"}).json()["results"]
        assert {row["metric"] for row in answer} == {"named_share"}
        assert client.get("/api/neurons/0/1").status_code == 200
    with nx.open(str(scored)) as db:
        assert [row.score for row in db.query(scorer="share")] == [row["score"] for row in answer]
    typed("plot", "distribution", "--scorer", "share", "--out", tmp_path / "p", "--db", scored)
    assert (tmp_path / "p.png").stat().st_size


def test_verify_computes_its_scores_again_and_sees_a_changed_one(scored, tmp_path):
    with open_store(str(scored), read_only=True) as store:
        assert list(verify_run(store, load_run(store))) == []
    copy = tmp_path / "x.db"
    copy.write_bytes(scored.read_bytes())
    with open_store(str(copy)) as store:
        with store.write() as connection:
            connection.exec_driver_sql(
                "UPDATE scores SET value = value + 0.5 WHERE metric = 'named_gap' AND split = 'report'"
            )
        assert any("named_gap" in fault for fault in verify_run(store, load_run(store)))


def test_where_it_is_not_installed_it_is_shown_and_verify_says_so(scored):
    SCORERS.unregister("share")
    try:
        assert "named share" in typed("show", "0:1", "--db", scored).replace("_", " ")
        with open_store(str(scored), read_only=True) as store:
            faults = list(verify_run(store, load_run(store)))
        assert faults
        assert all("'share' is not known" in fault for fault in faults)
    finally:
        SCORERS.register("share", SCORER)


def test_it_goes_through_parquet(scored, tmp_path):
    before, after = through_parquet(scored, tmp_path, "share")
    assert before == after
    assert before[0] == {"floats"}
    assert before[1]


def test_a_dry_run_counts_the_requests_that_the_run_makes(scored, tmp_path, monkeypatch):
    copy = tmp_path / "x.db"
    copy.write_bytes(scored.read_bytes())
    command = [
        "explain",
        "--units",
        "1:10-13",
        "--explainer",
        "tokens",
        "--scorer",
        "share",
        "--db",
        str(copy),
    ]
    dry = CliRunner().invoke(app, [*command, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    calls, run = [], OpenShare.run
    monkeypatch.setattr(OpenShare, "run", lambda self, *args: calls.append(args) or run(self, *args))
    typed(*command)
    assert len(calls) > 8  # own and control, select and report
    assert f"about {len(calls)} requests" in dry.stderr


def test_what_is_not_known_is_named(scored):
    with open_store(str(scored), read_only=True) as store:
        run = load_run(store)
    assert choose_headline(run) == Headline("correlation", ("population",))
    assert choose_headline(run, scorer="share").metric == "named_share"
    assert choose_headline(run, "r_squared").metric == "r_squared"
    with pytest.raises(
        NeuroexplainError,
        match=r"'brier'.*There is absolute_deviation_explained, auprc, auroc, balanced_accuracy, ",
    ):
        choose_headline(run, "brier")  # less is better: nothing is sorted by it
    with pytest.raises(
        NeuroexplainError,
        match=r"--scorer 'recall' is not known. There is combined, detection, digits, embedding, ",
    ):
        choose_headline(run, None, "recall")


def test_an_installed_package_adds_its_own(tmp_path, monkeypatch):
    folder = tmp_path / "other-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(
        "[neuroexplain.scorers]\nelsewhere = tests.scorers.share_scorer:SCORER\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "elsewhere" in SCORERS.names()
    assert SCORERS.load("elsewhere") is SCORER
